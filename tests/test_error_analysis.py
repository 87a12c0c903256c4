"""Where answers fail: equations as Python evaluates them, operations and unknown words counted a second way."""

import json
import os
import random
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, strategies as st
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from layerswap.analysis import error_analysis
from layerswap.analysis.error_analysis import Equation
from layerswap.evaluation import scoring
from layerswap.lab import world
from layerswap.lab.task import LabTask
from layerswap.tasks import mgsm
from layerswap.tasks.base import Problem
from layerswap.tasks.mgsm import MGSM

TARGETS = [language for language in world.LANGUAGES if language != "en"]
FAULTS = {"correct": True, "stop": "length", "value": None, "wrong_language": True, "text": "2 + 2 = 5"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty LAYERSWAP_DATA; GSM8K is read anew in the test, and after it."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    mgsm.gsm8k_test_solutions.cache_clear()
    yield tmp_path
    mgsm.gsm8k_test_solutions.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 = 5", [("2 3", "+", "5", True)]),
        ("2 + 3 = 6", [("2 3", "+", "6", False)]),
        ("12 - 2 - 3 = 7", [("12 2 3", "--", "7", True)]),
        ("24 / 4 / 2 = 3", [("24 4 2", "//", "3", True)]),
        ("2 + 3 x 4 = 14", [("2 3 4", "+*", "14", True)]),
        ("2 + 3 x 4 = 20", [("2 3 4", "+*", "20", False)]),
        ("2*3+4*5=26", [("2 3 4 5", "*+*", "26", True)]),
        ("20 - 3 * 4 / 2 = 14", [("20 3 4 2", "-*/", "14", True)]),
        ("5 apples + 3 apples = 8 apples", [("5 3", "+", "8", True)]),
        ("3 boxes x 4 = 12", [("3 4", "*", "12", True)]),
        ("2 సేబులు + 3 సేబులు = 5", [("2 3", "+", "5", True)]),
        ("$1,200 / 3 = $400.", [("1200 3", "/", "400", True)]),
        ("5€ + 3 € = €8", [("5 3", "+", "8", True)]),
        ("1,000,000 + 1 = 1,000,001, so", [("1000000 1", "+", "1000001", True)]),
        ("3 × 4 = 12 , 3 ⋅ 4 = 12", [("3 4", "*", "12", True)] * 2),
        ("10 ÷ 4 = 2.5 .", [("10 4", "/", "2.5", True)]),
        ("3 − 1 = 2 and 3 – 1 = 2", [("3 1", "-", "2", True)] * 2),
        ("10 / 3 = 3.33", [("10 3", "/", "3.33", True)]),
        ("10 / 3 = 3.34", [("10 3", "/", "3.34", False)]),
        ("10 / 3 = 3", [("10 3", "/", "3", True)]),
        ("1 / 8 = 0.13", [("1 8", "/", "0.13", True)]),
        ("5 / 2 = 3", [("5 2", "/", "3", True)]),
        (".5 x 40 = 20", [("0.5 40", "*", "20", True)]),
        ("2.50 + .25 = 2.75", [("2.50 0.25", "+", "2.75", True)]),
        ("20% x 50 = 10", [("0.20 50", "*", "10", True)]),
        ("50% * 50% = 25%", [("0.50 0.50", "*", "0.25", True)]),
        ("100% - 20% = 90%", [("1.00 0.20", "-", "0.90", False)]),
        ("1 / 4 * 100 = 25%", [("1 4 100", "/*", "25", True)]),
        ("1 / 0 = 0", [("1 0", "/", "0", False)]),
        ("0 / 0 = 0", [("0 0", "/", "0", False)]),
        ("5 + 3 = 8 . 8 - 2 = 5 . #### 5", [("5 3", "+", "8", True), ("8 2", "-", "5", False)]),
        ("She has 5\n- 3 + 4 = 7", [("3 4", "+", "7", True)]),
        ("**5 + 3 = 8**", [("5 3", "+", "8", True)]),
        # Part of a longer expression: not judged.
        ("2 + 3 = 4 + 1 = 5", [("4 1", "+", "5", True)]),
        ("-5 + 8 - 1 = 2", []),
        ("(4 x 3) + 4 + 5 = 21", []),
        ("x + 2 + 3 = 10", []),
        ("5 - 8 = -3", []),
        ("(2 + 3) * 4 = 20", []),
        ("5 = 5, 3 + 4, x + 2 = 4", []),
        ("There is no equation.", []),
        ("", []),
    ],
)  # fmt: skip
def test_equations_of_a_text(text, expected):
    in_text = error_analysis.equations(text)
    assert in_text == [
        Equation([Decimal(number) for number in numbers.split()], operators, Decimal(result))
        for numbers, operators, result, _ in expected
    ]
    assert [error_analysis.is_true(equation) for equation in in_text] == [true for *_, true in expected]


@given(st.lists(st.integers(0, 999), min_size=2, max_size=5), st.data())
def test_equations_as_python_evaluates_them(numbers, data):
    operators = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    left = str(numbers[0]) + "".join(f" {sign} {n}" for sign, n in zip(operators, numbers[1:], strict=True))
    result = eval(left)
    assume(result > 0)
    for error in (0, 1, -1):
        for text in (f"{left} = {result + error}", f"{left.replace('*', '×')} = {result + error:,} ."):
            [equation] = error_analysis.equations(text)
            assert equation == (numbers, "".join(operators), result + error)
            assert error_analysis.is_true(equation) == (error == 0)


@given(st.integers(0, 10**6), st.integers(1, 999), st.integers(0, 4))
def test_quotients_are_rounded_to_the_digits_written(a, b, digits):
    unit = Fraction(1, 10**digits)
    rounded = int(Fraction(a, b) / unit + Fraction(1, 2))  # of units, half up
    for error in (0, 1):
        result = Decimal(rounded + error).scaleb(-digits)
        [equation] = error_analysis.equations(f"{a} / {b} = {result:f}")
        assert error_analysis.is_true(equation) == (error == 0)


def test_the_labs_operators():
    problems = LabTask().problems("sw", "test", 200)
    operators = error_analysis.operators_of(LabTask(), problems)
    assert list(operators) == [problem.id for problem in problems]
    for problem in problems:
        words = problem.answer.split()
        assert operators[problem.id] == "".join(words[i - 2] for i, word in enumerate(words) if word == "=")
        assert 1 <= len(operators[problem.id]) == problem.answer.count("=")
        assert all(map(error_analysis.is_true, error_analysis.equations(problem.answer)))


def test_mgsms_operators_are_gsm8ks(data):
    solutions = [
        "It is 2*3=<<2*3=6>>6.\nThen <<6-1,000/500=4>>4.\n#### 4",
        "Half is <<.5*40=20>>20, all is $<<(20+1)*2=42>>42\n#### 42",
        "Another number: <<1+1=2>>2\n#### 3",
        "Not marked: 1 + 1 = 2\n#### 2",
        "Many: <<1000+1=1001>>1001\n#### 1,001",
    ]
    (data / "gsm8k").mkdir()
    lines = "".join(json.dumps({"question": "?", "answer": solution}) + "\n" for solution in solutions)
    (data / "gsm8k" / "test.jsonl").write_text(lines, encoding="utf-8")
    numbers = [4, 42, 2, 2, 1001, 7]  # the sixth is beyond the file
    problems = [Problem(f"mgsm-{i:03d}", "sw", "?", None, number) for i, number in enumerate(numbers)]
    operators = error_analysis.operators_of(MGSM("local"), problems)
    assert list(operators) == [problem.id for problem in problems]
    assert list(operators.values()) == ["*-/", "*+*", None, None, "+", None]
    assert MGSM("local").worked_solutions(problems)["mgsm-002"] is None
    assert error_analysis.operators_of(MGSM("rev2"), problems[1:2]) == {"mgsm-001": "*+*"}


@pytest.mark.parametrize("content", [None, "", "not json\n", '{"question": "?"}\n'])
def test_mgsms_operators_without_gsm8k(data, content):
    if content is not None:
        (data / "gsm8k").mkdir()
        (data / "gsm8k" / "test.jsonl").write_text(content)
    problems = [Problem(f"mgsm-{i:03d}", "te", "?", None, 1) for i in range(3)]
    operators = error_analysis.operators_of(MGSM("local"), problems)
    assert operators == {"mgsm-000": None, "mgsm-001": None, "mgsm-002": None}


def test_mgsms_operators_without_a_data_folder(data, monkeypatch):
    monkeypatch.delenv("LAYERSWAP_DATA")
    problem = Problem("mgsm-000", "te", "?", None, 1)
    assert error_analysis.operators_of(MGSM("local"), [problem]) == {"mgsm-000": None}


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs MGSM and GSM8K as published")
def test_the_published_operators():
    mgsm.gsm8k_test_solutions.cache_clear()
    operators = error_analysis.operators_of(MGSM("local"), MGSM("local").problems("sw"))
    assert len(operators) == 250 and sum(value is not None for value in operators.values()) >= 230
    assert (operators["mgsm-000"], operators["mgsm-001"]) == ("--*", "/+")


def test_error_classes_in_their_order():
    lab, problems = LabTask(), LabTask().problems("sw", "test", 50)
    known_words, new_word = (
        next(problem for problem in problems if (lab.count_unknown_words(problem) > 0) == is_so)
        for is_so in (False, True)
    )
    cures = [{"correct": False}, {"stop": "eos"}, {"value": "5"}, {"wrong_language": False}, {"text": "2 + 3 = 5"}]
    answer, classes = dict(FAULTS), []
    for cure in [{}, *cures]:
        answer |= cure
        classes.append(error_analysis.classify(SimpleNamespace(**answer), new_word, "*", lab))
    for problem, operators, task in (
        (known_words, "*", lab),
        (known_words, "+", lab),
        (new_word, "+", MGSM("local")),  # the lab alone knows
    ):
        classes.append(error_analysis.classify(SimpleNamespace(**answer), problem, operators, task))
    assert classes == [*error_analysis.ERROR_CLASSES, "other"]


@pytest.mark.parametrize(
    ("fields", "operators", "expected"),
    [
        ({"correct": True}, "*", "correct"),
        ({"stop": "length"}, "+", "cut off"),
        ({"value": None}, "+", "no answer"),
        ({"value": float("nan")}, "+", "no answer"),
        ({"wrong_language": True}, "+", "wrong language"),
        ({"text": "2 + 3 = 5 . 5 - 1 = 3"}, "+-", "arithmetic"),
        ({"text": "5 - 1 = 4 . 4 + 3 = 7"}, "+-", "other"),  # in any order
        ({"text": "4 + 3 = 7"}, "+-", "wrong operation"),
        ({"text": "4 + 3 = 7"}, "++", "wrong operation"),
        ({"text": "4 + 3 = 7"}, None, "other"),
        ({"text": "7"}, None, "other"),
        ({"text": "7"}, "+", "other"),
    ],
)  # fmt: skip
def test_error_classes_of_rows(fields, operators, expected):
    faultless = {"correct": False, "stop": "eos", "value": "7", "wrong_language": False, "text": "4 + 3 = 7"}
    empty = dict.fromkeys(scoring.COLUMNS)
    rows = pd.DataFrame([empty | faultless | fields, empty | faultless])
    rows = rows.astype({"value": "str", "answer_language": "str"})  # as evaluate gives them
    problem = Problem("mgsm-000", "sw", "?", None, 5)
    assert error_analysis.classify(next(rows.itertuples()), problem, operators, MGSM("local")) == expected


@pytest.mark.parametrize("language", world.LANGUAGES)
def test_unknown_words_are_those_held_out(language):
    path = world.DATA / f"{language}.yml"
    held_out = yaml.safe_load(path.read_text(encoding="utf-8")).get("held_out", {})
    held_out = {category: set(concepts) for category, concepts in held_out.items()}
    of_verbs = held_out.get("gain", set()) | held_out.get("lose", set())
    lab = LabTask()
    rng, expected, problems = random.Random("test-0"), {}, lab.problems(language, "test", 200)
    while len(expected) < 200:
        facts, question, _, number = world.draw_from_split(rng, world.concepts("en", True), "test")
        concepts = [(slot, value) for _, slots in [*facts, question] for slot, value in slots.items() if slot != "n"]
        is_new = any(value in (of_verbs if slot == "verb" else held_out.get(world.CATEGORY[slot], ()))
                     for slot, value in concepts)  # fmt: skip
        expected.setdefault(repr((facts, question)), (number, is_new))
    assert [number for number, _ in expected.values()] == [problem.number for problem in problems]
    has_new = [is_new for _, is_new in expected.values()]
    assert [lab.count_unknown_words(problem) > 0 for problem in problems] == has_new
    assert not any(MGSM("local").count_unknown_words(problem) for problem in problems)
    assert (0 < sum(has_new) < 200) if language in TARGETS else not any(has_new)


@pytest.mark.parametrize("text", ["1 + " * 500, "1 x " * 500, "9" * 2000, "5 xx" * 500, "1 a " * 500, "1," * 500])
def test_repeated_text_ends(text):
    assert error_analysis.equations(text) == []


# --- tables -----------------------------------------------------------------------------------------------------------


class TwoLanguages(LabTask):
    """Problems 0 to 5 in sw and te: one step, but two in the fifth and an unknown number in the sixth. Those in te
    have a word that the base never met."""

    def worked_solutions(self, problems):
        solutions = ["1 + 1 = 2"] * 4 + ["1 + 1 = 2 . 2 * 2 = 4", None]
        return {problem.id: solutions[int(problem.id)] for problem in problems}

    def unknown_words(self, problem):
        return {"<te"} if problem.language == "te" else set()


PROBLEMS = {(language, str(i)): Problem(str(i), language, f"<{language} {i}>?", None, i)
            for language in ("sw", "te") for i in range(6)}  # fmt: skip


def results(correct, n_pairs=2):
    """Classified results from {condition: function of (language, pair, problem)}; all answers are " 1 + 1 = 2"."""
    rows = [
        {"condition": condition, "language": language, "math_seed": pair, "language_seed": 7, "id": str(i),
         "correct": bool(is_correct(language, pair, i)), "stop": "eos", "value": "2", "wrong_language": False,
         "text": " 1 + 1 = 2"}
        for condition, is_correct in correct.items()
        for language in ("sw", "te") for pair in range(n_pairs) for i in range(6)
    ]  # fmt: skip
    return error_analysis.classify_answers(pd.DataFrame(rows), PROBLEMS, TwoLanguages())


CORRECT = {"math expert": lambda language, pair, i: i < 2, "layer swap": lambda language, pair, i: i % 2 == 0}


def test_errors_are_counted_by_method():
    frame = results(CORRECT)
    assert set(frame.steps[frame.language == "sw"]) == {"steps: 1, known", "steps: 2, known", "steps unknown, known"}
    assert set(frame.steps[(frame.id == "4") & (frame.language == "te")]) == {"steps: 2, new word"}
    table = error_analysis.count_errors(frame, ["layer swap", "math expert"])
    assert list(table.index) == ["layer swap", "math expert"]
    assert table.to_dict("list") == {
        "correct": [12, 8],
        "unknown word": [6, 8],
        "wrong operation": [0, 2],  # problem 4 in sw
        "other": [6, 6],
    }


def test_accuracy_by_steps(monkeypatch):
    monkeypatch.setattr(error_analysis, "FEWEST", 1)
    rng = np.random.default_rng(0)
    frame = results({"a": lambda language, pair, i: rng.random() < 0.5, "b": lambda language, pair, i: True}, n_pairs=1)
    frame = frame.assign(steps=frame.steps.str.split(",").str[0])  # over languages
    table = error_analysis.accuracy_by_steps(frame)
    assert list(table.steps) == ["steps: 1"] * 2 + ["steps: 2"] * 2 + ["steps unknown"] * 2 + ["all"] * 2
    assert list(table.condition) == ["a", "b"] * 4 and list(table.n_answers) == [8, 8, 2, 2, 2, 2, 12, 12]
    one_step = frame[(frame.condition == "a") & (frame.steps == "steps: 1")]
    means = one_step.groupby("id").correct.mean()
    row = table.iloc[0]
    student = ttest_1samp(means, 0).confidence_interval()
    low, high = proportion_confint(4 * means.mean(), 4, method="wilson")
    assert means.nunique() > 1 and row["n"] == 4
    interval = max(min(student.low, low), 0), min(max(student.high, high), 1)
    assert (row["mean"], row.low, row.high) == pytest.approx((means.mean(), *interval))
    always = table[table.condition == "b"].iloc[0]  # no variance: Wilson's interval of four problems
    wilson = binomtest(4, 4).proportion_ci(method="wilson")
    assert (always["mean"], always.low, always.high) == pytest.approx((1, wilson.low, wilson.high))


def test_more_right_answers_have_no_lower_bounds():
    """One method of intervals: none right, then one, then two of 29."""

    def bounds(n_right):
        of_all = {"condition": "a", "language": "sw", "math_seed": 0, "language_seed": 0, "steps": "steps: 2"}
        rows = pd.DataFrame([{"id": str(i), "correct": i < n_right} for i in range(29)]).assign(**of_all)
        row = error_analysis.accuracy_by_steps(rows).iloc[0]
        return row.low, row.high

    lows, highs = zip(*map(bounds, range(30)), strict=True)
    assert list(lows) == sorted(lows) and list(highs) == sorted(highs)


def test_few_problems_join_their_neighbours():
    def groups(**sizes):
        frame = pd.DataFrame({"steps": [name.replace("_", " ") for name, n in sizes.items() for _ in range(n)]})
        frame["steps"] = frame.steps.str.replace("s ", "steps: ")
        return error_analysis.group_steps(frame.assign(id=range(len(frame))))

    assert groups(s_1=3, s_2=29, s_3=21, s_7=4, s_10=2, unknown=2) == {
        "steps: 1": "steps: 1 to 2", "steps: 2": "steps: 1 to 2",
        **dict.fromkeys(["steps: 3", "steps: 7", "steps: 10"], "steps: 3 to 10"),
    }  # fmt: skip
    assert groups(s_2=10, s_3=9) == dict.fromkeys(["steps: 2", "steps: 3"], "steps: 2 to 3")
    assert groups(s_2=3, unknown=10) == {"steps: 2": "steps: 2", "unknown": "unknown"}
    assert groups(unknown=3) == {"unknown": "unknown"}


def test_agreement_is_the_correlation_of_correct_answers(monkeypatch):
    methods = ["layer swap", "math expert"]
    assert error_analysis.agreement(results(CORRECT), methods).loc["math expert"].isna().all()  # 8 are right
    monkeypatch.setattr(error_analysis, "FEWEST", 8)
    table = error_analysis.agreement(results(CORRECT | {"c": lambda *_: True}), ["layer swap", "math expert", "c"])
    first, second = ([float(is_correct(None, None, i)) for i in range(6)] for is_correct in CORRECT.values())
    assert table.loc["layer swap", "math expert"] == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert list(table.index) == list(table.columns) == ["layer swap", "math expert", "c"]
    assert table["c"].isna().all()
