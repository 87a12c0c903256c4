"""What the notebooks share: the index of a profile's experts, and plans scored on the problems they are meant for."""

import json
import os
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import checkpoint, evaluate, mgsm
from layerswap.generate import nll
from layerswap.paths import BUILD, ROOT, UserError, atomic_file, digest
from layerswap.plan import uniform
from layerswap.provenance import reading_digest
from layerswap.resident import Resident


def save(profile, index):
    """Write ``build/<profile>/experts.json``: folders (relative to the project) and weight digests of all models.

    ``note`` is what the base's provenance.json says of its weights ("dequantised from 4 bit"), or empty.
    """
    provenance = Path(index["base"]) / "provenance.json"
    folders = {"base": index["base"], "math": index["math"], **index["languages"]}
    content = {
        "source": index["source"],
        "seed": index["seed"],
        "note": checkpoint.read_json(provenance).get("note", "") if provenance.is_file() else "",
        "folders": {name: os.path.relpath(folder, ROOT) for name, folder in folders.items()},
        "digests": {name: checkpoint.digest(folder) for name, folder in folders.items()},
    }
    with atomic_file(BUILD / profile / "experts.json") as file:
        json.dump(content, file, indent=1)


def load(profile):
    """The index that 01_experts left: source, seed, note, base, math, languages (code -> folder).

    UserError without one.
    """
    path = BUILD / profile / "experts.json"
    if not path.is_file():
        raise UserError(f"build/{profile}/experts.json is missing: run notebook 01_experts with this profile first")
    content = json.loads(path.read_text())
    folders = {name: ROOT / folder for name, folder in content.pop("folders").items()}
    return content | {"base": folders.pop("base"), "math": folders.pop("math"), "languages": folders}


def n_layers(index):
    """The number of transformer layers of the models."""
    return checkpoint.layer_count(index["math"])


def problems(index, language, split, n):
    """The first ``n`` problems of a split: the lab's own, or MGSM for experts of real text."""
    return mgsm.load(index["source"], language, split, n)


def score(profile, plans, *, languages, split, n_problems, style, exemplars, max_new_tokens, device="cpu", base=False):
    """Every plan (and the base) on ``n_problems`` of each language: one row a (condition, problem).

    Each language is scored with its own pair of experts; a language without an expert (English) gets the math expert
    on both sides. Answers are kept in ``build/<profile>/answers.jsonl``, keyed by weights, prompt and decoding, so a
    condition that was scored before costs nothing. Columns as in ``evaluate.evaluate``.
    """
    index, frames = load(profile), []
    tokenizer, reading = cache(AutoTokenizer.from_pretrained), cache(reading_digest)
    for code in languages:
        pair = Resident(index["math"], index["languages"].get(code, index["math"]), device=device)
        conditions = [(each.name, pair, each) for each in plans]
        if base:
            alone = Resident(index["base"], index["base"], device=device)
            conditions.insert(0, ("base", alone, uniform(alone.n_layers, 0.0, "base")))
        frames.append(
            evaluate.evaluate(
                [
                    (
                        name,
                        digest([two.key(each), reading(two.folders["math"])]),
                        lambda two=two, each=each: (two.apply(each), tokenizer(two.folders["math"])),
                    )
                    for name, two, each in conditions
                ],
                problems(index, code, split, n_problems),
                mgsm.exemplars(index["source"], code, exemplars, style),
                BUILD / profile / "answers.jsonl",
                style=style,
                max_new_tokens=max_new_tokens,
            )
        )
    return pd.concat(frames, ignore_index=True)


def losses(index, rows_by_language, device="cpu"):
    """Loss (nats a token) of base and language expert on each row (prompt, completion) of a language's text.

    Columns: condition, language, id, loss.
    """
    frames = []
    for code, rows in rows_by_language.items():
        for condition, folder in (("base", index["base"]), ("language expert", index["languages"][code])):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder)
            result = nll(model, tokenizer, [r["prompt"] for r in rows], [r["completion"] for r in rows])
            frames.append(pd.DataFrame({
                "condition": condition, "language": code, "id": range(len(rows)),
                "loss": [loss.nats / loss.n_tokens for loss in result],
            }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)
