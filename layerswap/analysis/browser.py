"""The problem browser: every method's answer to every problem, with a filter, as HTML that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from layerswap.analysis.error_analysis import ERROR_CLASSES
from layerswap.analysis.statistics import SEEDS
from layerswap.files import json_digest
from layerswap.tasks.base import Problem, Task

TEMPLATE = Path(__file__).parent / "templates" / "browser.html"


def problem_browser(
    frame: pd.DataFrame, problems: Mapping[tuple[str, str], Problem], task: Task, methods: Sequence[str],
    n_at_once: int, disagreeing: tuple[str, str] = ("math expert", "layer swap"),
) -> str:  # fmt: skip
    """HTML with a filter by language, pair of experts, method, outcome and steps; a problem opens to all its answers.

    Words of a question that the base model has never met are marked. At first the problems are shown that one of two
    methods solves and the other does not.

    Args:
        frame: from ``error_analysis.classify_answers``.
        problems: (language, id) -> problem.
        task: the benchmark that the problems are of.
        methods: conditions whose answers are shown, in this order.
        n_at_once: problems shown at first, and as many more at each click.
        disagreeing: the two methods.

    Returns:
        One element, the same for the same answers.
    """
    pairs = [(int(math), int(language)) for math, language in frame[SEEDS].drop_duplicates().to_numpy()]
    texts: dict[str, int] = {}  # each once, as many answers are the same
    by_problem = {}
    for key, rows in frame.groupby(["language", "id"], sort=False):
        answers = {
            (row.math_seed, row.language_seed, row.condition): [
                ERROR_CLASSES.index(row.error_class), texts.setdefault(row.text.strip(), len(texts))
            ]
            for row in rows.itertuples()
        }  # fmt: skip
        by_problem[key] = rows.steps.iloc[0], [[answers[*pair, method] for method in methods] for pair in pairs]
    data = {
        "languages": list(frame.language.unique()), "pairs": ["seeds {} and {}".format(*pair) for pair in pairs],
        "methods": list(methods), "disagreeing": disagreeing, "classes": ERROR_CLASSES, "n_at_once": n_at_once,
        "texts": list(texts),
        "problems": [
            {"id": id, "language": language, "question": problems[language, id].question,
             "gold": str(problems[language, id].number), "steps": steps, "answers": answers,
             "unknown": sorted(task.unknown_words(problems[language, id]) or ())}
            for (language, id), (steps, answers) in by_problem.items()
        ],
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    identifier = f"problems-{json_digest(data)[:12]}"
    return TEMPLATE.read_text(encoding="utf-8").replace("IDENTIFIER", identifier).replace("DATA", text)
