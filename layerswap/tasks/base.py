"""What a benchmark is to the rest of the package: problems, prompts, and how an answer is read."""

import operator
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, permutations
from typing import ClassVar

from layerswap.errors import UserError
from layerswap.tasks.extraction import Extraction, extract, identify_language

N_OPERANDS, N_DISTRACTORS = 4, 7  # numbers of a question that lead to others; numbers beside the gold one
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}  # of solutions


@dataclass(frozen=True)
class Problem:
    """A word problem: ``answer`` is the worked answer where there is one, ``number`` the integer asked for."""

    id: str
    language: str
    question: str
    answer: str | None
    number: int


@dataclass(frozen=True)
class Alternatives:
    """What may follow a prompt, to be ranked by its likelihood (the multiple choice of lm-eval).

    Attributes:
        texts: (text, label): the likelihoods of texts with one label are added up.
        gold: the right label.
    """

    texts: tuple[tuple[str, str], ...]
    gold: str

    @property
    def labels(self) -> list[str]:
        """The labels, each once."""
        return list(dict.fromkeys(label for _, label in self.texts))


class Task(ABC):
    """A benchmark of word problems in several languages, as small as lm-eval's.

    Attributes:
        name: what error messages call it.
        languages: codes (ISO 639-1) of its languages.
        styles: prompt styles it has.
        n_test: how many problems may be tested while settings are chosen on validation problems; None: any number, as
            the two splits share none.
        n_validation: how many validation problems there are; None: any number.
        reads_data_folder: whether its problems lie in the folder that LAYERSWAP_DATA names.
        number_end: what ends a number that is ranked, where numbers are several tokens.
    """

    name: str
    languages: tuple[str, ...]
    styles: ClassVar[tuple[str, ...]]
    n_test: int | None = None
    n_validation: int | None = None
    reads_data_folder: bool = False
    number_end: str = "."

    @abstractmethod
    def problems(self, language: str, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The problems of a language, the first ``limit`` of them (None: all).

        ``split`` is "test", or "validation", on which settings may be chosen. The same position is the same problem
        in every language. UserError for what is not there or malformed.
        """

    @abstractmethod
    def exemplars(self, language: str, n: int, style: str) -> list[Problem]:
        """The first ``n`` solved problems for a prompt, in their fixed order. UserError if there are not so many."""

    @abstractmethod
    def prompt(self, problem: Problem, exemplars: Sequence[Problem], style: str) -> str:
        """The prompt of a problem after solved ones, with which all prompts of a language begin."""

    @abstractmethod
    def stops(self, language: str, style: str, has_exemplars: bool) -> tuple[str, ...]:
        """Strings that end an answer.

        has_exemplars: whether solved problems come before, which a model goes on with; False for instruct models, whose
            answers have paragraphs.
        """

    @abstractmethod
    def reference_text(self, problem: Problem, style: str) -> str:
        """The gold text whose loss is the answer loss."""

    def number_text(self, number: int, language: str, style: str) -> str:
        """What follows a prompt that is answered by the bare number."""
        return f" {number}"

    @abstractmethod
    def reply_language(self, language: str, style: str) -> str:
        """The language an answer should be in."""

    def extract(self, text: str, language: str) -> Extraction:
        """The number that an answer gives."""
        return extract(text, language)

    def answer_language(self, text: str) -> str | None:
        """The language that an answer is in; None: it does not say."""
        return identify_language(text)

    def is_whole_solution(self, problem: Problem, text: str) -> bool | None:
        """Whether an answer is the worked solution from its first step to its number; None: nobody can tell."""
        return None

    def worked_solutions(self, problems: Sequence[Problem]) -> dict[str, str | None]:
        """Problem id -> a solution with its calculations as equations, None where none is known."""
        return {problem.id: problem.answer for problem in problems}

    def unknown_words(self, problem: Problem) -> set[str] | None:
        """The words of the question that the base model has never met; None: not known."""
        return None

    def count_unknown_words(self, problem: Problem) -> int | None:
        """How many words of the question the base model has never met, each counted once; None: not known."""
        words = self.unknown_words(problem)
        return None if words is None else len(words)

    def alternatives(self, problem: Problem, style: str) -> Alternatives:
        """What to rank of a problem: here the gold number among as many others in every problem.

        They are the question's numbers and what the four operations make of two of them, in turn, then numbers near the
        gold one. ``number_end`` stands after each, so that none begins as another does.
        """
        numbers, others = {problem.number}, distractors(problem)
        while len(numbers) <= N_DISTRACTORS:
            numbers.add(next(others))
        texts = (
            (self.number_text(number, problem.language, style) + self.number_end, str(number))
            for number in sorted(numbers)
        )
        return Alternatives(tuple(texts), str(problem.number))

    def training_rows(
        self, expert: str, n: int, seed: int | str, held_out: bool = False
    ) -> list[dict[str, str]] | None:
        """At most ``n`` rows {"prompt", "completion"} of the task's own training text for an expert.

        expert: "math" or a language. None: it has none of its own (then ``experts.training_data`` has).
        """
        return None

    def check(self, language: str, style: str | None = None) -> None:
        """UserError unless the task has the language and the style."""
        if language not in self.languages:
            raise UserError(f"language {language!r} is not in {self.name}, expected one of {', '.join(self.languages)}")
        if style is not None and style not in self.styles:
            raise UserError(f"style is {style!r}, expected one that {self.name} has: {', '.join(self.styles)}")


def distractors(problem: Problem) -> Iterator[int]:
    """Whole numbers above zero beside the gold one, without end: those that are likely mistakes first."""
    own = [int(number) for number in re.findall(r"\d+", problem.question)][:N_OPERANDS]
    yield from (number for number in own if number > 0)
    for first, second in permutations(own, 2):
        if first > second > 0:
            results = (calculate(first, second) for calculate in OPERATIONS.values())
            yield from (int(result) for result in results if result == int(result))
    for distance in count(1):
        yield problem.number + distance
        if problem.number > distance:
            yield problem.number - distance


def check_limit(limit: int | None) -> None:
    """UserError unless ``limit`` is a number of problems, 1 or more, or None."""
    if limit is not None and limit < 1:
        raise UserError(f"the number of problems is {limit}, expected 1 or more")


def is_held_out(document: str) -> bool:
    """Whether a document (any text that names it) belongs to the tenth that no training row comes from."""
    return zlib.crc32(document.encode(errors="replace")) % 10 == 0
