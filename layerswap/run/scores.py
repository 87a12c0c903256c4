"""The conditions of a profile scored on its problems, with the experts that 01_experts left."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerswap.analysis.statistics import check_complete
from layerswap.checkpoints.architecture import parse_config
from layerswap.checkpoints.loading import load_model, load_tokenizer
from layerswap.checkpoints.model_files import FileStates, check_unchanged, file_states, model_digest, tokenizer_digest
from layerswap.checkpoints.tokenizer import has_chat_template
from layerswap.errors import UserError
from layerswap.evaluation.answers import AnswerCache
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
from layerswap.run.experiments import Condition, Role
from layerswap.run.profiles import find_task
from layerswap.tasks.base import Problem, Task

LoadedModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]
N_SOLUTIONS = 8  # worked solutions whose loss is measured, as many as MGSM publishes


@dataclass(frozen=True)
class ProfileScores:
    """Scores conditions with a profile's experts: the parameters that all notebooks share.

    pairs: of experts, "MxL", as in ``experts.seed_pairs``. dtype: of the models that are evaluated. experts: None means
    those that 01_experts left.
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
        run = partial(evaluate, cache=answers, style=self.style, max_new_tokens=self.max_new_tokens)
        frame = self.run_on_all(conditions, n_problems, run)
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
        run = partial(rank, cache=rankings, style=self.style)
        if not text_blind:
            return self.run_on_all(conditions, n_problems, run)
        named = [replace(condition, name=f"{condition.name}, text-blind") for condition in conditions]
        return self.run_on_all(named, n_problems, run, without_text)

    def run_on_all(
        self, conditions: Sequence[Condition], n_problems: int, run: Callable[..., pd.DataFrame],
        prepare: Callable[[Problem], Problem] = lambda problem: problem,
    ) -> pd.DataFrame:  # fmt: skip
        """What ``run`` makes of every condition, language and pair of experts.

        run: called with models, task, problems and exemplars. prepare: what is shown of a problem.
        """
        index, tokenizer, tokenizer_key = self.index, cache(load_tokenizer), cache(tokenizer_digest)
        states, pairs, frames = cache(file_states), seed_pairs(self.index, self.pairs), []
        problems = {
            language: list(map(prepare, self.task.problems(language, self.split, n_problems)))
            for language in self.languages
        }
        exemplars = {language: self.task.exemplars(language, self.exemplars, self.style) for language in self.languages}

        @cache
        def check_all_prompts(folder: Path) -> None:
            config = parse_config(folder)
            for language in self.languages if config else ():  # before the first answer
                check_prompts(config, tokenizer(folder), self.task, problems[language], exemplars[language],
                              style=self.style, max_new_tokens=self.max_new_tokens)  # fmt: skip

        for language in self.languages:
            for math_seed, language_seed in pairs:
                for models, served in self.expert_pairs(conditions, language, math_seed, language_seed):
                    folder = models.folders["math"]
                    states(folder)  # before the tokenizer's digest, which later pairs of this folder have too

                    def load(condition: Condition, models: ExpertPair = models, folder: Path = folder) -> LoadedModel:
                        check_all_prompts(folder)
                        loaded = models.apply(condition.plan), tokenizer(folder)
                        check_pair(models, states(folder))
                        return loaded

                    scored = [
                        ScoredModel(
                            condition.name,
                            json_digest([models.merge_digest(condition.plan), tokenizer_key(folder)]),
                            partial(load, condition),
                            partial(check_pair, models, states(folder)),
                            has_chat_template(folder),
                        )
                        for condition in served
                    ]
                    frame = run(scored, self.task, problems[language], exemplars[language])
                    frames.append(frame.assign(math_seed=index.seeds[math_seed],
                                               language_seed=index.seeds[language_seed]))  # fmt: skip
        frame = in_order(frames, conditions)
        check_complete(frame, [condition.name for condition in conditions], self.languages, len(pairs), n_problems)
        return frame

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
            base, dtype = self.index.base if needs_base else None, getattr(torch, self.dtype)
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
            model = load_model(folder, getattr(torch, dtype)).to(device)
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
