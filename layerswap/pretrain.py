"""``make base``: train the lab's base checkpoint from nothing, seeded, with its recipe beside it.

The only training outside TRL: a language model of 1.8 M parameters on a generated stream of packed samples.
"""

import itertools
import json
import random
import time

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap import lab
from layerswap.checkpoint import digest
from layerswap.paths import LAB, UserError, atomic_file, atomic_folder

RECIPE = {
    "seed": 0,
    "threads": 2,
    "steps": 1800,
    "batch": 32,  # sequences a step
    "length": 128,  # tokens a sequence
    "warmup": 50,  # steps
    "muon_learning_rate": 4e-3,  # the layers' matrices; Muon needs about half of AdamW's steps here
    "adamw_learning_rate": 2.5e-3,  # embeddings and norms
    "shares": {"problem": 0.04, "arithmetic": 0.08, "en": 0.18, "targets": 0.70},  # of samples; problems: English only
    "tasks": {"scene": 0.25, "qa": 0.25, "translation": 0.50},  # of the targets' samples
    "switched": 0.4,  # of the targets' scenes and questions: code-switched, a third of the words English
    "model": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 8, "num_attention_heads": 4},
}


def token_stream(recipe):
    """Endless token ids of shuffled samples, each closed by <eos>; target words that are held out never occur."""
    ids, targets = lab.tokenizer().get_vocab(), [code for code in lab.LANGUAGES if code != "en"]
    n = {name: int(2000 * share) for name, share in recipe["shares"].items()}
    for block in itertools.count():
        seed = f"base-{recipe['seed']}-{block}"
        rows = lab.math_rows(n["problem"], seed) + lab.arithmetic_rows(n["arithmetic"], seed)
        rows += lab.text_rows("en", n["en"], seed, tasks={"scene": 0.4, "qa": 0.6})
        for code in targets:
            rows += lab.text_rows(code, n["targets"] // len(targets), seed, False, recipe["tasks"], recipe["switched"])
        random.Random(seed).shuffle(rows)
        for row in rows:
            yield from (ids[word] for word in f"{row['prompt']}{row['completion']} <eos>".split())


def train(recipe, report=print):
    """The trained base model: float32, batches [batch, length] packed from ``token_stream``, bf16 autocast."""
    torch.set_num_threads(recipe["threads"])
    torch.manual_seed(recipe["seed"])
    words = lab.tokenizer()
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), tie_word_embeddings=True, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **recipe["model"],
    ))  # fmt: skip
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, recipe["muon_learning_rate"], 0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, recipe["adamw_learning_rate"], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    stream, size, started = token_stream(recipe), recipe["batch"] * recipe["length"], time.monotonic()
    for step in range(recipe["steps"]):
        tokens = torch.tensor(list(itertools.islice(stream, size))).view(recipe["batch"], -1)  # [batch, length]
        scale = min(1, (step + 1) / recipe["warmup"]) * max(0.02, 1 - step / recipe["steps"])
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits  # [batch, length, vocabulary]
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step + 1 == recipe["steps"]:
            report(f"step {step} of {recipe['steps']}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")
    return model.eval()


def main():
    """Train the base and write it to ``lab_data/base``; refuses to replace a checkpoint that is there."""
    out = LAB / "base"
    if out.exists():
        raise UserError(f"{out.name}: the base checkpoint exists; remove the folder to train it anew")
    model = train(RECIPE)
    with atomic_folder(out) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        lab.tokenizer().save_pretrained(folder)
        with atomic_file(folder / "recipe.json") as file:
            json.dump(RECIPE | {"torch": torch.__version__, "digest": digest(folder)}, file, indent=1)


if __name__ == "__main__":
    main()
