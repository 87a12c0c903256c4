"""Where answers fail: equations as Python evaluates them, operations and unknown words counted a second way."""

import json
import os
import random
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from layerswap import evaluate, failures, lab, mgsm
from layerswap.paths import LAB

TARGETS = [code for code in lab.LANGUAGES if code != "en"]
FAULTS = {"correct": True, "stop": "length", "value": None, "wrong_language": True, "text": "2 + 2 = 5"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty LAYERSWAP_DATA; GSM8K is read anew in the test, and after it."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    failures.gsm8k_test.cache_clear()
    yield tmp_path
    failures.gsm8k_test.cache_clear()


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
    found = failures.equations(text)
    assert found == [([Decimal(n) for n in numbers.split()], signs, Decimal(y)) for numbers, signs, y, _ in expected]
    assert [failures.holds(*each) for each in found] == [true for *_, true in expected]


@given(st.lists(st.integers(0, 999), min_size=2, max_size=5), st.data())
def test_equations_as_python_evaluates_them(numbers, drawn):
    signs = drawn.draw(st.lists(st.sampled_from("+-*"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    left = str(numbers[0]) + "".join(f" {sign} {n}" for sign, n in zip(signs, numbers[1:], strict=True))
    result = eval(left)
    assume(result > 0)
    for off in (0, 1, -1):
        for written in (f"{left} = {result + off}", f"{left.replace('*', '×')} = {result + off:,} ."):
            [found] = failures.equations(written)
            assert found == (numbers, "".join(signs), result + off)
            assert failures.holds(*found) == (off == 0)


@given(st.integers(0, 10**6), st.integers(1, 999), st.integers(0, 4))
def test_quotients_are_rounded_to_the_digits_written(a, b, digits):
    unit = Fraction(1, 10**digits)
    nearest = int(Fraction(a, b) / unit + Fraction(1, 2))  # of units, half up
    for off in (0, 1):
        result = Decimal(nearest + off).scaleb(-digits)
        [found] = failures.equations(f"{a} / {b} = {result:f}")
        assert failures.holds(*found) == (off == 0)


def test_the_labs_operations():
    problems = lab.problems("sw", "test", 200)
    found = failures.operations("lab", problems)
    assert list(found) == [problem.id for problem in problems]
    for problem in problems:
        assert found[problem.id] == "".join(word for word in problem.answer.split() if word in list("+-*/"))
        assert 1 <= len(found[problem.id]) == problem.answer.count("=")
        assert all(failures.holds(*each) for each in failures.equations(problem.answer))


def test_mgsms_operations_are_gsm8ks(data):
    solutions = [
        "It is 2*3=<<2*3=6>>6.\nThen <<6-1,000/500=4>>4.\n#### 4",
        "Half is <<.5*40=20>>20, all is $<<(20+1)*2=42>>42\n#### 42",
        "Another number: <<1+1=2>>2\n#### 3",
        "Not marked: 1 + 1 = 2\n#### 2",
        "Many: <<1000+1=1001>>1001\n#### 1,001",
    ]
    (data / "gsm8k").mkdir()
    lines = "".join(json.dumps({"question": "?", "answer": each}) + "\n" for each in solutions)
    (data / "gsm8k" / "test.jsonl").write_text(lines, encoding="utf-8")
    golds = [4, 42, 2, 2, 1001, 7]  # the sixth is beyond the file
    problems = [mgsm.Problem(f"mgsm-{i:03d}", "sw", "?", None, gold) for i, gold in enumerate(golds)]
    found = failures.operations("local", problems)
    assert found == dict(zip([p.id for p in problems], ["*-/", "*+*", None, None, "+", None], strict=True))
    assert failures.gsm8k_solutions(problems)["mgsm-002"] is None
    assert failures.operations("rev2", problems[1:2]) == {"mgsm-001": "*+*"}


@pytest.mark.parametrize("content", [None, "", "not json\n", '{"question": "?"}\n'])
def test_mgsms_operations_without_gsm8k(data, content):
    if content is not None:
        (data / "gsm8k").mkdir()
        (data / "gsm8k" / "test.jsonl").write_text(content)
    problems = [mgsm.Problem(f"mgsm-{i:03d}", "te", "?", None, 1) for i in range(3)]
    assert failures.operations("local", problems) == {"mgsm-000": None, "mgsm-001": None, "mgsm-002": None}


def test_mgsms_operations_without_a_data_folder(data, monkeypatch):
    monkeypatch.delenv("LAYERSWAP_DATA")
    assert failures.operations("local", [mgsm.Problem("mgsm-000", "te", "?", None, 1)]) == {"mgsm-000": None}


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs MGSM and GSM8K as published")
def test_the_published_operations():
    failures.gsm8k_test.cache_clear()
    found = failures.operations("local", mgsm.load("local", "sw"))
    assert len(found) == 250 and sum(signs is not None for signs in found.values()) >= 230
    assert (found["mgsm-000"], found["mgsm-001"]) == ("--*", "/+")


def test_kinds_in_their_order():
    known, unknown = (next(p for p in lab.problems("sw", "test", 50) if lab.has_unknown(p.question, "sw") == is_so)
                      for is_so in (False, True))  # fmt: skip
    cures = [{"correct": False}, {"stop": "eos"}, {"value": "5"}, {"wrong_language": False}, {"text": "2 + 3 = 5"}]
    answer, found = dict(FAULTS), []
    for cure in [{}, *cures]:
        answer |= cure
        found.append(failures.kind(SimpleNamespace(**answer), unknown, "*", "lab"))
    found += [failures.kind(SimpleNamespace(**answer), known, signs, "lab") for signs in ("*", "+")]
    found.append(failures.kind(SimpleNamespace(**answer), unknown, "+", "local"))  # the lab alone knows
    assert found == [*failures.KINDS, "other"]


@pytest.mark.parametrize(
    ("fields", "signs", "expected"),
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
def test_kinds_of_rows(fields, signs, expected):
    fine = {"correct": False, "stop": "eos", "value": "7", "wrong_language": False, "text": "4 + 3 = 7"}
    rows = pd.DataFrame([dict.fromkeys(evaluate.COLUMNS) | fine | fields, dict.fromkeys(evaluate.COLUMNS) | fine])
    rows = rows.astype({"value": "str", "answer_language": "str"})  # as evaluate gives them
    problem = mgsm.Problem("mgsm-000", "sw", "?", None, 5)
    assert failures.kind(next(rows.itertuples()), problem, signs, "local") == expected


@pytest.mark.parametrize("code", lab.LANGUAGES)
def test_unknown_words_are_those_held_out(code):
    held_out = yaml.safe_load((LAB / f"{code}.yml").read_text(encoding="utf-8")).get("held_out", {})
    held_out = {part: set(concepts) for part, concepts in held_out.items()}
    of_verbs = held_out.get("gain", set()) | held_out.get("lose", set())
    rng, drawn, problems = random.Random("test-0"), {}, lab.problems(code, "test", 200)
    while len(drawn) < 200:
        facts, question, _, number = lab.draw_from_split(rng, lab.vocabulary("en", True), "test")
        concepts = [(slot, value) for _, slots in [*facts, question] for slot, value in slots.items() if slot != "n"]
        new = any(c in (of_verbs if s == "verb" else held_out.get(lab.CATEGORY[s], ())) for s, c in concepts)
        drawn.setdefault(repr((facts, question)), (number, new))
    assert [number for number, _ in drawn.values()] == [problem.number for problem in problems]
    expected = [new for _, new in drawn.values()]
    assert [lab.has_unknown(problem.question, code) for problem in problems] == expected
    assert [failures.unknown("lab", problem) for problem in problems] == expected
    assert not any(failures.unknown("local", problem) for problem in problems)
    assert (0 < sum(expected) < 200) if code in TARGETS else not any(expected)


@pytest.mark.parametrize("text", ["1 + " * 500, "1 x " * 500, "9" * 2000, "5 xx" * 500, "1 a " * 500, "1," * 500])
def test_repeated_text_ends(text):
    assert failures.equations(text) == []
