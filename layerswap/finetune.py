"""Supervised fine-tuning of an expert through TRL, and how far an expert moved from its base.

A finished expert lies beside the recipe that made it (base weights, rows, settings, versions, loss curve); the same
recipe is never trained twice, another recipe replaces the folder.
"""

import json
import math
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from layerswap import checkpoint
from layerswap.paths import UserError, atomic_file, atomic_folder, digest
from layerswap.plan import layer_index

MATRICES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up"}
MATRICES |= {"down_proj": "down"}


class StopAtNan(TrainerCallback):
    """Ends the training with a UserError at the first loss that is no number."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"fine-tuning: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate")


def check_rows(rows, tokenizer, max_length):
    """The rows that fit ``max_length`` tokens. UserError for a row without text, or if none fits."""
    for i, row in enumerate(rows):
        for field in ("prompt", "completion"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"training row {i}: {field} is {row.get(field)!r}, expected text")
    texts = [row["prompt"] + row["completion"] for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids] if rows else []
    fit = [row for row, length in zip(rows, lengths, strict=True) if length < max_length]  # one is left for the end
    if not fit:
        shortest = f", the shortest has {min(lengths)} tokens" if lengths else ""
        raise UserError(f"none of {len(rows)} training rows fits max_length {max_length}{shortest}")
    return fit


def finetune(base, rows, out, *, steps, learning_rate, batch_size, max_length, seed, threads, device="cpu"):
    """Fine-tune ``base`` on ``rows`` ({"prompt", "completion"}) in float32 and return the expert's folder ``out``.

    Loss on completions only (the end token included); AdamW without weight decay, linear decay after a tenth of the
    steps as warm-up; ``batch_size`` rows a step. Deterministic on a CPU at a fixed number of threads. UserError for bad
    rows or settings and for a loss that is no number; then nothing is left behind.
    """
    if steps < 1 or batch_size < 1 or not 0 < learning_rate < 1:
        raise UserError(f"steps {steps}, batch_size {batch_size}, learning_rate {learning_rate}: expected 1 or more, "
                        "1 or more, and a number between 0 and 1")  # fmt: skip
    tokenizer, out = AutoTokenizer.from_pretrained(base), Path(out)
    fit = check_rows(rows, tokenizer, max_length)[: steps * batch_size]
    recipe = {
        "base": checkpoint.digest(base), "rows": digest(fit), "n_rows": len(fit), "steps": steps, "seed": seed,
        "learning_rate": learning_rate, "batch_size": batch_size, "max_length": max_length, "threads": threads,
        "device": device, "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }  # fmt: skip
    if (out / "recipe.json").is_file():
        if json.loads((out / "recipe.json").read_text())["recipe"] == recipe:
            return out
        shutil.rmtree(out)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            scratch, max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=learning_rate, seed=seed,
            lr_scheduler_type="linear", warmup_steps=max(1, steps // 10), weight_decay=0.0, max_length=max_length,
            completion_only_loss=True, gradient_checkpointing=False, bf16=False, use_cpu=device == "cpu",
            save_strategy="no", logging_steps=1, report_to="none", dataloader_pin_memory=device != "cpu",
            disable_tqdm=not sys.stderr.isatty(), eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token,
        )  # fmt: skip
        trainer = SFTTrainer(model, args=settings, train_dataset=Dataset.from_list(fit), processing_class=tokenizer,
                             callbacks=[StopAtNan()])  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with atomic_folder(out) as folder:
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with atomic_file(folder / "recipe.json") as file:
            json.dump({"recipe": recipe, "losses": losses}, file, indent=1)
    return out


def change(base, expert):
    """How far each matrix moved: a frame with columns tensor, layer (-1 outside), matrix, mean_absolute and relative.

    relative is ||expert - base|| / ||base|| (Frobenius norms), computed in float64, one tensor in memory at a time.
    UserError if the two have not the same tensors.
    """
    headers = [checkpoint.read_header(folder) for folder in (base, expert)]
    rows = []
    for name in sorted(
        headers[0].keys() | headers[1].keys(),
        key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)],
    ):
        if any(name not in header for header in headers):
            raise UserError(f"tensor {name} is in only one of {base} and {expert}")
        before, after = (read(header[name].file, name) for header in headers)
        moved = after - before
        part = name.split(".")[-2] if "." in name else name
        layer = layer_index(name)
        rows.append({
            "tensor": name, "layer": -1 if layer is None else layer,
            "matrix": "outside" if layer is None else MATRICES.get(part, "norm"),
            "mean_absolute": moved.abs().mean().item(), "relative": (moved.norm() / before.norm()).item(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def read(file, name):
    """One tensor of a safetensors file as float64."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).double()
