"""MSVAMP (Chen et al., arXiv 2310.20246): 1,000 word problems of one or two steps in ten languages, machine-translated.

Prompts are those of MGSM, with MGSM's published exemplars: MSVAMP has no worked answers. There is no Telugu.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from layerswap.errors import UserError
from layerswap.files import data_folder, read_rows
from layerswap.tasks.base import OPERATIONS, Problem
from layerswap.tasks.extraction import LANGUAGES
from layerswap.tasks.mgsm import MGSM, hub_split, published_exemplars

HUB_ID = "Mathoctopus/MSVAMP"
N_PROBLEMS, N_VALIDATION = 1000, 200


class MSVAMP(MGSM):
    """MSVAMP from LAYERSWAP_DATA/msvamp (source "msvamp"), the hub (Mathoctopus/MSVAMP@<commit>) or a folder like it.

    Exemplars are always those of LAYERSWAP_DATA/mgsm. Its last 200 problems are the validation split.
    """

    name, id_prefix = "MSVAMP", "msvamp"
    languages = tuple(code for code in LANGUAGES if code != "te")
    n_test = N_PROBLEMS - N_VALIDATION
    n_validation = N_VALIDATION

    def __init__(self, source: str = "msvamp") -> None:
        if source != "msvamp" and "/" not in source:
            raise UserError(f"source is {source!r}, expected msvamp or a hub id such as {HUB_ID}@<commit>")
        self.source = source
        self.reads_data_folder = True

    def read_problems(self, language: str) -> list[tuple[str, str]]:
        """All (question, answer) of a language; "8.0" is given as "8"."""
        return [(row["m_query"], row["response"].removesuffix(".0")) for row in self.read_file(language)]

    def read_exemplars(self, language: str) -> list[tuple[str, str]]:
        """MGSM's published (question, worked answer) of a language."""
        return published_exemplars("local", language)

    def worked_solutions(self, problems: Sequence[Problem]) -> dict[str, str | None]:
        """Problem id -> its steps as equations, made of the published equation and the English question's numbers."""
        rows = self.english_rows
        published = {problem.id: rows[int(problem.id.rpartition("-")[2])] for problem in problems}
        return {id: steps(row["equation"], row["m_query"]) for id, row in published.items()}

    @cached_property
    def english_rows(self) -> list[dict[str, Any]]:
        """The rows of the English file, which equations are about."""
        return self.read_file("en")

    def read_file(self, language: str) -> list[dict[str, Any]]:
        """The published rows of a language. UserError for a missing or malformed file."""
        file = f"test_{LANGUAGES[language]['name']}.json"
        if self.source == "msvamp":
            path = data_folder() / "msvamp" / file
            location, rows = str(path), read_rows(path, lines=True)
        else:
            name, _, commit = self.source.partition("@")
            if not commit and not Path(name).is_dir():
                raise UserError(f"source {self.source}: expected {name}@<commit>, so that the problems stay the same")
            location = f"source {self.source}: {file}"
            rows = hub_split(location, name, None, "train", commit, data_files=file)
        for i, row in enumerate(rows, 1):
            for column in ("m_query", "response", "equation"):
                value = row.get(column) if isinstance(row, dict) else None
                if not isinstance(value, str):
                    raise UserError(f"{location}, row {i}: {column} is {value!r}, expected text")
        return rows


def steps(equation: str, question: str) -> str | None:
    """The steps of a prefix equation: "- + number0 number1 number2" -> "15 + 18 = 33 . 33 - 7 = 26".

    numberN is the N-th number of the question, from 0. None if the equation has no operation or is malformed.
    """
    operands = [Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", question)]
    stack: list[Fraction] = []
    equations = []
    try:
        for word in reversed(equation.split()):
            if word not in OPERATIONS:
                stack.append(operands[int(word.removeprefix("number"))])
                continue
            first, second = stack.pop(), stack.pop()
            stack.append(OPERATIONS[word](first, second))
            left, right, result = (f"{float(value):.12g}" for value in (first, second, stack[-1]))
            equations.append(f"{left} {word} {right} = {result}")
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return " . ".join(equations) or None
