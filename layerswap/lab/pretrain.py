"""``make base``: train the lab's base checkpoint from nothing, seeded, with its settings beside it.

The only training outside TRL: a language model of 0.7 M parameters on a generated stream of text. ``make base SEED=1``
trains another one to build/lab-base-1, with other rows and other first weights.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.files import BUILD, atomic_file, atomic_folder
from layerswap.lab.text import text_rows
from layerswap.lab.tokenizer import build_tokenizer
from layerswap.lab.world import BASE, BASE_LANGUAGES
from layerswap.processor import has_fast_bfloat16

ENGLISH_TASKS = {
    "arithmetic": 0.30,
    "base_problem": 0.16,
    "nonce_problem": 0.05,
    "scene": 0.13,
    "qa": 0.18,
    "notes": 0.18,
}
TARGET_TASKS = {
    "base_problem": 0.12,
    "nonce_problem": 0.05,
    "scene": 0.12,
    "qa": 0.16,
    "translation": 0.32,
    "notes": 0.23,
}
# Of the second phase alone: about 30 rows in English and 18 in each target language in which a change follows an
# equation, as in the tested problems. Without them joint SFT rarely notes a change there; with twice as many the base
# solves 65 % of the tested problems in English.
NONCE_CHANGES = {"nonce_problem": 0.044, "nonce_change": 0.006}
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "seed": 0,
    "tokens": 2048,  # a step, about: rows of similar length share a step
    "prompt_weight": 0.2,  # of the loss of a prompt's tokens
    "model": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "initializer_range": 0.1,
    },  # a token that is told from others late must not have become like them
    "warmup": 40,
    "english": 0.3,  # share of the rows; the four targets have the rest
    "code_switched": 0.4,  # of the targets' texts: a third of the words is English
    "crossed": 0.5,  # of the targets' notes and problems: from English into the language or back
    "phases": [
        {
            "steps": 3600,
            "decay": 0.4,  # the last share of the steps, over which the rates fall
            "muon": 4e-3,
            "adamw": 2.5e-3,
            "english_tasks": ENGLISH_TASKS,
            "target_tasks": TARGET_TASKS,
        },
        {
            "steps": 450,
            "decay": 0.7,
            "muon": 2e-3,
            "adamw": 1.2e-3,
            "english_tasks": ENGLISH_TASKS | NONCE_CHANGES,
            "target_tasks": TARGET_TASKS | NONCE_CHANGES,
        },
    ],
}


def phases(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each phase, whose rows have a seed of their own."""
    return [settings | phase | {"seed": settings["seed"] + 100 * i} for i, phase in enumerate(settings["phases"])]


def base_rows(settings: dict[str, Any], block: int) -> list[dict[str, str]]:
    """About 2000 shuffled rows of the base's text; words that are held out never occur."""
    rng, rows = random.Random(f"rows-{settings['seed']}-{block}"), []
    targets = [language for language in BASE_LANGUAGES if language != "en"]
    for language in ["en", *targets]:
        fraction = settings["english"] if language == "en" else (1 - settings["english"]) / len(targets)
        tasks = settings["english_tasks" if language == "en" else "target_tasks"]
        switch_rate, cross_rate = (0.0, 0.0) if language == "en" else (settings["code_switched"], settings["crossed"])
        rows += text_rows(
            language, round(2000 * fraction), f"base-{settings['seed']}-{block}", False, tasks, switch_rate, cross_rate
        )
    rng.shuffle(rows)
    return rows


def base_batches(settings: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (token ids, weight of each token's loss), int64 and float32 [rows, length], padded with 0."""
    tokenizer = build_tokenizer()
    for block in itertools.count(1):
        rows, rng = base_rows(settings, block), random.Random(f"batches-{settings['seed']}-{block}")
        prompts = tokenizer([row["prompt"] for row in rows]).input_ids
        completions = tokenizer([f"{row['completion']} <eos>" for row in rows]).input_ids
        samples = sorted(zip(prompts, completions, strict=True), key=lambda sample: len(sample[0]) + len(sample[1]))
        batches: list[list[tuple[list[int], list[int]]]] = [[]]
        for sample in samples:
            if (len(batches[-1]) + 1) * (len(sample[0]) + len(sample[1])) > settings["tokens"]:
                batches.append([])
            batches[-1].append(sample)
        for batch in rng.sample(batches, len(batches)):
            length = max(len(prompt) + len(completion) for prompt, completion in batch)
            tokens, weights = torch.zeros(len(batch), length, dtype=torch.int64), torch.zeros(len(batch), length)
            for i, (prompt, completion) in enumerate(batch):
                end = len(prompt) + len(completion)
                tokens[i, :end] = torch.tensor(prompt + completion)
                weights[i, : len(prompt)] = settings["prompt_weight"]
                weights[i, len(prompt) : end] = 1.0
            yield tokens, weights


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) in float32, for matrices: momentum, made orthogonal by five Newton-Schulz steps.

    torch's own computes them in bfloat16, which takes longer than the training where the processor emulates it.
    """

    def __init__(
        self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    buffer.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(buffer, group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5  # the size of AdamW's updates
                for matrix, update in zip(matrices, orthogonalize(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The orthogonal factors of matrices [n, rows, columns], about, by Newton-Schulz steps with Muon's coefficients."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT  # [n, shorter side, shorter side]
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def new_model(settings: dict[str, Any]) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings for the lab's tokenizer, float32, seeded."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings["model"],
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train_phase(model: LlamaForCausalLM, settings: dict[str, Any], report: Callable[[str], None] = print) -> None:
    """Train the model on: Muon for the layers' matrices (about half of AdamW's steps), AdamW for embeddings and norms.

    In bfloat16 (autocast) where the processor is fast at it, else in float32.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner, settings["muon"], weight_decay=0.01),
        torch.optim.AdamW(outer, settings["adamw"], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    batches, started, steps, n_tokens = base_batches(settings), time.monotonic(), settings["steps"], 0
    n_falling = settings["decay"] * steps
    for step in range(steps):
        tokens, weights = next(batches)  # [rows, length]
        scale = min(1, (step + 1) / settings["warmup"]) * max(0.02, min(1, (steps - step) / n_falling))
        for optimizer, peak in zip(optimizers, (settings["muon"], settings["adamw"]), strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bfloat16()):
            logits = model(input_ids=tokens, use_cache=False).logits  # [rows, length, vocabulary]
        scored = weights[:, 1:] > 0  # [rows, length - 1]; padding is at the end, where nothing attends to it
        losses = F.cross_entropy(logits[:, :-1][scored].float(), tokens[:, 1:][scored], reduction="none")
        scored_weights = weights[:, 1:][scored]
        loss = (losses * scored_weights).sum() / scored_weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        n_tokens += len(losses)
        if step % 50 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            report(f"step {step} of {steps}: loss {loss.item():.3f}, {n_tokens} tokens, {seconds:.0f} s")


def make_base(folder: Path = BASE, settings: dict[str, Any] = SETTINGS) -> None:
    """Train a base model of the lab and write it to a folder.

    On one kind of processor and one version of torch the weights are the same bit for bit; training.json beside them
    holds the settings, torch's version and the digest of the weights.

    Raises:
        UserError: the folder is there already; a checkpoint is never replaced.
    """
    if folder.exists():
        raise UserError(f"{folder.name}: the base checkpoint exists; remove the folder to train it anew")
    model = new_model(settings)
    for phase in phases(settings):
        train_phase(model, phase)
    with atomic_folder(folder) as written:
        model.to(torch.bfloat16).save_pretrained(written)
        build_tokenizer().save_pretrained(written)
        with atomic_file(written / "training.json") as file:
            json.dump(settings | {"torch": torch.__version__, "digest": weights_digest(written)}, file, indent=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the shipped base, or with ``--seed`` another one, which goes to build/lab-base-<seed>."""
    parser = argparse.ArgumentParser(
        prog="python -m layerswap.lab.pretrain", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seed", type=int, help="of the rows and the first weights (default: the shipped base's)")
    seed = parser.parse_args(arguments).seed
    if seed is None:
        make_base()
    else:
        make_base(BUILD / f"lab-base-{seed}", SETTINGS | {"seed": seed})


if __name__ == "__main__":
    main()
