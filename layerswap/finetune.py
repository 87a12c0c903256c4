"""Supervised fine-tuning of an expert through TRL, and how far an expert moved from its base.

A finished expert lies beside the recipe that made it (base weights, rows, settings, versions) and its loss curve. The
same recipe is never trained twice; another recipe replaces the folder.
"""

import json
import math
import random
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from safetensors import safe_open
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from layerswap import checkpoint
from layerswap.paths import UserError, atomic_file, atomic_folder, digest, file_digest
from layerswap.plan import layer_index

IGNORED = -100  # the label of a token without loss
STRETCH = 8  # steps among whose rows those of similar length are put together
BLOCK = 1 << 20  # numbers of a tensor compared at once
MATRICES = ["q", "k", "v", "o", "gate", "up", "down", "norm", "outside"]


def encode(rows, tokenizer, max_length):
    """The rows that fit ``max_length`` tokens, as {"input_ids", "labels"}: prompt, completion, end of text.

    Prompt and completion are tokenized apart, as they are when an answer is generated or scored. Labels are IGNORED
    over the prompt. UserError for a row without text, or if no row fits.
    """
    for i, row in enumerate(rows):
        for field in ("prompt", "completion"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"training row {i}: {field} is {row.get(field)!r}, expected text")
    if not rows:
        raise UserError("there are no training rows")
    heads = tokenizer([row["prompt"] for row in rows]).input_ids
    tails = tokenizer([row["completion"] for row in rows], add_special_tokens=False).input_ids
    ends = [[*tail, tokenizer.eos_token_id] for tail in tails]
    encoded = [{"input_ids": h + e, "labels": [IGNORED] * len(h) + e} for h, e in zip(heads, ends, strict=True)]
    fit = [row for row in encoded if len(row["input_ids"]) <= max_length]
    if not fit:
        shortest = min(len(row["input_ids"]) for row in encoded)
        raise UserError(f"none of {len(rows)} training rows fits max_length {max_length}: the shortest has {shortest}")
    return fit


def batches(lengths, batch_size, steps, seed):
    """The rows of each step, as lists of ``batch_size`` indices; every pass over the rows is shuffled anew.

    Rows of similar length share a step, so that little of it is padding.
    """
    rng, groups = random.Random(seed), []
    while len(groups) < steps:
        order, one_pass = rng.sample(range(len(lengths)), len(lengths)), []
        for start in range(0, len(order), STRETCH * batch_size):
            part = sorted(order[start : start + STRETCH * batch_size], key=lengths.__getitem__)
            one_pass += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        groups += rng.sample(one_pass, len(one_pass))
    return groups[:steps]


class StopAtNan(TrainerCallback):
    """Ends the training with a UserError at the first loss or gradient that is no number."""

    def on_log(self, args, state, control, logs, **kwargs):
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                hint = "lower the learning rate, or look for bad numbers in the base"
                raise UserError(f"fine-tuning: {name} is {logs[name]} at step {state.global_step}; {hint}")


class Trainer(SFTTrainer):
    """TRL's trainer on given steps (``groups``: lists of row indices), with a bar where there is a terminal."""

    groups = ()

    def get_train_dataloader(self):
        groups = tqdm(self.groups, "fine-tuning", unit="step", disable=None)
        return DataLoader(self.train_dataset, batch_sampler=groups, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean loss of the completions' tokens. TRL's own head scores prompts and padding too, at twice the time."""
        labels = inputs.pop("labels")[:, 1:]  # [rows, length - 1]
        scored = (labels != IGNORED).any(0).nonzero()[:, 0]  # positions before some completion's token
        logits = model(**inputs, use_cache=False, logits_to_keep=scored).logits.float()  # [rows, scored, vocabulary]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, scored].flatten(), ignore_index=IGNORED)


def finetune(
    base, rows, out, *, steps, learning_rate, batch_size, max_length, seed, threads, device="cpu", dtype="float32"
):
    """Fine-tune ``base`` on ``rows`` ({"prompt", "completion"}) and return the expert's folder ``out``.

    Loss on completions and their end of text only, the mean over a step's ``batch_size`` rows' tokens; AdamW without
    weight decay, gradients clipped to norm 1, linear decay after a tenth of the steps as warm-up. Rows longer than
    ``max_length`` tokens are left out; rows are repeated if ``steps`` need more of them. Weights are trained and saved
    in float32, whatever the base has: a light fine-tune moves many weights by less than a bfloat16 step. ``dtype``
    "bfloat16" lowers the arithmetic alone (autocast), for twice the speed on most machines.
    Deterministic on a CPU at a fixed number of threads. UserError for bad rows or settings and for a loss that is no
    number; then no new expert is left, and one that was there stays.
    """
    if steps < 1 or batch_size < 1 or max_length < 2 or not 0 < learning_rate < 1:
        found = f"steps {steps}, batch_size {batch_size}, max_length {max_length}, learning_rate {learning_rate}"
        raise UserError(f"{found}: expected steps and batch_size >= 1, max_length >= 2, 0 < learning_rate < 1")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}, expected float32 or bfloat16")
    tokenizer, out = AutoTokenizer.from_pretrained(base), Path(out)
    encoded = encode(rows, tokenizer, max_length)
    recipe = {
        "base": checkpoint.digest(base), "rows": digest(encoded), "n_rows": len(encoded), "steps": steps,
        "learning_rate": learning_rate, "batch_size": batch_size, "max_length": max_length, "seed": seed,
        "threads": threads, "device": device, "dtype": dtype, "code": file_digest(__file__),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }  # fmt: skip
    if (out / "recipe.json").is_file():
        if json.loads((out / "recipe.json").read_text())["recipe"] == recipe:
            return out
    elif out.exists():
        raise UserError(f"{out}: exists and holds no recipe.json, so it was not made by fine-tuning; remove it first")
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    use_cache = model.config.use_cache
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            scratch, max_steps=steps, learning_rate=learning_rate, lr_scheduler_type="linear", seed=seed,
            warmup_steps=steps // 10, weight_decay=0.0, max_length=None, activation_checkpointing=False,
            bf16=dtype == "bfloat16", use_cpu=device == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
            logging_steps=1, logging_nan_inf_filter=False, pad_to_multiple_of=None,
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=Dataset.from_list(encoded), processing_class=tokenizer,
                          callbacks=[StopAtNan()])  # fmt: skip
        trainer.groups = batches([len(row["input_ids"]) for row in encoded], batch_size, steps, seed)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model.config.use_cache = use_cache  # the trainer switches it off
    shutil.rmtree(out, ignore_errors=True)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with atomic_file(folder / "recipe.json") as file:
            json.dump({"recipe": recipe, "losses": losses}, file, indent=1)
    return out


def change(base, expert):
    """How far an expert moved: a frame with columns layer, matrix, mean_absolute and relative.

    matrix: q, k, v, o, gate, up, down, norm (all norms of a layer), or outside (embeddings, final norm, head; layer
    -1). relative is ||expert - base|| / ||base|| (Frobenius norms). Sums in float64 over blocks of the two files: the
    models are never loaded. UserError if the two have not the same tensors and shapes.
    """
    before, after, rows = checkpoint.read_header(base), checkpoint.read_header(expert), []
    for name in sorted(before.keys() | after.keys()):
        shapes = [header[name].shape if name in header else None for header in (before, after)]
        if shapes[0] != shapes[1]:
            raise UserError(f"tensor {name}: shape {shapes[0]} in {base}, {shapes[1]} in {expert}; expected the same")
        layer, words = layer_index(name), name.replace("_proj", "").split(".")
        matrix = "outside" if layer is None else next((m for m in MATRICES if m in words), "norm")
        sums = torch.zeros(4, dtype=torch.float64)
        for old, new in zip(blocks(before[name].file, name), blocks(after[name].file, name), strict=True):
            moved = new - old
            sums += torch.tensor([old.numel(), moved.abs().sum(), moved.square().sum(), old.square().sum()])
        rows.append((-1 if layer is None else layer, matrix, *sums.tolist()))
    frame = pd.DataFrame(rows, columns=["layer", "matrix", "n", "absolute", "moved", "norm"])
    frame["matrix"] = pd.Categorical(frame.matrix, MATRICES)  # so that rows come in this order
    frame = frame.groupby(["layer", "matrix"], observed=True).sum().reset_index()
    frame["mean_absolute"], frame["relative"] = frame.absolute / frame.n, (frame.moved / frame.norm) ** 0.5
    return frame[["layer", "matrix", "mean_absolute", "relative"]].astype({"matrix": str})


def blocks(file, name):
    """A tensor of a safetensors file as float64 blocks of rows, each of about BLOCK numbers."""
    with safe_open(file, framework="pt") as opened:
        tensor = opened.get_slice(name)
        rows = max(1, BLOCK // math.prod(tensor.get_shape()[1:]))
        for start in range(0, tensor.get_shape()[0], rows):
            yield tensor[start : start + rows].double()
