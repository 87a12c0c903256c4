"""English word problems of one or two steps for mathematics SFT, made from the templates of word_problems.yml.

Answers are bare equations, so that what is learned is which operation a question asks for. One in three questions has a
number that is not needed.
"""

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

from layerswap.files import read_yaml
from layerswap.tasks.base import OPERATIONS

P_DISTRACTION = 0.35  # of a one-step question having a number that is not needed
P_LOWER_CASE = 0.3  # of a question in lower case with its punctuation apart, as MSVAMP's English comes
LARGEST = 2000  # result of a second step


@cache
def templates() -> dict[str, Any]:
    """The content of word_problems.yml."""
    return read_yaml(Path(__file__).parent / "word_problems.yml")


def word_problem(rng: random.Random, n_steps: int) -> tuple[str, str]:
    """A question of one or two steps and its solution, such as "18 - 10 = 8."."""
    question, solution = one_step(rng) if n_steps == 1 else two_steps(rng)
    if rng.random() < P_LOWER_CASE:
        question = re.sub(r"([.,?])", r" \1", question.lower())
    return question, solution


def one_step(rng: random.Random) -> tuple[str, str]:
    """A question of one operation, drawn evenly from the four, and its equation."""
    operation = rng.choice(list(OPERATIONS))
    a, b = operands(rng, operation)
    template = rng.choice(templates()["one_step"][operation])
    if rng.random() < P_DISTRACTION:  # before all else: a pronoun or "more" would be taken for its things
        template = f"{rng.choice(templates()['distractions'])} {template}"
    question = fill_template(rng, template, a=a, b=b, x=number(rng))
    stands_before = question.find(str(b)) < question.find(str(a))
    if operation in "+*" and stands_before and rng.random() < 0.5:  # then either order is right
        a, b = b, a
    return question, f"{a} {operation} {b} = {OPERATIONS[operation](a, b):g}."


def two_steps(rng: random.Random) -> tuple[str, str]:
    """A question of two operations and its equations; all results are whole and above zero."""
    while True:
        template, (first, second) = rng.choice(list(templates()["two_steps"].items()))
        a, b = operands(rng, first)
        c = number(rng)
        between = OPERATIONS[first](a, b)
        result = OPERATIONS[second](between, c)
        if result > 0 and result == int(result) and result <= LARGEST:
            question = fill_template(rng, template, a=a, b=b, c=c)
            return question, f"{a} {first} {b} = {between:g}. {between:g} {second} {c} = {result:g}."


def number(rng: random.Random) -> int:
    """A number as word problems have them: most of one or two digits."""
    low, high = rng.choices([(2, 12), (5, 60), (10, 99), (100, 500)], [30, 35, 27, 8])[0]
    return rng.randint(low, high)


def operands(rng: random.Random, operation: str) -> tuple[int, int]:
    """Two numbers whose result is whole and above zero."""
    if operation in "+-":
        a, b = number(rng), number(rng)
        while a == b:
            b = number(rng)
        return (a, b) if operation == "+" else (max(a, b), min(a, b))
    lows_and_highs = rng.choice([((2, 9), (2, 12)), ((2, 12), (2, 40)), ((10, 30), (2, 9))])
    a, b = (rng.randint(low, high) for low, high in lows_and_highs)
    return (a, b) if operation == "*" else (a * b, b)


def fill_template(rng: random.Random, template: str, **numbers: int) -> str:
    """A template with names, things and numbers."""
    words = templates()
    name, other, third, fourth = rng.sample(words["names"], 4)
    does, do, did, units = rng.choice(words["activities"])
    things, more_things, unneeded_things = rng.sample([name for name in words["things"] if name != units], 3)
    item, other_item, unneeded_item = rng.sample(words["items"], 3)
    group, time = rng.choice(list(words["groups"])), rng.choice(list(words["times"]))
    return template.format(
        name=name, other=other, third=third, fourth=fourth, things=things, more_things=more_things, item=item,
        other_item=other_item, unneeded_things=unneeded_things, unneeded_item=unneeded_item,
        group=group, groups=words["groups"][group], time=time, times=words["times"][time], does=does, do=do, did=did,
        units=units, people=rng.choice(words["people"]), place=rng.choice(words["places"]), **numbers,
    )  # fmt: skip
