"""A profile's cost before it is run: what is loaded, trained, merged and evaluated, with memory, disk and time.

Nothing is fetched and no model is loaded. Sizes come from files that are here; of a model on the hub that is not, from
the billions in its name, if it says them. Times assume SPEED: they say hours or days, no more. Those of several workers
are of a list schedule: each takes the next cell of work as soon as it is free.
"""

import heapq
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layerswap.checkpoints.layers import layer_count
from layerswap.checkpoints.loading import HUB
from layerswap.checkpoints.safetensors import count_weights, read_header
from layerswap.checkpoints.wheels import WHEEL_MODELS
from layerswap.errors import UserError
from layerswap.experts.index import check_experts, pair_counts
from layerswap.experts.jobs import count_processes, subject_of
from layerswap.experts.training_data import parse_mixture, training_rows
from layerswap.files import ROOT
from layerswap.lab.world import BASE
from layerswap.processor import resolve_dtype
from layerswap.run.experiments import Condition, Experiment, profile_experiments
from layerswap.run.profiles import Parameters, find_task, wheel_base
from layerswap.workers import split_groups


class Speed(NamedTuple):
    """What is assumed of a device.

    Attributes:
        flops: floating-point operations a second.
        bandwidth: bytes of memory a second.
        step_seconds: of a layer in a decode step, beside its arithmetic: one operation after the other is started.
        load_bandwidth: bytes a second of weights from a disk.
    """

    flops: float
    bandwidth: float
    step_seconds: float
    load_bandwidth: float


# A core of a server; an H100 in bfloat16, whose steps are CUDA graphs. docs/workers.md says what was measured.
SPEED = {"cpu": Speed(1e11, 1e10, 4e-4, 1e9), "cuda": Speed(4e14, 2e12, 0.0, 2e9)}
WORKERS = {"cpu": (1, 2, 8), "cuda": (1, 8, 64)}  # for which the times are told
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}
BYTES_PER_TRAINED_WEIGHT = 16  # itself, its gradient, two moments of AdamW, all in float32
QUESTION_TOKENS = 150  # about
ROWS_AT_ONCE = 32  # answers, about


def cost_report(profile: str, settings: dict[str, Parameters]) -> list[str]:
    """The estimate of a profile as lines of text.

    Args:
        settings: notebook -> parameters, as ``load_profile`` gives them.

    Raises:
        UserError: for parameters that cannot be run.
    """
    is_data_there = check_profile(settings)
    p = settings["01_experts"]
    tuning = p["fine_tuning"]
    n_weights, n_layers, how = model_size(p["base"])
    speed = SPEED[p["device"]]
    cores = p["threads"] if p["device"] == "cpu" else 1
    flops, bandwidth = cores * speed.flops, cores * speed.bandwidth
    processes = count_processes(tuning["launch"])

    named = [*p["math_experts"], *p["language_experts"]]
    fetched = [name for name in (p["base"], *named) if HUB.fullmatch(name) and not cached_model(name)]
    disk = 2.0 * n_weights * len(fetched)
    millions = "?" if math.isnan(n_weights) else f"{n_weights / 1e6:,.1f}"
    lines = [f"profile {profile}: {millions} million weights ({how}); nothing is fetched or run by this"]
    if not is_data_there:
        lines.append("data       not looked for: LAYERSWAP_DATA is not set; it must name the folder that holds mgsm/")
    lines.append(f"load       base {p['base']}")
    absent = [name for name in named if not (ROOT / name).exists() and not HUB.fullmatch(name)]
    lines += [f"           expert {name}{' (no such folder here)' if name in absent else ''}" for name in named]
    lines.append(f"           {len(fetched)} model(s) to fetch from the hub, about {gigabytes(disk)} in bfloat16")

    trainings: list[float] = []  # seconds of each on one device
    expert_bytes = (2 if tuning["lora_rank"] else 4) * n_weights
    trained = trained_models(p)
    for name, subjects, count in trained:
        steps = sum(tuning[f"{subject}_steps"] for subject in subjects)
        tokens = steps * tuning["batch_size"] * tuning["max_length"]
        data_sets = [data_set for subject in subjects for data_set in tuning[f"{subject}_data"]]
        text = ", ".join(data_sets) or f"{p['source']}'s own text"
        how = f"LoRA of rank {tuning['lora_rank']}" if tuning["lora_rank"] else "all weights"
        rows = f"{steps} steps of {tuning['batch_size']} rows"
        lines.append(f"train      {count} {name} expert(s), {how}: {rows}, at most {tokens / 1e6:,.1f} M tokens each,"
                     f" on {text}")  # fmt: skip
        trainings += [(4 if tuning["lora_rank"] else 6) * n_weights * tokens / flops] * count
        disk += count * expert_bytes
    if trained:
        memory = (4 if tuning["lora_rank"] else BYTES_PER_TRAINED_WEIGHT) * n_weights
        disk += 2 * memory  # two checkpoints of a training
        spread = f", over {processes} processes" if processes > 1 else ""
        lines.append(f"           memory {gigabytes(memory)}{spread}, and activations")
    disk += expert_bytes
    lines.append(f"merge      one checkpoint on disk, {gigabytes(expert_bytes)}; all others in memory")

    cells = answers_of_cells(settings, n_layers)
    model_bytes = BYTES_PER_WEIGHT[resolve_dtype(p["eval_dtype"], p["device"])] * n_weights
    for name, groups in cells.items():
        q = settings[name]
        lines.append(f"evaluate   {name}: at most {sum(map(sum, groups)):,} answers of at most {q['max_new_tokens']}"
                     f" tokens, {q['exemplars']} exemplars")  # fmt: skip
    lines.append(f"           memory {gigabytes(3.3 * model_bytes)} a worker (two experts and what is mixed of them),"
                 " and the cache of a batch")  # fmt: skip
    lines.append(f"in all     disk {gigabytes(disk)}; on {p['device']}, assuming {flops:.0e} operations and"
                 f" {bandwidth:.0e} bytes a second, at most:")  # fmt: skip
    unit = "GPU(s)" if p["device"] == "cuda" else f"worker(s) of {p['threads']} core(s)"
    for n_workers in WORKERS[p["device"]]:
        at_once = max(1, n_workers // processes)
        training = makespan([work / min(processes, n_workers) for work in trainings], at_once)
        evaluation = 0.0
        for name, groups in cells.items():
            new_tokens = settings[name]["max_new_tokens"]
            step = model_bytes / bandwidth + n_layers * speed.step_seconds
            answer = 2 * n_weights * (QUESTION_TOKENS + new_tokens) / flops + new_tokens / ROWS_AT_ONCE * step
            shares = [piece for _, piece in split_groups(groups, n_workers)]
            loading = 2 * model_bytes / speed.load_bandwidth
            evaluation += makespan([loading + sum(piece) * answer for piece in shares], n_workers)
        times = {"training": training} if trainings else {}
        times |= {"evaluation": evaluation, "together": training + evaluation}
        durations = ", ".join(f"{what} {format_duration(seconds)}" for what, seconds in times.items())
        lines.append(f"           {n_workers:3} {unit}: {durations}")
    return lines


def check_profile(settings: dict[str, Parameters]) -> bool:
    """Check experts, splits and data of a profile, so that nothing is trained for a notebook that would refuse them.

    Returns:
        As ``check_data``.

    Raises:
        UserError: names the parameter or file.
    """
    p = settings["01_experts"]
    check_experts(p["math_experts"], p["language_experts"], p["languages"], p["seeds"], p["baselines"])
    check_splits(p["source"], settings["05_mgsm"])
    return check_data(settings)


def trained_models(parameters: Parameters) -> list[tuple[str, tuple[str, ...], int]]:
    """(name, subjects whose rows it learns, how many) of all kinds of models that 01_experts would train."""
    languages, n_seeds = parameters["languages"], len(parameters["seeds"])
    experts = {"math": ("math",)} | {language: ("language",) for language in languages}
    trained = [] if parameters["math_experts"] else [("math", experts["math"], n_seeds)]
    if not parameters["language_experts"]:
        trained += [(language, experts[language], n_seeds) for language in languages]
    if "frozen" in parameters["baselines"]:
        trained += [(f"frozen {name}", subjects, n_seeds) for name, subjects in experts.items()]
    if "joint" in parameters["baselines"]:
        trained += [(f"joint {language}", ("math", "language"), n_seeds) for language in languages]
    return trained


def check_data(settings: dict[str, Parameters]) -> bool:
    """Check languages, problems, exemplars and training text as far as they are here; what is on the hub is not asked.

    Returns:
        Whether they could be looked for: False if they lie in LAYERSWAP_DATA, and it is not set.

    Raises:
        UserError: a language that the task or a profile's experts do not have, or data that is missing or malformed.
    """
    p = settings["01_experts"]
    task, languages = find_task(p["source"]), p["languages"]
    for name, parameters in settings.items():
        for language in filter(None, [*parameters.get("languages", ()), parameters.get("language")]):
            task.check(language, parameters["style"])
            if language not in languages:
                raise UserError(f"{name}: language {language!r} has no expert, 01_experts has {', '.join(languages)}")
    if task.reads_data_folder and "LAYERSWAP_DATA" not in os.environ:
        return False
    if "/" not in p["source"]:
        for language in ["en", *languages]:
            task.problems(language, limit=1)
            task.exemplars(language, p["exemplars"], p["style"])
    for name in trained_experts(p):
        for data_set in p["fine_tuning"][f"{subject_of(name)}_data"] or ["own"]:
            if "@" not in parse_mixture(data_set)[0]:
                training_rows([data_set], task, name, 1, 0)
    return True


def trained_experts(parameters: Parameters) -> list[str]:
    """ "math" and languages whose training text 01_experts needs: of experts that are not given, and of baselines."""
    names = [] if parameters["math_experts"] and not parameters["baselines"] else ["math"]
    return names + ([] if parameters["language_experts"] and not parameters["baselines"] else parameters["languages"])


def check_splits(source: str, parameters: Parameters) -> None:
    """UserError if 05_mgsm would test validation problems, or there are not so many."""
    task, n_problems, n_validation = find_task(source), parameters["n_problems"], parameters["n_validation"]
    if n_validation and task.n_test is not None and n_problems > task.n_test:
        raise UserError(f"05_mgsm: n_problems is {n_problems}, but the problems after the first {task.n_test} are"
                        " validation problems; lower n_problems, or set n_validation to 0")  # fmt: skip
    if task.n_validation is not None and n_validation > task.n_validation:
        raise UserError(f"05_mgsm: n_validation is {n_validation}, but there are {task.n_validation} such problems")


def model_size(name: str) -> tuple[float, int, str]:
    """(weights, layers, how that is known) of a base; of one that is not here 32 layers are taken for granted.

    The weights are NaN where neither files here nor its name tell them. UserError for what is no model's name.
    """
    folder = BASE if name == "lab" else wheel_base(name) if name in WHEEL_MODELS else cached_model(name) or ROOT / name
    if folder.is_dir():
        return count_weights(read_header(folder)), layer_count(folder), "by its files"
    full_name = WHEEL_MODELS[name].name if name in WHEEL_MODELS else name
    size = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)\s*([BM])\b", full_name, re.IGNORECASE)
    if not size and HUB.fullmatch(name):
        return math.nan, 32, f"{name} is not here yet, and its name does not say"
    if not size:
        raise UserError(f"base {name}: is no folder here, and its name does not say how many weights it has")
    return int(size[1] or 1) * float(size[2]) * {"B": 1e9, "M": 1e6}[size[3].upper()], 32, "by its name"


def cached_model(name: str) -> Path | None:
    """The folder of a hub reference in the hub's cache, or None."""
    from huggingface_hub import errors, snapshot_download

    hub = HUB.fullmatch(name)
    if not hub:
        return None
    try:
        folder = Path(snapshot_download(hub["name"], revision=hub["revision"], local_files_only=True))
    except (errors.LocalEntryNotFoundError, ValueError):
        return None
    return folder if list(folder.glob("*.safetensors")) else None


def count_answers(settings: dict[str, Parameters], n_layers: int) -> dict[str, int]:
    """Notebook -> how many answers it asks for at most."""
    return {name: sum(map(sum, groups)) for name, groups in answers_of_cells(settings, n_layers).items()}


def answers_of_cells(settings: dict[str, Parameters], n_layers: int) -> dict[str, list[list[int]]]:
    """Notebook -> for each language and pair of experts the answers of each of its conditions.

    What a notebook asks twice of as many problems is done once. The plans of a search are conditions of their language.
    """
    cells: dict[str, list[list[int]]] = {}
    most: dict[tuple[str, Any], tuple[int, int]] = {}  # (notebook, what is answered) -> problems, languages x pairs
    for experiment in profile_experiments(settings, n_layers):
        groups, n_problems = cells.setdefault(experiment.notebook, []), settings[experiment.notebook][experiment.sample]
        for condition in experiment.conditions:
            key = experiment.notebook, (experiment.split, n_problems, condition.roles, signature(condition))
            most[key] = max(most.get(key, (0, 0)), (n_problems, count_groups(experiment, condition, settings)))
        for _ in range(experiment.n_searched):
            add_to_groups(groups, n_problems, count_groups(experiment, experiment.conditions[0], settings))
    for (notebook, _), (n_problems, n_groups) in most.items():
        add_to_groups(cells[notebook], n_problems, n_groups)
    return cells


def add_to_groups(groups: list[list[int]], n_problems: int, n_groups: int) -> None:
    """Add a condition's answers to the first groups."""
    groups += [[] for _ in range(n_groups - len(groups))]
    for group in groups[:n_groups]:
        group.append(n_problems)


def signature(condition: Condition) -> str:
    """A condition's plan without its name."""
    return repr({field: value for field, value in condition.plan.to_dict().items() if field != "name"})


def count_groups(experiment: Experiment, condition: Condition, settings: dict[str, Parameters]) -> int:
    """Languages times pairs of experts in which a condition of an experiment is answered."""
    p = settings[experiment.notebook]
    n_languages = 1 if experiment.languages == "first" else len(p["languages"])
    if experiment.languages == "all and English" and condition.name != "language expert":
        n_languages += 1  # English has no language expert
    n_pairs = 1
    if not experiment.one_pair:
        n_pairs = math.prod(pair_counts(p.get("pairs", "1x1"), settings["01_experts"]["seeds"]))
    return n_languages * n_pairs


def makespan(lengths: Sequence[float], n_workers: int) -> float:
    """The time of a list schedule: in their order, each piece of work goes to the worker that is free first."""
    ends = [0.0] * n_workers
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def gigabytes(n_bytes: float) -> str:
    """Bytes as GB; "? GB" if they are not known."""
    return "? GB" if math.isnan(n_bytes) else f"{n_bytes / 1e9:,.1f} GB"


def format_duration(seconds: float) -> str:
    """Seconds as minutes, hours or days, to two digits; "? hours" if they are not known."""
    if math.isnan(seconds):
        return "? hours"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:,.0f} seconds"
