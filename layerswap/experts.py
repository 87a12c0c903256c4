"""What the notebooks share: the index of a profile's experts, and plans scored on the problems they are meant for."""

import json
import os
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from layerswap import checkpoint, evaluate, mgsm, sources
from layerswap.generate import nll
from layerswap.paths import BUILD, ROOT, UserError, atomic_file, digest
from layerswap.provenance import reading_digest
from layerswap.resident import Resident, load_tokenizer
from layerswap.resident import load as load_model

# Conditions whose two sides are not the math and the language expert: what stands for the one, and for the other.
SIDES = {
    "base": ("base", "base"),
    "joint SFT": ("joint", "joint"),
    "freeze in training": ("frozen math", "frozen language"),
    "revert after training": ("math", "base"),
}


def save(profile, index):
    """Write ``build/<profile>/experts.json``: folders (relative to the project) and digests of all models.

    ``note`` is what the models' provenance.json say of their weights ("dequantised from 4 bit"), or empty.
    """
    folders = {"base": {"base": [index["base"]]}, **{kind: index[kind] for kind in ("experts", "joint", "frozen")}}
    made = [each for kind in folders.values() for some in kind.values() for each in some]
    papers = [Path(each) / "provenance.json" for each in made]
    notes = [checkpoint.read_json(paper).get("note", "") for paper in papers if paper.is_file()]

    def told(tell):
        return {kind: {name: list(map(tell, some)) for name, some in named.items()} for kind, named in folders.items()}

    content = {
        "source": index["source"],
        "seeds": index["seeds"],
        "note": ", ".join(dict.fromkeys(filter(None, notes))),
        "folders": told(lambda each: os.path.relpath(each, ROOT)),
        "digests": told(checkpoint.digest),
    }
    with atomic_file(BUILD / profile / "experts.json") as file:
        json.dump(content, file, indent=1)


def load(profile):
    """The index that 01_experts left: source, seeds, note, base (a folder), experts, joint and frozen.

    experts: "math", or a language -> folders, one a seed. frozen: likewise, of experts trained with the layers frozen
    that the other one gives; joint: language -> models trained on both kinds of rows; both may be empty. UserError
    without an index.
    """
    path = BUILD / profile / "experts.json"
    if not path.is_file():
        raise UserError(f"build/{profile}/experts.json is missing: run notebook 01_experts with this profile first")
    content = json.loads(path.read_text())
    found = {
        kind: {name: [ROOT / each for each in some] for name, some in named.items()}
        for kind, named in content.pop("folders").items()
    }
    return content | found | {"base": found["base"]["base"][0]}


def side(index, role, language, math_seed=0, language_seed=0):
    """The folder of a role, as SIDES names it, with the experts of two seeds (their places among the seeds).

    English, which has no language expert, gets the math expert. UserError for a language that 01_experts was not run
    with, and for models that it was not asked to train.
    """
    if role == "base":
        return index["base"]
    kind, name = {"joint": ("joint", language), "frozen math": ("frozen", "math"),
                  "frozen language": ("frozen", language), "math": ("experts", "math"),
                  "language": ("experts", "math" if language == "en" else language)}[role]  # fmt: skip
    if not index[kind]:
        raise UserError(f"{role} models were not trained: add {kind!r} to `baselines` of 01_experts")
    if name not in index[kind]:
        known = ", ".join(each for each in index[kind] if each != "math")
        raise UserError(f"language {name!r} has no expert, expected one of {known}: add it to the profile")
    return index[kind][name][math_seed if name == "math" else language_seed]


def pair(index, language):
    """(math expert, language expert) of the first seed."""
    return side(index, "math", language), side(index, "language", language)


def seed_pairs(index, pairs):
    """The pairs of experts that "MxL" means: every of the first M math experts with every of the first L language
    experts, as places among the seeds. UserError if there are not so many."""
    first, second = sources.pair_counts(pairs, index["seeds"])
    return [(m, s) for m in range(first) for s in range(second)]


def n_layers(index):
    """The number of transformer layers of the models."""
    return checkpoint.layer_count(index["base"])


def problems(index, language, split, n):
    """The first ``n`` problems of a split: the lab's own, or MGSM for experts of real text."""
    return mgsm.load(index["source"], language, split, n)


def check_disjoint(index, languages, n_validation, split, n_problems):
    """UserError if one of the first ``n_validation`` validation problems is among the first ``n_problems`` of a split,
    or if there are not so many."""
    for code in languages:
        test = {each.question for each in problems(index, code, split, n_problems)}
        validation = problems(index, code, "validation", n_validation)
        if len(validation) < n_validation:
            raise UserError(f"n_validation is {n_validation}, but {code} has {len(validation)} validation problems")
        if shared := [p for p in validation if p.question in test]:
            raise UserError(f"{len(shared)} of {n_validation} validation problems in {code} are also tested, such as"
                            f" {shared[0].id}: lower n_problems ({n_problems}) or n_validation")  # fmt: skip


def residents(index, plans, language, m, s, device, dtype):
    """Yield (models in memory, the plans that are for them): for the math and the language expert first, then for each
    other pair of SIDES. One at a time, so that no more than two models and what is mixed of them are held."""
    sides = {}
    for each in plans:
        sides.setdefault(SIDES.get(each.name, ("math", "language")), []).append(each)
    for roles, some in sides.items():
        base = index["base"] if any("base" in each.roles for each in some) else None
        folders = (side(index, role, language, m, s) for role in roles)
        yield Resident(*folders, base, device=device, dtype=getattr(torch, dtype)), some


def score(
    profile, plans, *, languages, split, n_problems, style, exemplars, max_new_tokens,
    device="cpu", dtype="float32", pairs="1x1",
):  # fmt: skip
    """Every plan on ``n_problems`` of each language with each pair of experts, one row an answer.

    A plan is applied to the language's math and language expert, or to what SIDES has for its name. pairs: as in
    ``seed_pairs``. Answers are kept in ``build/<profile>/answers.jsonl``, keyed by weights, prompt and decoding, so a
    condition that was scored before costs nothing. Columns as in ``evaluate.evaluate``, and math_seed, language_seed.
    """
    index, store = load(profile), evaluate.Store(BUILD / profile / "answers.jsonl")
    tokenizer, reading = cache(load_tokenizer), cache(reading_digest)
    asked = {code: problems(index, code, split, n_problems) for code in languages}
    shots = {code: mgsm.exemplars(index["source"], code, exemplars, style) for code in languages}
    frames = []
    for code in languages:
        for m, s in seed_pairs(index, pairs):
            for two, some in residents(index, plans, code, m, s, device, dtype):
                folder = two.folders["math"]
                conditions = [
                    (
                        each.name,
                        digest([two.key(each), reading(folder)]),
                        lambda two=two, each=each, folder=folder: (two.apply(each), tokenizer(folder)),
                    )
                    for each in some
                ]
                made = evaluate.evaluate(
                    conditions, asked[code], shots[code], store, style=style, max_new_tokens=max_new_tokens
                )
                frames.append(made.assign(math_seed=index["seeds"][m], language_seed=index["seeds"][s]))
    return in_order(frames, plans)


def in_order(frames, plans):
    """The frames as one, its rows in the order of the plans, then as they came."""
    rank = {each.name: i for i, each in enumerate(plans)}
    whole = pd.concat(frames, ignore_index=True)
    return whole.sort_values("condition", key=lambda names: names.map(rank), kind="stable", ignore_index=True)


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
            frames.append(measured(model, load_tokenizer(folder), held, condition, code))
    return pd.concat(frames, ignore_index=True)


def solution_losses(profile, plans, *, languages, style, exemplars, device="cpu", dtype="float32"):
    """Loss (nats a token) of every published worked solution of MGSM (the lab: eight training problems).

    Each is given its question after ``exemplars`` (at most seven) of the other solved ones, with the first pair of
    experts. The measure that speaks where no problem is solved. Columns as in ``losses``.
    """
    index, frames = load(profile), []
    style = "native_cot" if style in ("direct", "chat") else style  # those two have no worked solutions
    for code in languages:
        solved = mgsm.exemplars(index["source"], code, 8, style)
        rows = []
        for i, each in enumerate(solved):
            others = [*solved[:i], *solved[i + 1 :]][:exemplars]
            rows.append({"prompt": mgsm.prompt(each, others, style), "completion": f" {each.answer}"})
        for two, some in residents(index, plans, code, 0, 0, device, dtype):
            tokenizer = load_tokenizer(two.folders["math"])
            frames += [measured(two.apply(each), tokenizer, rows, each.name, code) for each in some]
    return in_order(frames, plans)


def measured(model, tokenizer, rows, condition, language):
    """The loss of each row: a frame with columns condition, language, id, loss."""
    result = nll(model, tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows])
    found = [loss.nats / loss.n_tokens for loss in result]
    return pd.DataFrame({"condition": condition, "language": language, "id": range(len(rows)), "loss": found})
