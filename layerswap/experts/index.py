"""The index of a profile's experts (build/<profile>/experts.json): which models it has, and which of them play a role.

The notebook that trains the experts leaves the index; all others read it.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerswap.checkpoints.layers import layer_count
from layerswap.checkpoints.loading import resolve_model
from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.files import BUILD, ROOT, atomic_file, read_json, results_name

NON_LAYER = -1  # stands for embeddings, final norm and head in a list of layers
BASELINES = ("joint", "frozen")  # models that 01_experts trains beside the experts
GROUPS = ("experts", "joint", "frozen")  # fields of an index that hold models: name -> folders, one a seed


@dataclass(frozen=True, kw_only=True)
class ExpertIndex:
    """The models of a profile.

    Attributes:
        source: the benchmark that the experts are for, as ``run.profiles.find_task`` names it.
        seeds: of the experts; folders of a model are in their order.
        note: what the models' provenance.json say of their weights ("dequantised from 4 bit"), or empty;
            ``save_index`` finds it out.
        base: the base model's folder.
        experts: "math" or a language -> folders, one a seed.
        joint: language -> models trained on the rows of both experts, or empty.
        frozen: as ``experts``, each trained with those layers frozen that the other one gives; or empty.
    """

    source: str
    seeds: list[int]
    note: str = ""
    base: Path
    experts: dict[str, list[Path]]
    joint: dict[str, list[Path]] = field(default_factory=dict)
    frozen: dict[str, list[Path]] = field(default_factory=dict)


def save_index(profile: str, index: ExpertIndex) -> None:
    """Write ``build/<profile>/experts.json``: folders (relative to the project) and digests of all models.

    Args:
        profile: its name.
        index: its models; the note is read from their provenance.json files.

    Raises:
        UserError: a model whose weights cannot be read.
    """
    groups = {"base": {"base": [index.base]}} | {group: getattr(index, group) for group in GROUPS}
    provenance = [folder / "provenance.json" for models in groups.values() for folders in models.values()
                  for folder in folders]  # fmt: skip
    notes = [read_json(path).get("note", "") for path in provenance if path.is_file()]

    def describe_models(describe: Callable[[Path], str]) -> dict[str, dict[str, list[str]]]:
        return {
            group: {name: [describe(folder) for folder in folders] for name, folders in models.items()}
            for group, models in groups.items()
        }

    content = {
        "source": index.source,
        "seeds": index.seeds,
        "note": ", ".join(dict.fromkeys(filter(None, notes))),
        "folders": describe_models(lambda folder: os.path.relpath(folder, ROOT)),
        "digests": describe_models(weights_digest),
    }
    with atomic_file(BUILD / results_name(profile) / "experts.json") as file:
        json.dump(content, file, indent=1)


def load_index(profile: str) -> ExpertIndex:
    """The index that 01_experts left in ``build/<profile>/experts.json``.

    Raises:
        UserError: there is no index.
    """
    return read_index(results_name(profile))


def read_index(name: str) -> ExpertIndex:
    """The index in ``build/<name>``, whoever asks: by hand too, as it is only read. UserError as ``load_index``."""
    path = BUILD / name / "experts.json"
    if not path.is_file():
        others = ", ".join(sorted(other.parent.name for other in BUILD.glob("*/experts.json")))
        hint = f" (experts are there of {others})" if others else ""
        raise UserError(f"build/{name}/experts.json is missing: run notebook 01_experts with this profile first{hint}")
    content = read_json(path)
    groups = {
        group: {name: [ROOT / folder for folder in folders] for name, folders in models.items()}
        for group, models in content["folders"].items()
    }
    (base,) = groups.pop("base")["base"]
    return ExpertIndex(source=content["source"], seeds=content["seeds"], note=content["note"], base=base, **groups)


def profile_with_experts(profile: str) -> str:
    """The profile if its experts are there, else the one whose experts were made last; itself if there are none."""
    indexes = sorted(BUILD.glob("*/experts.json"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in indexes]
    return profile if profile in names or not names else names[-1]


def expert_for_role(index: ExpertIndex, role: str, language: str, math_seed: int = 0, language_seed: int = 0) -> Path:
    """The folder of the model that plays a role for a language.

    Args:
        index: the profile's models.
        role: "base", "math", "language", "joint", "frozen math" or "frozen language".
        language: its code. English has no language expert: the math expert stands for it.
        math_seed: place of the math expert's seed in ``index.seeds``.
        language_seed: place of the seed of any other expert.

    Returns:
        The model's folder.

    Raises:
        UserError: a language that 01_experts was not run with, or models that it was not asked to train.
    """
    if role == "base":
        return index.base
    group, name = {"joint": ("joint", language), "frozen math": ("frozen", "math"),
                   "frozen language": ("frozen", language), "math": ("experts", "math"),
                   "language": ("experts", "math" if language == "en" else language)}[role]  # fmt: skip
    models: dict[str, list[Path]] = getattr(index, group)
    if not models:
        raise UserError(f"{role} models were not trained: add {group!r} to `baselines` of 01_experts")
    if name not in models:
        languages = ", ".join(code for code in models if code != "math")
        raise UserError(f"language {name!r} has no expert, expected one of {languages}: add it to the profile")
    return models[name][math_seed if name == "math" else language_seed]


def first_pair(index: ExpertIndex, language: str) -> tuple[Path, Path]:
    """(math expert, language expert) of the first seed."""
    return expert_for_role(index, "math", language), expert_for_role(index, "language", language)


def seed_pairs(index: ExpertIndex, pairs: str) -> list[tuple[int, int]]:
    """The pairs of "MxL": each of the first M math experts with each of the first L language experts.

    Returns:
        (math seed, language seed) as places in ``index.seeds``.

    Raises:
        UserError: fewer seeds than that, or another form.
    """
    n_math, n_language = pair_counts(pairs, index.seeds)
    return [(math_seed, language_seed) for math_seed in range(n_math) for language_seed in range(n_language)]


def count_layers(index: ExpertIndex) -> int:
    """The number of transformer layers of the models."""
    return layer_count(index.base)


def resolve_experts(
    base: Path, math_experts: Sequence[str], language_experts: Sequence[str], languages: Sequence[str],
    seeds: Sequence[int], baselines: Sequence[str] = (),
) -> dict[str, list[Path | None]]:  # fmt: skip
    """The folders of experts that a profile names, and what is left to be fine-tuned.

    Args:
        base: the folder of their base model; adapters are merged into it.
        math_experts: models as ``resolve_model`` takes them, one a seed; or none.
        language_experts: likewise, one a language and seed, language after language; or none.
        languages: codes of the target languages.
        seeds: one expert of each kind a seed.
        baselines: of ``BASELINES``.

    Returns:
        "math" or a language -> folders, one a seed; None where the expert is to be fine-tuned.

    Raises:
        UserError: a name that is no model, or parameters that ``check_experts`` refuses.
    """
    check_experts(math_experts, language_experts, languages, seeds, baselines)
    names = {"math": math_experts}
    for i, language in enumerate(languages):
        names[language] = language_experts[i * len(seeds) :][: len(seeds)]
    folders: dict[str, list[Path | None]] = {}
    for expert, models in names.items():
        folders[expert] = [resolve_model(model, base) for model in models] or [None] * len(seeds)
    return folders


def check_experts(
    math_experts: Sequence[str], language_experts: Sequence[str], languages: Sequence[str], seeds: Sequence[int],
    baselines: Sequence[str],
) -> None:  # fmt: skip
    """Check a profile's experts: baselines that exist, distinct languages and seeds, as many models as these, or none.

    Args: as of ``resolve_experts``.

    Raises:
        UserError: names the parameter.
    """
    if unknown := [baseline for baseline in baselines if baseline not in BASELINES]:
        raise UserError(f"baselines has {unknown[0]!r}, expected of {', '.join(BASELINES)}")
    for name, values in (("languages", languages), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise UserError(f"{name} is {values}, expected one or more, each another")
    for parameter, models, experts in (("math_experts", math_experts, ["math"]),
                                       ("language_experts", language_experts, list(languages))):  # fmt: skip
        if models and len(models) != len(experts) * len(seeds):
            expected = f"one for each of {experts} and of seeds {seeds}, or none"
            raise UserError(f"{parameter} has {len(models)} models, expected {expected}")


def pair_counts(pairs: str, seeds: Sequence[int]) -> tuple[int, int]:
    """(math experts, language experts) of "MxL". UserError unless there are as many seeds."""
    match, n = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", pairs), len(seeds)
    if not match or max(map(int, match.groups())) > n:
        expected = f"numbers of math and of language experts such as {n}x{n}, at most as many as seeds ({seeds})"
        raise UserError(f"pairs is {pairs!r}, expected {expected}")
    return int(match[1]), int(match[2])
