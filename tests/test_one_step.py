"""The balanced one-step problems of MSVAMP, word problems of our own, and what a task lets rank."""

import json
import random
import re
from collections import Counter
from fractions import Fraction

import pytest

from layerswap.analysis.error_analysis import equations, is_true
from layerswap.errors import UserError
from layerswap.lab.task import LabTask
from layerswap.run.profiles import find_task
from layerswap.tasks import MGSM, MSVAMP, OneStepMSVAMP, Problem
from layerswap.tasks.base import N_DISTRACTORS, OPERATIONS
from layerswap.tasks.one_step import N_EACH, N_VALIDATION_EACH, gsm8k_equations, spread
from layerswap.tasks.word_problems import fill_template, one_step, templates, two_steps, word_problem

COUNTS = {"+": 137, "-": 406, "*": 73, "/": 146}  # as published
TESTED_EACH = 73


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """MSVAMP in English and Bengali with as many problems of each operation as published, and two-step ones."""
    (tmp_path / "msvamp").mkdir()
    rows = []
    for operation, count in COUNTS.items():
        for i in range(count):
            a, b = (6 * (i + 2), 6) if operation == "/" else (i + 12, 7)
            question = f"problem {operation} : {b} of {a} ?"
            rows.append((question, f"{operation} number1 number0", str(float(OPERATIONS[operation](a, b)))))
            if i % 9 == 0:
                rows.append(("1 and 2 and 3 ?", "+ + number0 number1 number2", "6.0"))
    digits = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")
    for file, change in (("English", str), ("Bengali", lambda text: text.translate(digits))):
        lines = [{"m_query": change(question), "equation": equation, "response": response}
                 for question, equation, response in rows]  # fmt: skip
        (tmp_path / f"msvamp/test_{file}.json").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    return tmp_path


def test_as_many_problems_of_each_operation_in_turn_and_none_twice(folder):
    task = find_task("one-step")
    tested, validation = task.problems("en"), task.problems("en", "validation")
    golds = [task.alternatives(problem, "en_cot").gold for problem in tested]
    assert golds[:8] == list("+-*/+-*/") and Counter(golds) == dict.fromkeys("+-*/", TESTED_EACH)
    assert (len(tested), len(validation)) == (task.n_test, task.n_validation) == (292, 150)
    assert N_EACH == TESTED_EACH and N_VALIDATION_EACH == 50
    assert not {p.id for p in tested} & {p.id for p in validation}
    assert Counter(task.alternatives(p, "en_cot").gold for p in validation) == {"+": 50, "-": 50, "/": 50}
    assert task.problems("en", limit=5) == tested[:5]
    places = [int(p.id[-3:]) for p, gold in zip(tested, golds, strict=True) if gold == "-"]
    gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 2  # evenly spread: neighbours are of one story


def test_problems_are_the_same_in_every_language_with_digits_that_an_equation_can_repeat(folder):
    task = OneStepMSVAMP()
    english, bengali = task.problems("en"), task.problems("bn")
    assert [(p.id, p.number) for p in english] == [(p.id, p.number) for p in bengali]
    assert bengali[0].question == english[0].question and bengali[0].question.isascii()
    assert task.worked_solutions(english[:1]) == {english[0].id: "12 + 7 = 19"}


def test_alternatives_are_the_operations_after_either_number(folder):
    task = OneStepMSVAMP()
    (problem,) = task.problems("bn", limit=1)
    alternatives = task.alternatives(problem, "en_cot")
    assert alternatives.labels == list("+-*/") and alternatives.gold == "+"
    assert [text for text, label in alternatives.texts if label == "-"] == [" 12 -", " 7 -"]


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        (" 18 - 10 = 1.", 8, "calculator"), (" 12 / 4 = 9.", 3, "calculator"), (" 7 / 2 = 3.", None, "calculator"),
        (" 7 / 0 = 3.", None, "calculator"), (" 2 * 3 = 5. 5 + 4 = 1.", 9, "calculator"), ("3+4", 7, "calculator"),
        ("The answer is 8.", 8, None), ("no idea", None, None), (" 3 - 8 = 1.", -5, "calculator"),
        ("1,200 - 200 = 1000", 1000, "calculator"), ("907.611 + 1 = 3", 907612, "calculator"),
        ("2 + 3 + 4 = 9.", 9, None), ("4 * 3 + 5 = 17", 17, None), ("1.5 * 4 = 6", 6, None),
        ("The answer is 8 (in 2010-2012).", 8, None), (f"{10**400} / 1 = 2", 10**400, "calculator"),
    ],
)  # fmt: skip
def test_a_calculator_does_the_last_calculation(text, value, rule):
    extraction = OneStepMSVAMP().extract(text, "en")
    assert extraction.value == value and (rule is None or extraction.rule == rule)


def test_too_few_problems_are_named(folder):
    path = folder / "msvamp/test_English.json"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "problem * : 7 of 12 " not in line))
    with pytest.raises(UserError, match=r"MSVAMP has fewer than 73 problems of operation \*"):
        OneStepMSVAMP().problems("en")


@pytest.mark.parametrize(("split", "limit", "message"), [("dev", 3, "no split 'dev'"), ("test", 0, "problems is 0")])
def test_bad_requests_are_refused(folder, split, limit, message):
    with pytest.raises(UserError, match=message):
        OneStepMSVAMP().problems("en", split, limit)


def test_spread_takes_the_first_and_even_steps():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8] and spread("abc", 3) == list("abc")


# --- alternatives of any task -----------------------------------------------------------------------------------------


def test_numbers_of_a_question_lead_to_the_distractors():
    problem = Problem("x", "en", "Ben has 12 apples and eats 3 of 5 kinds. How many are left?", None, 9)
    alternatives = MGSM("owner/name@commit").alternatives(problem, "direct")
    assert alternatives.gold == "9" and {label for _, label in alternatives.texts} == set("9 12 3 5 15 36 4 17".split())
    assert all(text == f" {label}." for text, label in alternatives.texts)


@pytest.mark.parametrize("question", ["How many?", "Of 9?", "9 and 9, of 0 and 1?", "1 and 2 and 3 and 4 and 5 and 6?"])
@pytest.mark.parametrize("gold", [1, 9, 10**6])
def test_every_problem_has_as_many_alternatives_and_none_begins_as_another_does(question, gold):
    for task in (MGSM("owner/name@commit"), MSVAMP()):
        alternatives = task.alternatives(Problem("x", "en", question, None, gold), "direct")
        texts = [text for text, _ in alternatives.texts]
        assert len(alternatives.labels) == len(texts) == 1 + N_DISTRACTORS and str(gold) in alternatives.labels
        assert not any(a != b and b.startswith(a) for a in texts for b in texts)
        assert all(int(label) > 0 for label in alternatives.labels)


def test_a_number_follows_the_prompt_as_an_answer_would():
    japanese = Problem("x", "ja", "りんごが12個、3個食べました。", None, 9)
    assert ("9.", "9") in MGSM("owner/name@commit").alternatives(japanese, "direct").texts
    (problem,) = LabTask().problems("sw", limit=1)
    assert (f" #### {problem.number}", str(problem.number)) in LabTask().alternatives(problem, "lab").texts


# --- word problems of our own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_word_problems_are_solved_by_their_own_numbers(n_steps, seed):
    question, solution = word_problem(random.Random(seed), n_steps)
    steps = equations(solution)
    assert len(steps) == n_steps and all(map(is_true, steps)) and "{" not in question
    available = re.findall(r"\d+", question)
    for step in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)\.", solution):
        first, second, result = step
        assert {first, second} <= set(available) and int(result) > 0
        available.append(result)


def test_operations_are_drawn_evenly_and_every_template_can_be_filled():
    rng = random.Random(0)
    frequency = Counter(re.search(r"\d ([-+*/]) \d", one_step(rng)[1])[1] for _ in range(4000))
    assert all(900 < frequency[operation] < 1100 for operation in OPERATIONS)
    every = [template for group in templates()["one_step"].values() for template in group]
    for template in [*every, *templates()["two_steps"], *templates()["distractions"]]:
        assert "{" not in fill_template(rng, template, a=8, b=4, c=2, x=3)
    assert {two_steps(rng)[1].count("=") for _ in range(50)} == {2}


def test_a_distraction_is_about_nothing_in_its_question():
    fields = lambda text: set(re.findall(r"{(\w+)}", text))  # noqa: E731
    of_distractions = set().union(*map(fields, templates()["distractions"]))
    every = [template for group in templates()["one_step"].values() for template in group]
    assert of_distractions == {"fourth", "x", "unneeded_things", "unneeded_item"}
    assert not of_distractions & set().union(*map(fields, every))
    rng = random.Random(3)
    for _ in range(300):
        words = fill_template(rng, "{units},{things},{more_things},{unneeded_things}").split(",")
        assert len(set(words)) == 4


def test_math_rows_are_own_problems_and_short_ones_of_gsm8k(folder):
    (folder / "gsm8k").mkdir()
    rows = [
        {"question": "Ann has 3. She gets 4.", "answer": "She has <<3+4=7>>7.\n#### 7"},
        {"question": "wrong", "answer": "<<3+4=8>>8\n#### 8"},
        {"question": "decimal", "answer": "<<3*.5=1.5>>1.5\n#### 1.5"},
        {"question": "another end", "answer": "<<3+4=7>>7\n#### 9"},
        {"question": "long", "answer": "<<1+1=2>> <<2+1=3>> <<3+1=4>>\n#### 4"},
        {"question": "two", "answer": "<<8/2=4>> <<4*3=12>>\n#### 12"},
    ]
    (folder / "gsm8k/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert gsm8k_equations("train") == [("Ann has 3. She gets 4.", "3 + 4 = 7."), ("two", "8 / 2 = 4. 4 * 3 = 12.")]
    task = OneStepMSVAMP()
    rows_of_seed = task.training_rows("math", 400, 1)
    assert rows_of_seed == task.training_rows("math", 400, 1) != task.training_rows("math", 400, 2)
    assert len(rows_of_seed) == 400 and task.training_rows("sw", 4, 1) is None
    (folder / "gsm8k/test.jsonl").write_text(json.dumps(rows[5]))
    held_out = task.training_rows("math", 5, 1, held_out=True)
    assert [row["completion"] for row in held_out] == [" 8 / 2 = 4. 4 * 3 = 12."] * 5
    n_gsm8k = sum("Ann has 3." in row["prompt"] or "two" in row["prompt"].split() for row in rows_of_seed)
    assert 30 < n_gsm8k < 95
    assert all(row["prompt"].startswith("Question: ") and row["completion"].startswith(" ") for row in rows_of_seed)


def test_fractions_are_no_division_of_integers():
    assert Fraction(7) / 2 != 3  # what ``gsm8k_equations`` relies on
