"""The conditions of a profile scored on its problems, with the experts that 01_experts left."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as remember, cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerswap.analysis.statistics import check_complete
from layerswap.checkpoints.architecture import parse_config
from layerswap.checkpoints.loading import load_model, load_tokenizer
from layerswap.checkpoints.model_files import FileStates, check_unchanged, file_states, model_digest, tokenizer_digest
from layerswap.checkpoints.tokenizer import has_chat_template
from layerswap.errors import UserError
from layerswap.evaluation.answers import AnswerCache, RowSender
from layerswap.evaluation.engine import nll
from layerswap.evaluation.ranking import RANKING, rank
from layerswap.evaluation.scoring import ScoredModel, check_prompts, evaluate
from layerswap.experts.index import (
    BASELINES,
    ExpertIndex,
    count_layers,
    expert_for_role,
    first_pair,
    load_index,
    seed_pairs,
)
from layerswap.files import BUILD, json_digest, results_name
from layerswap.merging.in_memory import ExpertPair
from layerswap.merging.manifest import merge_key
from layerswap.merging.on_disk import merge
from layerswap.processor import resolve_dtype
from layerswap.progress import progress_options
from layerswap.run.experiments import Condition, Role
from layerswap.run.profiles import find_task
from layerswap.tasks.base import Problem, Task
from layerswap.workers import Cell, Row, Workers, make_pool, run_cells, split_groups

LoadedModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]
LanguageAndPair = tuple[str, int, int]  # language, math expert and language expert as places in the index's seeds
Measure = Callable[..., pd.DataFrame]  # of models, task, problems, exemplars and cache
Prepare = Callable[[Problem], Problem]  # what is shown of a problem
Frames = dict[LanguageAndPair, list[pd.DataFrame]]
Missing = dict[LanguageAndPair, list[Condition]]
N_SOLUTIONS = 8  # worked solutions whose loss is measured, as many as MGSM publishes


@dataclass(frozen=True)
class ProfileScores:
    """Scores conditions with a profile's experts: the parameters that all notebooks share.

    pairs: of experts, "MxL", as in ``experts.seed_pairs``. dtype: of the models that are evaluated, or "auto". experts:
    None means those that 01_experts left. workers: 1 for this process alone, a number of processes, or "ray"; the
    results are the same.
    """

    profile: str
    languages: Sequence[str]
    style: str
    exemplars: int
    max_new_tokens: int
    split: str = "test"
    pairs: str = "1x1"
    device: str = "cpu"
    dtype: str = "float32"
    experts: ExpertIndex | None = None
    workers: Workers = 1

    @cached_property
    def index(self) -> ExpertIndex:
        """The models whose merges are scored."""
        return self.experts or load_index(self.profile)

    @cached_property
    def task(self) -> Task:
        """The benchmark of the profile."""
        return find_task(self.index.source)

    @property
    def n_layers(self) -> int:
        """Transformer layers of the models."""
        return count_layers(self.index)

    @property
    def baselines(self) -> list[str]:
        """Of "joint" and "frozen", the models that were trained beside the experts."""
        return [name for name in BASELINES if getattr(self.index, name)]

    @property
    def n_pairs(self) -> int:
        """Pairs of experts."""
        return len(seed_pairs(self.index, self.pairs))

    def problems(self, n: int) -> dict[tuple[str, str], Problem]:
        """(language, id) -> problem, of the first ``n`` of each language."""
        return {
            (language, problem.id): problem
            for language in self.languages
            for problem in self.task.problems(language, self.split, n)
        }

    def score(self, conditions: Sequence[Condition], n_problems: int) -> pd.DataFrame:
        """Every condition on ``n_problems`` of each language with each pair of experts, one row an answer.

        Answers are kept in ``build/<profile>/answers-<n_problems>.jsonl`` under a key of weights, prompt and decoding,
        so a condition that was scored before costs nothing. Batches are made of all problems that are asked for and
        round differently if those are others: by keeping answers apart by their number, a result does not depend on
        what was scored before, or beside it.

        Returns:
            The columns of ``evaluation.evaluate``; ``loss``, the answer loss in nats a token; ``math_seed`` and
            ``language_seed``. Rows in the order of the conditions.

        Raises:
            UserError: as in ``load_index``, ``expert_for_role`` and ``evaluate``, and for missing answers.
        """
        answers = AnswerCache(BUILD / results_name(self.profile) / f"answers-{n_problems}.jsonl")
        measure = partial(evaluate, style=self.style, max_new_tokens=self.max_new_tokens)
        frame = self.measure_all(conditions, n_problems, measure, answers)
        frame["loss"] = frame.answer_nll / frame.answer_tokens
        return frame

    def rank(self, conditions: Sequence[Condition], n_problems: int, text_blind: bool = False) -> pd.DataFrame:
        """The alternatives of ``n_problems`` of each language ranked by every condition, one row a problem.

        text_blind: show no more of a question than its numbers, for the floor of what can be had without reading; then
            the conditions' names end in ", text-blind".

        Returns:
            The columns of ``evaluation.rank``, math_seed and language_seed. Rows in the order of the conditions.

        Raises:
            UserError: as ``score``.
        """
        rankings = AnswerCache(BUILD / results_name(self.profile) / f"rankings-{n_problems}.jsonl", RANKING)
        measure = partial(rank, style=self.style)
        if not text_blind:
            return self.measure_all(conditions, n_problems, measure, rankings)
        named = [replace(condition, name=f"{condition.name}, text-blind") for condition in conditions]
        return self.measure_all(named, n_problems, measure, rankings, without_text)

    def measure_all(
        self, conditions: Sequence[Condition], n_problems: int, measure: Measure, cache: AnswerCache,
        prepare: Prepare | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """What ``measure`` makes of every condition, language and pair of experts.

        Several workers first compute what is not kept; the frame is made here, of what is kept.
        """
        cells = [(language, *pair) for language in self.languages for pair in seed_pairs(self.index, self.pairs)]
        measurement = Measurement(self, n_problems, measure, cache, prepare)
        kept: Frames = {cell: [] for cell in cells}
        missing: Missing = {cell: list(conditions) for cell in cells}
        if self.workers != 1:
            kept, missing = self.compute_missing(cells, conditions, measurement)
        frames = []
        for cell in cells:
            frames += kept[cell]
            if missing[cell]:
                frames.append(self.measure(cell, self.scored_models(cell, missing[cell], measurement), measurement))
        frame = in_order(frames, conditions)
        check_complete(frame, [condition.name for condition in conditions], self.languages, self.n_pairs, n_problems)
        return frame

    def measure(self, cell: LanguageAndPair, models: Iterable[ScoredModel], measurement: "Measurement") -> pd.DataFrame:
        """What is measured of models for one language and pair of experts."""
        language, math_seed, language_seed = cell
        frame = measurement.measure(
            models, self.task, measurement.problems[language], measurement.exemplars[language], cache=measurement.cache
        )
        seeds = self.index.seeds
        return frame.assign(math_seed=seeds[math_seed], language_seed=seeds[language_seed])

    def scored_models(
        self, cell: LanguageAndPair, conditions: Sequence[Condition], measurement: "Measurement"
    ) -> Iterator[ScoredModel]:
        """The model of every condition, those of the same two roles one after the other; loaded when it is needed."""
        for models, served in self.expert_pairs(conditions, *cell):
            folder = models.folders["math"]
            states = measurement.states(folder)  # before the tokenizer's digest, which later pairs have too

            def load(
                condition: Condition, models: ExpertPair = models, folder: Path = folder, states: FileStates = states
            ) -> LoadedModel:
                measurement.check(folder)
                loaded = models.apply(condition.plan), measurement.tokenizer(folder)
                check_pair(models, states)
                return loaded

            for condition in served:
                yield ScoredModel(
                    condition.name,
                    json_digest([models.merge_digest(condition.plan), measurement.tokenizer_digest(folder)]),
                    partial(load, condition),
                    partial(check_pair, models, states),
                    has_chat_template(folder),
                )

    def compute_missing(
        self, cells: Sequence[LanguageAndPair], conditions: Sequence[Condition], measurement: "Measurement"
    ) -> tuple[Frames, Missing]:
        """Let workers compute what is not kept, and keep it: this process alone writes the file.

        Returns:
            Of each cell the frames of what was kept before, and the conditions that were not.
        """
        kept: Frames = {cell: [] for cell in cells}
        missing: Missing = {cell: [] for cell in cells}
        work: Missing = {}
        planned: set[tuple[str, str]] = set()  # language and digest: a model of several pairs is computed once
        by_name, cache = {condition.name: condition for condition in conditions}, measurement.cache
        for cell in cells:
            for model in self.scored_models(cell, conditions, measurement):
                try:
                    kept[cell].append(self.measure(cell, [model._replace(load=not_kept)], measurement))
                except NotKeptError:
                    missing[cell].append(by_name[model.name])
                    if (key := (cell[0], model.digest)) not in planned:
                        planned.add(key)
                        work.setdefault(cell, []).append(by_name[model.name])
        if not work:
            return kept, missing
        cache.check()
        pool = make_pool(self.workers, torch.get_num_threads(), int(self.device.startswith("cuda")))
        jobs, busy_cells = [], list(work)
        for i, piece in split_groups(list(work.values()), pool.n_workers):
            cell, alone = busy_cells[i], replace(self, languages=[busy_cells[i][0]], experts=self.index, workers=1)
            job = partial(
                measure_conditions, alone, cell, piece, measurement.n_problems, measurement.measure, cache.path,
                cache.fields, measurement.prepare,
            )  # fmt: skip
            jobs.append(Cell(f"pair of experts {cell}: {', '.join(condition.name for condition in piece)}", job))
        with tqdm(desc=f"{pool.n_workers} workers", unit=" rows", **progress_options()) as progress:
            for row in run_cells(jobs, pool):
                cache.add(row)
                progress.update()
        cache.flush()
        return kept, missing

    def expert_pairs(
        self, conditions: Iterable[Condition], language: str, math_seed: int = 0, language_seed: int = 0
    ) -> Iterator[tuple[ExpertPair, list[Condition]]]:
        """Yield (two models in memory, the conditions that are for them), one pair of roles after the other.

        So no more than two models, and what is mixed of them, are held at a time.
        """
        by_roles: dict[tuple[Role, Role], list[Condition]] = {}
        for condition in conditions:
            by_roles.setdefault(condition.roles, []).append(condition)
        for roles in sorted(by_roles, key=lambda roles: roles != ("math", "language")):
            served = by_roles[roles]
            needs_base = any("base" in condition.plan.roles for condition in served)
            math, other = (self.model_for_role(role, language, math_seed, language_seed) for role in roles)
            base = self.index.base if needs_base else None
            dtype = getattr(torch, resolve_dtype(self.dtype, self.device))
            yield ExpertPair(math, other, base, device=self.device, dtype=dtype), served

    def model_for_role(self, role: Role, language: str, math_seed: int, language_seed: int) -> Path:
        """The folder of the model that plays a role; that of task vectors is merged once, below build/<profile>."""
        if isinstance(role, str):
            return expert_for_role(self.index, role, language, math_seed, language_seed)
        math, other = (
            expert_for_role(self.index, name, language, math_seed, language_seed) for name in ("math", "language")
        )
        digests = dict(zip(role.roles, map(model_digest, (math, other, self.index.base)), strict=True))
        folder = BUILD / results_name(self.profile) / "task_vectors" / merge_key(digests, role, "file")[:16]
        if not folder.exists():
            merge(math, other, role, folder, base=self.index.base)
        return folder

    def solution_losses(self, conditions: Sequence[Condition]) -> pd.DataFrame:
        """Loss (nats a token) of the benchmark's published worked solutions (the lab: eight training problems).

        Each is given its question after the profile's number of exemplars (at most seven) of the other solved ones,
        with the first pair of experts. The measure that speaks where no problem is solved. Columns as in
        ``held_out_losses``.
        """
        frames = []
        style = "native_cot" if self.style in ("direct", "chat") else self.style  # those two have no worked solutions
        for language in self.languages:
            solved = self.task.exemplars(language, N_SOLUTIONS, style)
            rows = []
            for i, problem in enumerate(solved):
                others = [*solved[:i], *solved[i + 1 :]][: self.exemplars]
                prompt = self.task.prompt(problem, others, style)
                rows.append({"prompt": prompt, "completion": f" {problem.answer}"})
            for models, served in self.expert_pairs(conditions, language):
                tokenizer = load_tokenizer(models.folders["math"])
                frames += [
                    text_losses(models.apply(condition.plan), tokenizer, rows, condition.name, language)
                    for condition in served
                ]
        return in_order(frames, conditions)

    def check_disjoint(self, n_validation: int, n_problems: int) -> None:
        """UserError if a validation problem is among the first ``n_problems`` of the split, or if they are too few."""
        for language in self.languages:
            test = {problem.question for problem in self.task.problems(language, self.split, n_problems)}
            validation = self.task.problems(language, "validation", n_validation)
            if len(validation) < n_validation:
                raise UserError(
                    f"n_validation is {n_validation}, but {language} has {len(validation)} validation problems"
                )
            if shared := [problem for problem in validation if problem.question in test]:
                raise UserError(f"{len(shared)} of {n_validation} validation problems in {language} are also"
                                f" tested, such as {shared[0].id}:"
                                f" lower n_problems ({n_problems}) or n_validation")  # fmt: skip


class Measurement:
    """How models are measured, what they are shown, where rows are kept, and what was read of folders so far."""

    def __init__(
        self, scores: ProfileScores, n_problems: int, measure: Measure, cache: AnswerCache, prepare: Prepare | None
    ) -> None:
        self.scores, self.n_problems, self.prepare = scores, n_problems, prepare
        self.measure, self.cache = measure, cache
        task, style = scores.task, scores.style
        self.problems = {language: task.problems(language, scores.split, n_problems) for language in scores.languages}
        if prepare:
            self.problems = {language: list(map(prepare, problems)) for language, problems in self.problems.items()}
        self.exemplars = {language: task.exemplars(language, scores.exemplars, style) for language in scores.languages}
        self.states, self.tokenizer = remember(file_states), remember(load_tokenizer)
        self.tokenizer_digest, self.check = remember(tokenizer_digest), remember(self.check_prompts)

    def check_prompts(self, folder: Path) -> None:
        """UserError unless a model can be given all prompts, of every language: before the first answer."""
        config, scores = parse_config(folder), self.scores
        for language in scores.languages if config else ():
            check_prompts(config, self.tokenizer(folder), scores.task, self.problems[language],
                          self.exemplars[language], style=scores.style,
                          max_new_tokens=scores.max_new_tokens)  # fmt: skip


class NotKeptError(Exception):
    """Something has to be computed."""


def not_kept() -> LoadedModel:
    """In place of loading a model."""
    raise NotKeptError


def measure_conditions(
    scores: ProfileScores, cell: LanguageAndPair, conditions: Sequence[Condition], n_problems: int, measure: Measure,
    path: Path, fields: Sequence[str], prepare: Prepare | None, send: Callable[[Row], None],
) -> None:  # fmt: skip
    """What a worker does: compute what is not kept of some conditions, and send its rows."""
    measurement = Measurement(scores, n_problems, measure, RowSender(path, fields, send), prepare)
    scores.measure(cell, scores.scored_models(cell, conditions, measurement), measurement)


def without_text(problem: Problem) -> Problem:
    """A problem of whose question only the numbers are left."""
    return replace(problem, question=" ... ".join(re.findall(r"\d+(?:[.,]\d+)*", problem.question)))


def check_pair(models: ExpertPair, states: FileStates) -> None:
    """UserError if a file of the two models, or of their base, is not as it was before their digests were taken.

    states: those of the math expert's files before its tokenizer's digest.
    """
    check_unchanged(models.folders["math"], states)
    for role, folder in models.folders.items():
        check_unchanged(folder, models.file_states[role])


def in_order(frames: Sequence[pd.DataFrame], conditions: Sequence[Condition]) -> pd.DataFrame:
    """The frames as one, its rows in the order of the conditions, then as they came."""
    rank = {condition.name: i for i, condition in enumerate(conditions)}
    whole = pd.concat(frames, ignore_index=True)
    return whole.sort_values("condition", key=lambda names: names.map(rank), kind="stable", ignore_index=True)


def held_out_losses(
    index: ExpertIndex, rows: Mapping[str, Sequence[dict[str, str]]], device: str = "cpu", dtype: str = "float32"
) -> pd.DataFrame:
    """Loss (nats a token) of the base and of the first seed's expert on its held-out rows.

    Args:
        rows: expert ("math" or a language) -> rows of prompt and completion.

    Returns:
        Columns condition (base, math expert or language expert), language (that of the text), id, loss.
    """
    frames = []
    for expert, held_out in rows.items():
        language, name = ("en", "math expert") if expert == "math" else (expert, "language expert")
        for condition, folder in (("base", index.base), (name, first_pair(index, language)[expert != "math"])):
            model = load_model(folder, getattr(torch, resolve_dtype(dtype, device))).to(device)
            frames.append(text_losses(model, load_tokenizer(folder), held_out, condition, language))
    return pd.concat(frames, ignore_index=True)


def text_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]], condition: str,
    language: str,
) -> pd.DataFrame:  # fmt: skip
    """The loss of each row: columns condition, language, id, loss."""
    losses = nll(model, tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows])
    nats = [loss.nats / loss.n_tokens for loss in losses]
    return pd.DataFrame({"condition": condition, "language": language, "id": range(len(rows)), "loss": nats})
