"""MSVAMP's problems of one operation, as many of each, for models that solve little: which operation is asked for?

What a small model cannot calculate it may have understood. Beside exact match its problems are ranked: the log
likelihood of "18 -" after the question, of each of the two numbers with each of the four operations. And in exact match
a calculator does the last calculation that an answer writes.
"""

import random
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from layerswap.errors import UserError
from layerswap.files import data_folder, read_rows
from layerswap.tasks.base import OPERATIONS, Alternatives, Problem
from layerswap.tasks.extraction import Extraction
from layerswap.tasks.msvamp import MSVAMP
from layerswap.tasks.word_problems import word_problem

N_EACH = 73  # problems of an operation: as many as there are multiplications
N_VALIDATION_EACH = 50  # of the operations that have so many left
DIGITS = str.maketrans("০১২৩৪৫৬৭৮৯", "0123456789")  # of Bengali questions, so that an equation can repeat them
SHARES = {"one step": 0.72, "two steps": 0.13, "gsm8k": 0.15}  # of the rows that a math expert is trained on
SEPARATOR = re.compile(r"(?<=\d)[.,](?=\d{3}(?!\d))")  # of thousands
# A calculation in an answer, of two numbers and no more.
WRITTEN = re.compile(r"(?<![\d.,])(?<![-+*/=] )(?<![-+*/=])(\d+) ?([-+*/]) ?(\d+)(?![\d.,]*\d) ?(?:=|\.?\s*$)")
EXACT = OPERATIONS | {"/": Fraction}
CALCULATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")  # of GSM8K's calculator marks


class OneStepMSVAMP(MSVAMP):
    """The test split has 73 problems of each operation, spread evenly over MSVAMP; the same ones in every language.

    Validation problems are of the others: additions, subtractions and divisions, as all multiplications are tested.
    """

    name = "one-step MSVAMP"
    n_test = N_EACH * len(OPERATIONS)
    n_validation = N_VALIDATION_EACH * (len(OPERATIONS) - 1)

    def read_problems(self, language: str) -> list[tuple[str, str]]:
        """All (question, answer) of a language, with the digits and numbers that an equation has."""
        return [(SEPARATOR.sub("", question.translate(DIGITS)), answer)
                for question, answer in super().read_problems(language)]  # fmt: skip

    def places(self, split: str, n_rows: int) -> list[int]:
        """As in MGSM; the operations take turns."""
        of_operation: dict[str, list[int]] = {operation: [] for operation in OPERATIONS}
        for i, row in enumerate(self.english_rows):
            if (words := row["equation"].split()) and len(words) == 3 and words[0] in of_operation:
                of_operation[words[0]].append(i)
        if too_few := [operation for operation, places in of_operation.items() if len(places) < N_EACH]:
            raise UserError(f"{self.name}: MSVAMP has fewer than {N_EACH} problems of operation {too_few[0]}")
        tested = [spread(places, N_EACH) for places in of_operation.values()]
        if split == "test":
            return [i for turn in zip(*tested, strict=True) for i in turn]
        others = [sorted({*places} - {*taken}) for places, taken in zip(of_operation.values(), tested, strict=True)]
        validation = [spread(places, N_VALIDATION_EACH) for places in others if places]
        return [i for turn in zip(*validation, strict=True) for i in turn]

    def alternatives(self, problem: Problem, style: str) -> Alternatives:
        """The four operations, each after either of the two numbers of the solution."""
        first, gold, second, *_ = (self.worked_solutions([problem])[problem.id] or "").split()
        numbers = dict.fromkeys((first, second))
        texts = tuple((f" {number} {operation}", operation) for number in numbers for operation in OPERATIONS)
        return Alternatives(texts, gold)

    def extract(self, text: str, language: str) -> Extraction:
        """What the answer's last calculation comes to, by a calculator, whatever result the model wrote.

        Cobbe et al. (arXiv 2110.14168) let theirs calculate so. A calculation is two whole numbers with an operation
        between them, before "=" or the end; of any other answer the number is read as in MGSM.
        """
        calculations = WRITTEN.findall(SEPARATOR.sub("", text))
        if not calculations:
            return super().extract(text, language)
        first, operation, second = calculations[-1]
        if operation == "/" and not int(second):
            return Extraction(None, "calculator")
        value = EXACT[operation](int(first), int(second))
        return Extraction(Decimal(int(value)) if value == int(value) else None, "calculator")

    def training_rows(
        self, expert: str, n: int, seed: int | str, held_out: bool = False
    ) -> list[dict[str, str]] | None:
        """Of mathematics, rows of own word problems and of GSM8K's with one or two calculations; no MSVAMP or SVAMP.

        ``held_out`` rows are of GSM8K's test set alone: own problems of any draw have the same templates.
        """
        if expert != "math":
            return None
        rng, shares = random.Random(seed), {"gsm8k": 1.0} if held_out else SHARES
        short = gsm8k_equations("test" if held_out else "train")
        rows = []
        for subject in rng.choices(list(shares), list(shares.values()), k=n):
            is_own, n_steps = subject != "gsm8k", 1 + (subject == "two steps")
            question, solution = word_problem(rng, n_steps) if is_own else rng.choice(short)
            prompt = self.prompt(Problem("", "en", question, None, 0), [], "en_cot")
            rows.append({"prompt": prompt, "completion": f" {solution}"})
        return rows


def spread(items: Sequence[int], n: int) -> list[int]:
    """``n`` of the items, evenly spaced: neighbours in MSVAMP are of one story."""
    return [items[i * len(items) // n] for i in range(n)]


def gsm8k_equations(split: str) -> list[tuple[str, str]]:
    """GSM8K's problems with one or two calculations of whole numbers that all are marked: (question, equations)."""
    problems = []
    for row in read_rows(data_folder() / "gsm8k" / f"{split}.jsonl"):
        marks = re.findall(r"<<(.*?)>>", row["answer"])
        equations = [CALCULATION.fullmatch(mark) for mark in marks]
        if not 1 <= len(marks) <= 2 or not all(equations):
            continue
        steps = [equation.groups() for equation in equations if equation]
        final = row["answer"].rpartition("#### ")[2].replace(",", "")
        is_right = all(OPERATIONS[operation](Fraction(a), int(b)) == int(c) for a, operation, b, c in steps)
        if is_right and steps[-1][3] == final:
            problems.append((row["question"], " ".join(f"{a} {operation} {b} = {c}." for a, operation, b, c in steps)))
    return problems
