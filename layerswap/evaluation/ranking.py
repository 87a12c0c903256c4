"""Alternatives ranked by their likelihood, for models that solve next to nothing: lm-eval's multiple choice.

A problem's alternatives (``Task.alternatives``) are texts that may follow its prompt, each with a label. The label with
the largest likelihood is the model's choice. *Calibrated*, each label's log probability counts from its mean over all
problems, which takes away what a model likes whatever the question; no right label is used for that (after Zhao et al.,
"Calibrate Before Use", arXiv 2102.09690).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from layerswap.evaluation.answers import AnswerCache
from layerswap.evaluation.scoring import ScoredModel, apply_template
from layerswap.files import json_digest
from layerswap.tasks.base import Alternatives, Problem, Task

RANKING = ("log_probabilities",)  # fields of a kept ranking


def rank(
    models: Iterable[ScoredModel], task: Task, problems: Sequence[Problem], exemplars: Sequence[Problem],
    cache: AnswerCache, *, style: str,
) -> pd.DataFrame:  # fmt: skip
    """Rank the alternatives of problems of one language by several models.

    Args:
        models: what is scored.
        task: the benchmark that the problems are of.
        problems: of one language.
        exemplars: solved problems before each question.
        cache: of rankings, with the fields ``RANKING``. All of a model's problems are ranked at once, or none.
        style: of the prompts, one of the task's.

    Returns:
        A row a model and problem: condition, language, id, label (the right one), n_labels, log_probability (of the
        right label among all, nats), ranked (whether it has the largest), and calibrated (whether it has after
        calibration; NaN if not all problems have the same labels).

    Raises:
        UserError: as ``engine.stream`` for prompts and models.
    """
    is_chat = style == "chat"
    prompts = [task.prompt(problem, exemplars, style) for problem in problems]
    alternatives = [task.alternatives(problem, style) for problem in problems]
    frames = []
    for model in models:
        keys = [json_digest([model.digest, "ranking", is_chat, prompt, choice.texts])
                for prompt, choice in zip(prompts, alternatives, strict=True)]  # fmt: skip
        if any(key not in cache.rows for key in keys):
            from layerswap.evaluation.engine import alternatives_nll  # here: a finished evaluation needs no torch

            cache.check()
            network, tokenizer = model.load()
            cache.check_source = model.check
            inputs = [apply_template(tokenizer, prompt) for prompt in prompts] if is_chat else prompts
            texts = [[text for text, _ in choice.texts] for choice in alternatives]
            losses = alternatives_nll(network, tokenizer, inputs, texts, templated=is_chat)
            for key, problem, choice, of_problem in zip(keys, problems, alternatives, losses, strict=True):
                values = label_log_probabilities(choice, [loss.nats for loss in of_problem])
                cache.add({"key": key, "id": problem.id, "language": problem.language, "weights": model.digest,
                           "log_probabilities": values})  # fmt: skip
            cache.flush()
        kept = [cache.rows[key]["log_probabilities"] for key in keys]
        frames.append(choices(problems, alternatives, kept).assign(condition=model.name))
    return pd.concat(frames, ignore_index=True)


def label_log_probabilities(alternatives: Alternatives, nats: Sequence[float]) -> dict[str, float]:
    """Label -> its log probability among all labels, from the nats of each text."""
    by_label: dict[str, list[float]] = {}
    for (_, label), loss in zip(alternatives.texts, nats, strict=True):
        by_label.setdefault(label, []).append(-loss)
    sums = {label: float(np.logaddexp.reduce(values)) for label, values in by_label.items()}
    total = float(np.logaddexp.reduce(list(sums.values())))
    return {label: value - total for label, value in sums.items()}


def is_first(values: Mapping[str, float], gold: str) -> bool:
    """Whether the gold label has the largest value, and no other as large a one."""
    return all(value < values[gold] for label, value in values.items() if label != gold)


def choices(
    problems: Sequence[Problem], alternatives: Sequence[Alternatives], values: Sequence[dict[str, float]]
) -> pd.DataFrame:
    """The columns of ``rank`` of one model, from the log probability of each label of each problem."""
    calibrated = [math.nan] * len(problems)
    labels = alternatives[0].labels
    if all(set(choice.labels) == set(labels) for choice in alternatives):
        means = {label: float(np.mean([of_problem[label] for of_problem in values])) for label in labels}
        calibrated = [
            is_first({label: of_problem[label] - means[label] for label in labels}, choice.gold)
            for of_problem, choice in zip(values, alternatives, strict=True)
        ]
    return pd.DataFrame({
        "language": [problem.language for problem in problems],
        "id": [problem.id for problem in problems],
        "label": [choice.gold for choice in alternatives],
        "n_labels": [len(choice.labels) for choice in alternatives],
        "log_probability": [of_problem[choice.gold] for of_problem, choice in zip(values, alternatives, strict=True)],
        "ranked": [is_first(of_problem, choice.gold)
                   for of_problem, choice in zip(values, alternatives, strict=True)],
        "calibrated": calibrated,
    })  # fmt: skip
