"""What a profile has to fine-tune, and the run of it: experts, and the baselines that are trained beside them.

``fine_tuning`` is one dict of settings: math_data and language_data (data sets, as ``training_rows`` takes them),
math_samples and language_samples (rows; 0: as many as the steps take), math_steps, math_learning_rate,
language_steps, language_learning_rate, frozen_embeddings (whether embeddings, final norm and head keep the base's
weights), launch (a file below the project), and what is passed on to ``finetune``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from layerswap.checkpoints.loading import resolve_model, unify_dtypes
from layerswap.errors import UserError
from layerswap.experts.index import NON_LAYER, ExpertIndex
from layerswap.experts.training_data import Row, training_rows
from layerswap.files import BUILD, ROOT, results_name
from layerswap.tasks.base import Task
from layerswap.workers import Cell, Workers, make_pool, run_cells

# To ``finetune``, under the same name.
PASSED_ON = ("batch_size", "max_length", "micro_batch", "packing", "lora_rank", "lora_alpha", "softmax", "dtype")


@dataclass(frozen=True)
class TrainingJob:
    """One model to fine-tune.

    Attributes:
        group: the field of ``ExpertIndex`` that the model belongs to: "experts", "frozen" or "joint".
        name: "math" or a language.
        seed: of its rows, their order and LoRA's first matrices.
        rows: {"prompt", "completion"}.
        frozen: layers that are not trained.
        label: the name of its folder.
        steps: optimiser steps.
        learning_rate: its peak.
    """

    group: str
    name: str
    seed: int
    rows: list[Row]
    frozen: list[int]
    label: str
    steps: int
    learning_rate: float

    def __str__(self) -> str:
        frozen = f", layers {self.frozen} frozen" if self.frozen else ""
        return f"{self.group:8}{self.name:5} seed {self.seed}: {len(self.rows):7,} rows{frozen}"


def plan_jobs(
    task: Task, resolved: Mapping[str, Sequence[Path | None]], seeds: Sequence[int], fine_tuning: Mapping[str, Any],
    *, baselines: Sequence[str] = (), frozen_for_math: Sequence[int] = (), frozen_for_language: Sequence[int] = (),
) -> list[TrainingJob]:  # fmt: skip
    """What is to be fine-tuned. All training text is read here, so that nothing is found missing after a training.

    Args:
        task: the benchmark that the experts are for.
        resolved: "math" or a language -> folders, one a seed, None where an expert is to be trained
            (``resolve_experts``).
        seeds: in the order of those folders.
        fine_tuning: the settings.
        baselines: "frozen" for experts with frozen layers; "joint" for one model a language and seed on the rows of
            both experts, for as many steps as both together, at the language expert's learning rate.
        frozen_for_math: layers that a math expert of the baseline "frozen" keeps from the base.
        frozen_for_language: likewise of a language expert.

    Returns:
        Experts first, then the frozen ones, then the joint ones.

    Raises:
        UserError: training text that is missing or malformed.
    """

    @cache
    def rows_of(name: str, seed: int) -> list[Row]:
        subject = subject_of(name)
        n = fine_tuning[f"{subject}_samples"] or fine_tuning[f"{subject}_steps"] * fine_tuning["batch_size"]
        return training_rows(fine_tuning[f"{subject}_data"], task, name, n, seed)

    def make_job(group: str, name: str, seed: int, frozen: Sequence[int] = ()) -> TrainingJob:
        subject = subject_of(name)
        rows, steps = rows_of(name, seed), fine_tuning[f"{subject}_steps"]
        if group == "joint":
            rows, steps = rows_of("math", seed) + rows, fine_tuning["math_steps"] + steps
        label = f"{name}-{seed}" if group == "experts" else f"{group}-{name}-{seed}"
        learning_rate = fine_tuning[f"{subject}_learning_rate"]
        all_frozen = sorted({*frozen, *[NON_LAYER] * fine_tuning["frozen_embeddings"]})
        return TrainingJob(group, name, seed, rows, all_frozen, label, steps, learning_rate)

    missing = [(name, seed) for name, folders in resolved.items()
               for seed, folder in zip(seeds, folders, strict=True) if folder is None]  # fmt: skip
    jobs = [make_job("experts", name, seed) for name, seed in missing]
    if "frozen" in baselines:
        jobs += [
            make_job("frozen", name, seed, frozen_for_math if name == "math" else frozen_for_language)
            for name in resolved
            for seed in seeds
        ]
    if "joint" in baselines:
        jobs += [make_job("joint", name, seed) for name in resolved if name != "math" for seed in seeds]
    return jobs


def held_out_rows(
    task: Task, experts: Sequence[str], n: int, seed: int, fine_tuning: Mapping[str, Any],
    optional: Collection[str] = (),
) -> dict[str, list[Row]]:  # fmt: skip
    """Expert ("math" or a language) -> at most ``n`` rows of its subject that no training row is of.

    optional: experts that are not trained here; one for whose subject no text is at hand is left out.
    """
    rows = {}
    for name in experts:
        try:
            rows[name] = training_rows(fine_tuning[f"{subject_of(name)}_data"], task, name, n, seed, held_out=True)
        except UserError:
            if name not in optional:
                raise
    return rows


def train_experts(
    jobs: Sequence[TrainingJob], resolved: Mapping[str, Sequence[Path | None]], *, profile: str, source: str,
    base: Path, seeds: Sequence[int], fine_tuning: Mapping[str, Any], threads: int = 1, device: str = "cpu",
    workers: Workers = 1,
) -> ExpertIndex:  # fmt: skip
    """Fine-tune what is planned; a job whose expert is there already costs nothing.

    Args:
        jobs: as of ``plan_jobs``.
        resolved: the experts that are there, as of ``resolve_experts``.
        profile: its name; experts are written to build/<profile>/experts.
        source: the benchmark's name, for the index.
        base: the base model's folder.
        seeds: as of ``plan_jobs``.
        fine_tuning: the settings.
        threads: CPU threads.
        device: "cpu" or "cuda".
        workers: 1 for this process alone, a number of processes, or "ray".

    Returns:
        The profile's models, adapters merged into the base and all of one dtype. It is not saved.

    Raises:
        UserError: as ``finetune``.
    """
    from layerswap.experts.finetune import finetune  # imported lazily: it needs torch

    settings = {name: fine_tuning[name] for name in PASSED_ON} | {"threads": threads, "device": device}
    settings["launch"] = ROOT / fine_tuning["launch"] if fine_tuning["launch"] else ""
    experts: dict[str, list[Any]] = {name: list(folders) for name, folders in resolved.items()}
    groups: dict[str, dict[str, list[Any]]] = {"experts": experts, "frozen": {}, "joint": {}}
    trainings = [
        partial(
            finetune, base, job.rows, BUILD / results_name(profile) / "experts" / job.label, steps=job.steps,
            seed=job.seed, learning_rate=job.learning_rate, frozen=job.frozen, **settings,
        )
        for job in jobs
    ]  # fmt: skip
    if workers != 1 and len(jobs) > 1:
        gpus = count_processes(fine_tuning["launch"]) if device == "cuda" else 0
        cells = [Cell(job.label, partial(run_alone, training)) for job, training in zip(jobs, trainings, strict=True)]
        for _ in run_cells(cells, make_pool(workers, threads, gpus)):
            pass  # a training sends nothing
    for job, training in zip(jobs, trainings, strict=True):
        out = training()  # of one that is done, its folder
        folders = groups[job.group].setdefault(job.name, [None] * len(seeds))
        folders[seeds.index(job.seed)] = resolve_model(out, base)
    every_folder = [folder for models in groups.values() for folders in models.values() for folder in folders]
    unified = iter(unify_dtypes([base, *every_folder]))
    base = next(unified)
    unified_groups = {
        group: {name: [next(unified) for _ in folders] for name, folders in models.items()}
        for group, models in groups.items()
    }
    return ExpertIndex(
        source=source, seeds=list(seeds), base=base, experts=unified_groups["experts"],
        joint=unified_groups["joint"], frozen=unified_groups["frozen"],
    )  # fmt: skip


def run_alone(training: Callable[[], Path], send: Callable[[Row], None]) -> None:
    """A training as the work of a ``Cell``."""
    training()


def subject_of(name: str) -> str:
    """Whose settings an expert has: "math" or "language"."""
    return "math" if name == "math" else "language"


def count_processes(launch: str) -> int:
    """The processes that accelerate's file starts."""
    import yaml

    if not launch:
        return 1
    try:
        return int(yaml.safe_load((ROOT / launch).read_text(encoding="utf-8"))["num_processes"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"launch {launch}: expected a file for accelerate with num_processes ({error!r})") from None
