"""Where an answer goes wrong: its equations, its operations, its language, or words that its base had never met.

Every class of errors is a rule and not a judgement (``classify``). The tables go by error class, by steps of the
solution, and by which methods solve the same problems.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from layerswap.analysis.statistics import SEEDS, mean_interval, widen_to_wilson
from layerswap.tasks.base import OPERATIONS, Problem, Task

FEWEST = 10  # problems that a group needs, and right answers that a correlation needs, to say anything
# What an answer is, in the order of ``classify``.
ERROR_CLASSES = "correct,cut off,no answer,wrong language,arithmetic,unknown word,wrong operation,other".split(",")
OPERATOR_SPELLINGS = {"×": "*", "x": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"}
GAP = r"[^\S\n]"  # a list's "- " on the next line is no operator
NUMBER = r"(?:\d++(?:,\d++)*+(?:\.\d++)?+|\.\d++)"
MARKS = r"\u0900-\u0e7f\u200c\u200d"  # vowel signs are no letters to re
UNIT = rf"(?:{GAP}?[%$€£¥]|{GAP}[^\W\d](?:(?!\d)[\w{MARKS}])*)?"  # "5 apples + 3 apples"
PERCENT = rf"({NUMBER})(?:{GAP}?(%))?"
OPERATOR = rf"{GAP}*[-+*/{''.join(OPERATOR_SPELLINGS)}]{GAP}*"
# Neither the end of a longer left side, as "8 = 3" in "-5 + 8 = 3", nor a start of the right one, as in "2 = 1 + 1".
EQUATION = re.compile(
    rf"(?<![\d.,])[$€£¥]?{NUMBER}{UNIT}(?:{OPERATOR}[$€£¥]?{NUMBER}{UNIT})+{GAP}*={GAP}*"
    rf"[$€£¥]?{NUMBER}(?:{GAP}?%)?+(?!{UNIT}{OPERATOR}[$€£¥(]?{NUMBER})"
)
OPEN_EXPRESSION = re.compile(rf"(?:(?:[\d)%]|\b[^\W\d]){OPERATOR}|[-−])$")  # what an equation may not follow


class Equation(NamedTuple):
    """An equation of a text; ``operators`` has one character (+, -, * or /) between two operands."""

    operands: list[Decimal]
    operators: str
    result: Decimal


def equations(text: str) -> list[Equation]:
    """The equations in a text, in order: "2 + 3 x 4 = 14" is ([2, 3, 4], "+*", 14).

    A percentage counts as hundredths, a result's only if an operand is one ("1 / 4 * 100 = 25%").
    """
    result = []
    for match in EQUATION.finditer(text):
        if OPEN_EXPRESSION.search(text[max(match.start() - 9, 0) : match.start()]):
            continue
        left, _, right = match.group().rpartition("=")
        operands = [decimal_value(number, percent) for number, percent in re.findall(PERCENT, left)]
        operators = [written_operator(text_between) for text_between in re.split(NUMBER, left)[1:-1]]
        [(number, percent)] = re.findall(PERCENT, right)
        result.append(Equation(operands, "".join(operators), decimal_value(number, percent and "%" in left)))
    return result


def decimal_value(number: str, is_percentage: object) -> Decimal:
    """The value of a written number, "1,200" or ".5", of a percentage in hundredths."""
    return Decimal(number.replace(",", "")).scaleb(-2 * bool(is_percentage))


def written_operator(text: str) -> str:
    """The operator in the text between two operands; its last one, as a unit may hold an "x"."""
    characters = (OPERATOR_SPELLINGS.get(character, character) for character in reversed(text))
    return next(character for character in characters if character in OPERATIONS)


def is_true(equation: Equation) -> bool:
    """Whether an equation is true, products before sums, to the digits that its result is written with."""
    first, *others = equation.operands
    terms = [first]
    try:
        for character, operand in zip(equation.operators, others, strict=True):
            if character in "*/":
                terms[-1] = OPERATIONS[character](terms[-1], operand)
            else:
                terms.append(operand if character == "+" else -operand)
        return sum(terms, Decimal()).quantize(equation.result, ROUND_HALF_UP) == equation.result
    except ArithmeticError:  # such as a division by zero
        return False


def operators_of(task: Task, problems: Sequence[Problem]) -> dict[str, str | None]:
    """The operators that solve each problem.

    Args:
        task: the benchmark that the problems are of.
        problems: of one language.

    Returns:
        Problem id -> operators in order, such as "*+"; None where no worked solution is known.
    """
    return {
        id: "".join(equation.operators for equation in equations(solution or "")) or None
        for id, solution in task.worked_solutions(problems).items()
    }


def classify(answer: Any, problem: Problem, operators: str | None, task: Task) -> str:
    """The first of ERROR_CLASSES that is true of an answer.

    Args:
        answer: a row of ``evaluation.evaluate``, as a named tuple.
        problem: what it answers.
        operators: those of the problem's solution; None: not known.
        task: the benchmark that the problem is of.

    Returns:
        Such as "arithmetic": an equation in it is false. "unknown word": the question has one. "wrong operation": its
        equations have other operators than the solution's. "other": for example wrong numbers in true equations, or no
        equation at all.
    """
    in_answer = equations(answer.text)
    used = "".join(equation.operators for equation in in_answer)
    for name, is_so in (
        ("correct", answer.correct),
        ("cut off", answer.stop == "length"),
        ("no answer", answer.value is None or answer.value != answer.value),
        ("wrong language", answer.wrong_language),
        ("arithmetic", not all(map(is_true, in_answer))),
        ("unknown word", task.count_unknown_words(problem)),
        ("wrong operation", operators and used and sorted(used) != sorted(operators)),
    ):
        if is_so:
            return name
    return "other"


def classify_answers(frame: pd.DataFrame, problems: Mapping[tuple[str, str], Problem], task: Task) -> pd.DataFrame:
    """Results with the class of each answer and the length of its problem's solution.

    Args:
        frame: results of ``evaluation.evaluate``.
        problems: (language, id) -> problem; an id is the same problem in every language.
        task: the benchmark that the problems are of.

    Returns:
        The frame with columns ``error_class`` (one of ERROR_CLASSES) and ``steps``: "steps: 2" or "steps unknown",
        with ", new word" or ", known" where the task knows whether the base model met the question's words.
    """
    first_language = next(iter(problems))[0]
    operators = operators_of(
        task, [problem for (language, _), problem in problems.items() if language == first_language]
    )
    steps = {
        (language, id): steps_label(operators[id], task.count_unknown_words(problem))
        for (language, id), problem in problems.items()
    }
    keys = list(zip(frame.language, frame.id, strict=True))
    error_classes = [
        classify(answer, problems[key], operators[key[1]], task)
        for answer, key in zip(frame.itertuples(), keys, strict=True)
    ]
    return frame.assign(error_class=error_classes, steps=[steps[key] for key in keys])


def steps_label(operators: str | None, n_unknown_words: int | None) -> str:
    """The group of a problem in ``accuracy_by_steps``."""
    steps = f"steps: {len(operators)}" if operators else "steps unknown"
    return steps if n_unknown_words is None else f"{steps}, {'new word' if n_unknown_words else 'known'}"


def count_errors(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Numbers of answers by method (rows, in this order) and error class (columns, those that occur).

    frame: from ``classify_answers``.
    """
    table = frame.groupby(["condition", "error_class"]).size().unstack()
    table = table.reindex(methods, columns=pd.Index(ERROR_CLASSES, name="error_class")).fillna(0).astype(int)
    return table.loc[:, table.any()]


def accuracy_by_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Exact match of each method on problems of each number of steps, over languages and pairs of experts.

    A problem counts once, with the mean of its languages. The interval is Student's over problems
    (``statistics.mean_interval``), at least as wide as Wilson's of so many problems.

    Args:
        frame: from ``classify_answers``.

    Returns:
        Columns condition, steps, n (problems times pairs), mean, low, high, and n_answers (of one method), by
        increasing number of steps (``group_steps``), and last of all problems.
    """
    frame = pd.concat([frame.assign(steps=frame.steps.map(group_steps(frame))).dropna(subset="steps"),
                       frame.assign(steps="all")])  # fmt: skip
    n_methods, n_pairs = frame.condition.nunique(), len(frame[SEEDS].drop_duplicates())
    by_problem = frame.groupby(["condition", "steps", *SEEDS, "id"], sort=False).correct.mean().reset_index()
    table = mean_interval(by_problem.assign(language="pooled"), "correct", ["condition", "steps"])
    table["low"], table["high"] = widen_to_wilson(table.low, table.high, table["mean"], table.n / n_pairs)
    table["n_answers"] = table.steps.map(frame.groupby("steps").size() // n_methods)
    n_steps = table.steps.str.extract(r"(\d+)", expand=False).astype(float)
    return table.loc[n_steps.sort_values(kind="stable").index]


def group_steps(frame: pd.DataFrame) -> dict[str, str]:
    """The groups that problems are compared in: neighbouring numbers of steps until there are FEWEST problems.

    Args:
        frame: from ``classify_answers``.

    Returns:
        Value of ``steps`` -> "steps: 5 to 7", and ", new word" or ", known". Problems of unknown steps have a group if
        there are enough, or no others.
    """
    sizes = frame.groupby("steps").id.nunique()
    numbered = sizes.index.to_series().str.extract(r"^steps: (?P<n>\d+)(?P<ending>.*)").dropna().astype({"n": int})
    unknown = sizes.index.difference(numbered.index)
    names = {label: label for label in unknown if sizes[label] >= FEWEST or numbered.empty}
    for ending, rows in numbered.sort_values("n").groupby("ending"):
        groups: list[list[str]] = [[]]
        for label in rows.index:
            if sizes[groups[-1]].sum() >= FEWEST:
                groups.append([])
            groups[-1].append(label)
        if len(groups) > 1 and sizes[groups[-1]].sum() < FEWEST:
            too_small = groups.pop()
            groups[-1] += too_small
        for group in groups:
            first, last = rows.n[group[0]], rows.n[group[-1]]
            span = f"{first}" if first == last else f"{first} to {last}"
            names |= dict.fromkeys(group, f"steps: {span}{ending}")
    return names


def agreement(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The correlation (phi) of methods' correct answers, over problems, languages and pairs of experts.

    Args:
        frame: results of all methods on the same problems.
        methods: conditions, in the order of rows and columns.

    Returns:
        [methods, methods]: 1 where two methods solve the same problems, nan where one is always or never correct, or
        right in fewer than FEWEST answers.
    """
    wide = frame.assign(correct=frame.correct.astype(float)).pivot(
        index=["language", *SEEDS, "id"], columns="condition", values="correct"
    )
    wide = wide[list(methods)]
    wide.loc[:, wide.sum() < FEWEST] = np.nan
    return wide.corr()
