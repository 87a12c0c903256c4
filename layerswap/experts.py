"""What the notebooks share: the index of a profile's experts, and plans scored on the problems they are meant for."""

import json
import os
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer

from layerswap import checkpoint, evaluate, mgsm
from layerswap.generate import nll
from layerswap.paths import BUILD, ROOT, UserError, atomic_file, digest
from layerswap.plan import uniform
from layerswap.provenance import reading_digest
from layerswap.resident import Resident
from layerswap.resident import load as load_model


def save(profile, index):
    """Write ``build/<profile>/experts.json``: folders (relative to the project) and digests of all models.

    ``note`` is what the models' provenance.json say of their weights ("dequantised from 4 bit"), or empty.
    """
    folders = {"base": [index["base"]], "math": index["math"], **index["languages"]}
    papers = [Path(each) / "provenance.json" for made in folders.values() for each in made]
    notes = [checkpoint.read_json(paper).get("note", "") for paper in papers if paper.is_file()]
    content = {
        "source": index["source"],
        "seeds": index["seeds"],
        "note": ", ".join(dict.fromkeys(filter(None, notes))),
        "folders": {name: [os.path.relpath(each, ROOT) for each in made] for name, made in folders.items()},
        "digests": {name: [checkpoint.digest(each) for each in made] for name, made in folders.items()},
    }
    with atomic_file(BUILD / profile / "experts.json") as file:
        json.dump(content, file, indent=1)


def load(profile):
    """The index that 01_experts left: source, seeds, note, base, math and languages (code -> experts).

    math, and each language's experts, are lists of folders, one a seed. UserError without an index.
    """
    path = BUILD / profile / "experts.json"
    if not path.is_file():
        raise UserError(f"build/{profile}/experts.json is missing: run notebook 01_experts with this profile first")
    content = json.loads(path.read_text())
    folders = {name: [ROOT / each for each in made] for name, made in content.pop("folders").items()}
    return content | {"base": folders.pop("base")[0], "math": folders.pop("math"), "languages": folders}


def pair(index, language):
    """(math expert, language expert) of the first seed; English, which has no expert, gets the math expert twice.

    UserError for a language that 01_experts was not run with.
    """
    if language not in index["languages"] and language != "en":
        known = ", ".join(index["languages"])
        raise UserError(f"language {language!r} has no expert, expected one of {known}: add it to the profile")
    return index["math"][0], index["languages"].get(language, index["math"])[0]


def n_layers(index):
    """The number of transformer layers of the models."""
    return checkpoint.layer_count(index["base"])


def problems(index, language, split, n):
    """The first ``n`` problems of a split: the lab's own, or MGSM for experts of real text."""
    return mgsm.load(index["source"], language, split, n)


def score(
    profile, plans, *, languages, split, n_problems, style, exemplars, max_new_tokens,
    device="cpu", dtype="float32", base=False,
):  # fmt: skip
    """Every plan (and the base) on ``n_problems`` of each language: one row a (condition, problem).

    Each language is scored with its own pair of experts; a language without an expert (English) gets the math expert
    on both sides. Answers are kept in ``build/<profile>/answers.jsonl``, keyed by weights, prompt and decoding, so a
    condition that was scored before costs nothing. Columns as in ``evaluate.evaluate``.
    """
    index, frames = load(profile), []
    tokenizer, reading = cache(AutoTokenizer.from_pretrained), cache(reading_digest)
    for code in languages:
        two = Resident(*pair(index, code), device=device, dtype=getattr(torch, dtype))
        conditions = [(each.name, two, each) for each in plans]
        if base:
            alone = Resident(index["base"], index["base"], device=device, dtype=getattr(torch, dtype))
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


def losses(index, rows, device="cpu", dtype="float32"):
    """Loss (nats a token) of the base and of the first seed's expert on its held-out rows (prompt, completion).

    rows: expert ("math" or a language) -> rows. Columns: condition (base, math expert or language expert), language
    (that of the text), id, loss.
    """
    frames = []
    for name, held in rows.items():
        code, role = ("en", "math expert") if name == "math" else (name, "language expert")
        for condition, folder in (("base", index["base"]), (role, pair(index, code)[name != "math"])):
            model = load_model(folder, getattr(torch, dtype)).to(device)
            frames.append(measured(model, AutoTokenizer.from_pretrained(folder), held, condition, code))
    return pd.concat(frames, ignore_index=True)


def solution_losses(profile, plans, *, languages, style, exemplars, device="cpu", dtype="float32", base=False):
    """Loss (nats a token) of every published worked solution of MGSM (the lab: eight training problems).

    Each is given its question after ``exemplars`` (at most seven) of the other solved ones. The measure that speaks
    where no problem is solved. Columns as in ``losses``.
    """
    index, frames = load(profile), []
    style = "native_cot" if style in ("direct", "chat") else style  # those two have no worked solutions
    for code in languages:
        solved = mgsm.exemplars(index["source"], code, 8, style)
        rows = []
        for i, each in enumerate(solved):
            others = [*solved[:i], *solved[i + 1 :]][:exemplars]
            rows.append({"prompt": mgsm.prompt(each, others, style), "completion": f" {each.answer}"})
        two, alone = Resident(*pair(index, code), device=device, dtype=getattr(torch, dtype)), index["base"]
        if base:
            model = load_model(alone, getattr(torch, dtype)).to(device)
            frames.append(measured(model, AutoTokenizer.from_pretrained(alone), rows, "base", code))
        tokenizer = AutoTokenizer.from_pretrained(two.folders["math"])
        frames += [measured(two.apply(each), tokenizer, rows, each.name, code) for each in plans]
    return pd.concat(frames, ignore_index=True)


def measured(model, tokenizer, rows, condition, language):
    """The loss of each row: a frame with columns condition, language, id, loss."""
    result = nll(model, tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows])
    found = [loss.nats / loss.n_tokens for loss in result]
    return pd.DataFrame({"condition": condition, "language": language, "id": range(len(rows)), "loss": found})
