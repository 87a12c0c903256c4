"""What the lab's base and experts must be able to do before any of their layers is swapped: a table of criteria.

    python benchmarks/lab_criteria.py --seeds 11 --n 150                      # while a recipe is chosen
    python benchmarks/lab_criteria.py --seeds 1 2 3 --n 300 --split test      # once it is frozen

Experts are those of params/lab.yml (``fine_tuning``); they are trained on the base and kept below build/criteria.
Nothing here merges two experts, so that a recipe can be chosen by it without a look at what swapping does. The table
has a row a criterion, language and seed: value with its 95 % interval, n, and whether the criterion is met. It is
written as csv and as Markdown.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from statsmodels.stats.proportion import proportion_confint

from layerswap.analysis.statistics import contrast
from layerswap.checkpoints.loading import load_model, load_tokenizer
from layerswap.checkpoints.safetensors import weights_digest
from layerswap.evaluation.engine import nll
from layerswap.evaluation.scoring import ScoredModel, evaluate
from layerswap.experts.index import ExpertIndex
from layerswap.experts.jobs import plan_jobs, train_experts
from layerswap.experts.weight_change import weight_change
from layerswap.files import ROOT, file_digest, json_digest
from layerswap.lab.task import LabTask, render_question
from layerswap.lab.text import text_rows
from layerswap.lab.world import BASE, BASE_KINDS, MATH_KINDS, load_language, make_problems, unknown_words
from layerswap.run.profiles import Project, load_profile
from layerswap.tasks.base import Problem, is_held_out

TASK = LabTask()
MAX_NEW_TOKENS = 100
Row = dict[str, Any]


def answers(folder: Path, problems: Sequence[Problem], condition: str) -> pd.DataFrame:
    """A model's scored answers."""

    def load() -> Any:
        return load_model(folder, torch.float32), load_tokenizer(folder)

    model = ScoredModel(condition, weights_digest(folder), load)
    cache = CACHE / f"answers-{len(problems)}.jsonl"
    frame = evaluate([model], TASK, problems, [], cache, style="lab", max_new_tokens=MAX_NEW_TOKENS)
    return frame.assign(math_seed=0, language_seed=0)


def proportion(criterion: str, language: str, seed: int | str, frame: pd.DataFrame, column: str = "correct") -> Row:
    """A proportion of answers with Wilson's interval."""
    k, n = int(frame[column].sum()), len(frame)
    low, high = proportion_confint(k, n, method="wilson") if n else (0.0, 1.0)
    return {"criterion": criterion, "language": language, "seed": seed, "value": k / max(n, 1), "low": low,
            "high": high, "n": n}  # fmt: skip


def difference(criterion: str, language: str, seed: int, model: pd.DataFrame, reference: pd.DataFrame,
               column: str = "correct") -> Row:  # fmt: skip
    """A model's mean minus that of another one on the same rows, paired."""
    names = [frame.condition.iloc[0] for frame in (model, reference)]
    table = contrast(pd.concat([model, reference]), criterion, {names[0]: 1, names[1]: -1}, column, pooled=False)
    row = table.iloc[0]
    return {"criterion": criterion, "language": language, "seed": seed, "value": row.difference, "low": row.low,
            "high": row.high, "n": int(row.n)}  # fmt: skip


def losses(model: torch.nn.Module, folder: Path, rows: Sequence[dict[str, str]], condition: str,
           language: str) -> pd.DataFrame:  # fmt: skip
    """A model's loss of each row, nats a token."""
    nats = nll(model, load_tokenizer(folder), [r["prompt"] for r in rows], [r["completion"] for r in rows])
    values = [loss.nats / loss.n_tokens for loss in nats]
    return pd.DataFrame({"condition": condition, "language": language, "id": range(len(rows)), "loss": values,
                         "math_seed": 0, "language_seed": 0})  # fmt: skip


def has_new_verb(problem: Problem) -> bool:
    """Whether the question has a verb that the base never met."""
    verbs = {str(verb) for verb in load_language(problem.language)["verb"].values()}
    return any(f" {verb} " in problem.question for verb in verbs & unknown_words(problem.language))


def of_base(base: Path, languages: Sequence[str], split: str, n: int) -> Iterator[Row]:
    """(b) what the base solves of the tested kinds, and of those it has met; (g) the likeness of words it never met."""
    for language in ["en", *languages]:
        frame = answers(base, make_problems(language, split, n), "base")
        row = proportion("b math kinds, base", language, "-", frame)
        yield row | {"met": row["value"] <= 0.5}
        yield proportion("  whole solution, base", language, "-", frame, "whole_solution") | {"met": True}
        met = answers(base, make_problems(language, split, n, kinds=BASE_KINDS), "base")
        yield proportion("b met kinds, base", language, "-", met) | {"met": True}
    model, tokenizer = load_model(base, torch.float32), load_tokenizer(base)
    embeddings = model.get_input_embeddings().weight.detach()  # [vocabulary, hidden]
    for language in languages:
        data = load_language(language)
        for is_new in (True, False):
            words = [str(entry) for category in ("objects", "gain", "lose") for concept, entry in data[category].items()
                     if is_new == (concept in data["held_out"][category])]  # fmt: skip
            vectors = torch.stack([embeddings[tokenizer(word).input_ids].mean(0) for word in words])
            unit = vectors / vectors.norm(dim=1, keepdim=True)
            cosines = (unit @ unit.T)[torch.triu(torch.ones(len(words), len(words)), 1).bool()]
            name = "g largest cosine of two words, " + ("never met" if is_new else "known")
            yield {"criterion": name, "language": language, "seed": "-", "value": cosines.max().item(),
                   "n": len(words), "met": not is_new or cosines.max().item() <= 0.9}  # fmt: skip


def of_math_expert(index: ExpertIndex, at: int, languages: Sequence[str], split: str, n: int) -> Iterator[Row]:
    """(c) what English mathematics SFT lifts, and whether solutions are in the language asked."""
    seed, folder = index.seeds[at], index.experts["math"][at]
    for language in ["en", *languages]:
        problems = make_problems(language, split, n)
        math, base = answers(folder, problems, "math expert"), answers(index.base, problems, "base")
        row = difference("c math kinds, math expert - base", language, seed, math, base)
        yield row | {"met": row["value"] >= (0.3 if language == "en" else 0.1)}
        row = proportion("c math kinds, math expert", language, seed, math)
        yield row | {"met": language == "en" or row["value"] <= 0.75}
        yield proportion("  whole solution, math expert", language, seed, math, "whole_solution") | {"met": True}
        row = proportion(
            "  language asked, math expert", language, seed, math.assign(asked=~math.wrong_language), "asked"
        )
        yield row | {"met": language != "en" or row["value"] >= 0.98}


def of_language_expert(index: ExpertIndex, at: int, language: str, split: str, n: int) -> Iterator[Row]:
    """(d) what language SFT brings and keeps; (e) whether it can be learned beside mathematics."""
    seed, folder = index.seeds[at], index.experts[language][at]
    held_out = [row for row in text_rows(language, 20 * n, 77) if is_held_out(row["prompt"] + row["completion"])][:n]
    expert, base = load_model(folder, torch.float32), load_model(index.base, torch.float32)
    row = difference("d text loss, expert - base", language, seed,
                     losses(expert, folder, held_out, "language expert", language),
                     losses(base, index.base, held_out, "base", language), "loss")  # fmt: skip
    yield row | {"met": row["high"] < 0}
    changes = [p for p in make_problems(language, split, 3 * n, kinds=("gain", "lose")) if has_new_verb(p)][:n]
    frames = [answers(index.base, changes, "base"), answers(folder, changes, "language expert")]
    row = proportion("d new verb, expert", language, seed, frames[1])
    yield row | {"met": row["low"] > 0.5}
    row = difference("d new verb, expert - base", language, seed, frames[1], frames[0])
    yield row | {"met": row["low"] > 0}
    for kinds, name in ((BASE_KINDS, "met kinds"), (MATH_KINDS, "math kinds")):
        problems = make_problems(language, split, n, kinds=kinds)
        frames = [answers(index.base, problems, "base"), answers(folder, problems, "language expert")]
        row = difference(f"d {name}, expert - base", language, seed, frames[1], frames[0])
        yield row | {"met": row["value"] >= -0.1}
    if language in index.joint:
        joint = answers(index.joint[language][at], problems, "joint SFT")
        math = answers(index.experts["math"][at], problems, "math expert")
        row = difference("e math kinds, joint SFT - math expert", language, seed, joint, math)
        yield row | {"met": row["value"] >= 0}


def of_distance(index: ExpertIndex, at: int, name: str, n: int) -> Iterator[Row]:
    """(f) how far an expert is from the base, and whether the loss of its own text falls all along the line to it."""
    seed, folder, language = index.seeds[at], index.experts[name][at], "en" if name == "math" else name
    change = weight_change(index.base, folder)
    largest = change[change.layer >= 0].relative.max()
    yield {"criterion": "f largest relative change", "language": language, "seed": seed, "value": largest,
           "n": len(change), "met": largest <= 0.12}  # fmt: skip
    if name == "math":
        rows = [
            {"prompt": render_question(p), "completion": f" {p.answer}"} for p in make_problems("en", "validation", n)
        ]
    else:
        rows = [row for row in text_rows(name, 20 * n, 77) if is_held_out(row["prompt"] + row["completion"])][:n]
    base, expert = load_model(index.base, torch.float32), load_model(folder, torch.float32)
    means = []
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        mixed = {key: torch.lerp(value, expert.state_dict()[key], t) for key, value in base.state_dict().items()}
        model = load_model(index.base, torch.float32)
        model.load_state_dict(mixed)
        means.append(losses(model, index.base, rows, "mixed", language).loss.mean())
    rise = max(means[i + 1] - means[i] for i in range(4))  # nats a token; above 0 the loss rises on the way
    yield {"criterion": "f largest rise of its loss from the base", "language": language, "seed": seed,
           "value": rise, "n": n, "met": rise <= 0}  # fmt: skip


def recipe_digest(base: Path, fine_tuning: dict[str, Any]) -> str:
    """Digest of all that experts are made from: the base's weights, the lab's code and languages, ``fine_tuning``."""
    lab = ROOT / "layerswap" / "lab"
    digests = {file.name: file_digest(file) for file in [*lab.glob("*.py"), *lab.glob("data/*.yml")]}
    return json_digest([weights_digest(base), digests, fine_tuning])


def card(table: pd.DataFrame, digest: str) -> str:
    """The table as Markdown: a row for each criterion and seed, a column for each language; what is missed is bold."""
    languages = list(dict.fromkeys(table.language))
    lines = [f"Recipe {digest}.\n"]
    lines += ["| criterion | seed | " + " | ".join(languages) + " |", "| --- | --- |" + " --- |" * len(languages)]
    for (criterion, seed), rows in table.groupby(["criterion", "seed"], sort=False):
        cells = {row.language: card_cell(row) for row in rows.itertuples()}
        lines.append(f"| {criterion} | {seed} | " + " | ".join(cells.get(code, "") for code in languages) + " |")
    return "\n".join(lines) + "\n"


def card_cell(row: Any) -> str:
    """A value with its interval and n; shares and their differences in per cent."""
    factor, digits = (1, 3) if row.criterion[0] in "fg" or "loss" in row.criterion else (100, 0)
    text = f"{factor * row.value:.{digits}f}"
    if pd.notna(row.low):
        text += f" ({factor * row.low:.{digits}f} to {factor * row.high:.{digits}f}; n {row.n})"
    return text if row.met else f"**{text}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--languages", nargs="+", default=["sw", "te", "bn", "ja"])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-joint", action="store_true", help="leave out criterion (e)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of fine_tuning, to try another one")
    parser.add_argument("--recipe", action="store_true", help="print the recipe's digest alone")
    parser.add_argument("--out", type=Path, default=Path("build/criteria/table.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fine_tuning = load_profile(Project(), "lab")["01_experts"]["fine_tuning"]
    fine_tuning |= {key: type(fine_tuning[key])(value) for key, value in (pair.split("=") for pair in arguments.set)}
    digest = recipe_digest(arguments.base, fine_tuning)
    print(f"recipe {digest}", flush=True)
    if arguments.recipe:
        return
    seeds, languages, n, split = arguments.seeds, arguments.languages, arguments.n, arguments.split
    resolved = {name: [None] * len(seeds) for name in ("math", *languages)}
    jobs = plan_jobs(TASK, resolved, seeds, fine_tuning, baselines=[] if arguments.no_joint else ["joint"])
    index = train_experts(jobs, resolved, profile="criteria", source="lab", base=arguments.base, seeds=seeds,
                          fine_tuning=fine_tuning, threads=arguments.threads)  # fmt: skip
    rows: list[Row] = []

    def add(new_rows: Iterator[Row]) -> None:
        for row in new_rows:
            rows.append(row)
            interval = f" ({row['low']:+.3f}, {row['high']:+.3f})" if "low" in row else ""
            missed = "" if row["met"] else "   MISSED"
            print(f"{row['criterion']:44} {row['language']} seed {row['seed']}: {row['value']:+.3f}{interval}"
                  f" n {row['n']}{missed}", flush=True)  # fmt: skip

    add(of_base(arguments.base, languages, split, n))
    for at in range(len(seeds)):
        add(of_math_expert(index, at, languages, split, n))
        for name in ("math", *languages):
            add(of_distance(index, at, name, min(n, 100)))
        for language in languages:
            add(of_language_expert(index, at, language, split, n))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out, index=False)
    arguments.out.with_suffix(".md").write_text(card(table, digest), encoding="utf-8")


CACHE = Path("build/criteria")
if __name__ == "__main__":
    main()
