"""``make base``: train the lab's base checkpoint from nothing, seeded, with its settings beside it.

The only training outside TRL: a language model of 1.7 M parameters on a generated stream of packed samples.
"""

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.files import atomic_file, atomic_folder
from layerswap.lab.world import BASE, LANGUAGES, arithmetic_rows, build_tokenizer, math_rows, text_rows
from layerswap.processor import has_fast_bfloat16

SETTINGS: dict[str, Any] = {
    "threads": 2,
    "batch": 32,  # sequences a step
    "length": 128,  # tokens a sequence
    "tasks": {"scene": 0.20, "qa": 0.25, "translation": 0.55},  # of the targets' text
    "english_tasks": {"scene": 0.3, "qa": 0.4, "translation": 0.3},  # a translation into English repeats the text
    "switched": 0.4,  # of the targets' scenes and questions: code-switched, a third of the words English
    "model": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 8, "num_attention_heads": 4},
    # Muon trains the layers' matrices (about half of AdamW's steps here), AdamW embeddings and norms. Shares are of the
    # samples; "targets" and "target_problems" count all four languages together.
    "phases": [
        {"seed": 0, "steps": 1400, "warmup": 50, "muon": 4e-3, "adamw": 2.5e-3,
         "shares": {"problems": 0.04, "arithmetic": 0.10, "english": 0.16, "targets": 0.70, "target_problems": 0.0}},
        # Without a few solved problems in each language (known words only) the model answers every target question
        # as if it were one of reading comprehension, and nothing learned in English reaches the targets.
        {"seed": 3, "steps": 65, "warmup": 10, "muon": 5e-4, "adamw": 3e-4,
         "shares": {"problems": 0.0, "arithmetic": 0.10, "english": 0.18, "targets": 0.70, "target_problems": 0.018}},
    ],
}  # fmt: skip


def token_stream(settings: dict[str, Any], phase: dict[str, Any]) -> Iterator[int]:
    """Endless token ids of shuffled samples, each closed by <eos>; target words that are held out never occur."""
    ids, targets = build_tokenizer().get_vocab(), [language for language in LANGUAGES if language != "en"]
    n_samples = {
        name: int(2000 * fraction / (len(targets) if "target" in name else 1))
        for name, fraction in phase["shares"].items()
    }
    for block in itertools.count(1):
        seed = f"{phase['seed']}-{block}"
        rows = math_rows(n_samples["problems"], f"base{seed}") + arithmetic_rows(n_samples["arithmetic"], seed)
        rows += text_rows("en", n_samples["english"], seed, tasks=settings["english_tasks"])
        for language in targets:
            rows += text_rows(language, n_samples["targets"], seed, False, settings["tasks"], settings["switched"])
            rows += text_rows(language, n_samples["target_problems"], seed, False, {"problem": 1})
        random.Random(seed).shuffle(rows)
        for row in rows:
            yield from (ids[word] for word in f"{row['prompt']}{row['completion']} <eos>".split())


def new_model(settings: dict[str, Any]) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings for the lab's tokenizer, float32, seeded."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["phases"][0]["seed"])
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings["model"],
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train_phase(
    model: LlamaForCausalLM, settings: dict[str, Any], phase: dict[str, Any], report: Callable[[str], None] = print
) -> None:
    """Train the model through a phase: batches [batch, length] packed from ``token_stream``.

    In bfloat16 (autocast) where the processor is fast at it, else in float32.
    """
    inner = [(name, p) for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [(name, p) for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(inner, phase["muon"], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, phase["adamw"], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    stream, started = token_stream(settings, phase), time.monotonic()
    for step in range(phase["steps"]):
        block = itertools.islice(stream, settings["batch"] * settings["length"])
        tokens = torch.tensor(list(block)).view(settings["batch"], -1)  # [batch, length]
        scale = min(1, (step + 1) / phase["warmup"]) * max(0.02, 1 - step / phase["steps"])
        for optimizer, peak in zip(optimizers, (phase["muon"], phase["adamw"]), strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bfloat16()):
            logits = model(input_ids=tokens, use_cache=False).logits  # [batch, length, vocabulary]
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == phase["steps"]:
            report(f"step {step} of {phase['steps']}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")


def make_base() -> None:
    """Train the lab's base model and write it to ``world.BASE``.

    On one machine and one version of torch the weights are the same bit for bit; training.json beside them holds the
    settings, torch's version and the digest of the weights.

    Raises:
        UserError: a checkpoint is there already; it is never replaced.
    """
    if BASE.exists():
        raise UserError(f"{BASE.name}: the base checkpoint exists; remove the folder to train it anew")
    model = new_model(SETTINGS)
    for phase in SETTINGS["phases"]:
        train_phase(model, SETTINGS, phase)
    with atomic_folder(BASE) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        with atomic_file(folder / "training.json") as file:
            json.dump(SETTINGS | {"torch": torch.__version__, "digest": weights_digest(folder)}, file, indent=1)


if __name__ == "__main__":
    make_base()
