"""MSVAMP: problems from files laid out as published and from the hub's layout, and its worked solutions."""

import json
import os
import re
from fractions import Fraction

import pytest

from layerswap.analysis.error_analysis import equations, is_true
from layerswap.errors import UserError
from layerswap.run.profiles import find_task
from layerswap.tasks import MGSM, MSVAMP, Problem
from layerswap.tasks.msvamp import LANGUAGES, OPERATIONS, steps

ENGLISH = [
    (
        "julia played tag with 18 kids on monday and 10 on tuesday . how many more on monday ?",
        "- number0 number1",
        "8.0",
    ),
    ("there are 15 boys and 18 girls . if 7 leave how many are left ?", "- + number0 number1 number2", "26.0"),
]
SWAHILI = [
    "Julia alicheza na watoto 18 Jumatatu na 10 Jumanne. Ni wangapi zaidi?",
    "Wavulana 15, wasichana 18; 7 wanaondoka?",
]


def published_row(translation, question, equation, response):
    return {"query": question, "equation": equation, "response": response, "m_query": translation}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two problems in English and Swahili, and MGSM's exemplars in Swahili, as published."""
    (tmp_path / "msvamp").mkdir()
    write_rows(tmp_path / "msvamp/test_English.json", [published_row(row[0], *row) for row in ENGLISH])
    rows = [published_row(question, *row) for question, row in zip(SWAHILI, ENGLISH, strict=True)]
    write_rows(tmp_path / "msvamp/test_Swahili.json", rows)
    exemplars = {"1": {"q": "Swali: Roger ana mipira 5?", "a": "Jibu la Hatua kwa Hatua: 5 + 6 = 11. Jibu ni 11."}}
    (tmp_path / "mgsm").mkdir()
    content = json.dumps({"MGSM_EXEMPLARS": {"sw": exemplars}}, ensure_ascii=False)
    (tmp_path / "mgsm/exemplars.json").write_text(content, encoding="utf-8")
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    return tmp_path / "msvamp"


def test_published_files(folder):
    first, second = MSVAMP().problems("sw")
    assert first == Problem("msvamp-000", "sw", SWAHILI[0], None, 8) and second.id == "msvamp-001"
    assert [problem.number for problem in MSVAMP().problems("en")] == [8, 26]
    assert MSVAMP().problems("sw", limit=1) == [first]
    assert MSVAMP().worked_solutions([second, first]) == {
        "msvamp-001": "15 + 18 = 33 . 33 - 7 = 26", "msvamp-000": "18 - 10 = 8",
    }  # fmt: skip


def test_prompts_are_those_of_mgsm_with_its_exemplars(folder):
    task, mgsm = MSVAMP(), MGSM("local")
    problem = task.problems("sw")[1]
    for style in ("native_cot", "direct"):
        exemplars = task.exemplars("sw", 1, style)
        assert exemplars == mgsm.exemplars("sw", 1, style) and exemplars[0].number == 11
        prompt = task.prompt(problem, exemplars, style)
        assert prompt == mgsm.prompt(problem, exemplars, style)
        assert prompt.startswith("Swali: Roger ana mipira 5?") and SWAHILI[1] in prompt
    assert task.stops("sw", "native_cot") == mgsm.stops("sw", "native_cot")
    assert task.reference_text(problem, "native_cot") == " 26"


def test_the_last_200_problems_are_for_validation(folder):
    write_rows(folder / "test_English.json", [published_row(*ENGLISH[i % 2][:1], *ENGLISH[i % 2]) for i in range(1000)])
    validation = MSVAMP().problems("en", "validation")
    assert len(validation) == 200 and validation[0].id == "msvamp-800" and validation[-1].id == "msvamp-999"
    assert MSVAMP().n_test == 800 and MSVAMP().problems("en", "validation", limit=1) == validation[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "test_Swahili.json, row 3: m_query is None, expected text"),
        ('{"m_query": 5, "equation": "", "response": "1.0"}', "row 3: m_query is 5, expected text"),
        ('{"m_query": "?", "equation": "", "response": 1.0}', "row 3: response is 1.0, expected text"),
        ('{"m_query": "?", "response": "1.0"}', "row 3: equation is None, expected text"),
        ('{"m_query": "?", "equation": "", "response": "1.5"}', "row 3: answer '1.5', expected an integer"),
        ('{"m_query": "?", "equation": "", "response": "many"}', "row 3: answer 'many', expected an integer"),
        ('{"m_query": "?"', "test_Swahili.json"),
    ],
)
def test_malformed_rows_are_named(folder, line, message):
    with open(folder / "test_Swahili.json", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        MSVAMP().problems("sw")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MSVAMP().problems("te"), "^language 'te' is not in MSVAMP, expected one of bn, de, en, es, [^\n]*zh$"),
        (lambda: MSVAMP().exemplars("te", 1), "^language 'te' is not in MSVAMP"),
        (lambda: MSVAMP().problems("ja"), "test_Japanese.json"),
        (lambda: MSVAMP().problems("sw", "train"), "MSVAMP has no split 'train', expected test or validation"),
        (lambda: MSVAMP().exemplars("sw", 2), "2 exemplars are requested, sw has 1"),
        (lambda: MSVAMP("local"), "source is 'local', expected msvamp or a hub id such as Mathoctopus/MSVAMP@<commit>"),
        (lambda: MSVAMP("Mathoctopus/MSVAMP").problems("sw"), "expected Mathoctopus/MSVAMP@<commit>"),
    ],
)
def test_bad_input(folder, call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_names_of_tasks(folder):
    assert isinstance(find_task("msvamp"), MSVAMP) and find_task("msvamp").problems("sw") == MSVAMP().problems("sw")
    assert find_task("msvamp:Mathoctopus/MSVAMP@0123abc").source == "Mathoctopus/MSVAMP@0123abc"
    assert type(find_task("local")) is MGSM
    with pytest.raises(UserError, match="source is 'msvmap', expected lab, mgsm, rev2, msvamp"):
        find_task("msvmap")


def test_a_data_set_laid_out_like_that_of_the_hub(folder, tmp_path):
    expected = MSVAMP().problems("sw")
    solutions = MSVAMP().worked_solutions(expected)
    local = tmp_path / "hub"
    folder.rename(local)
    task = find_task(f"msvamp:{local}")
    assert task.problems("sw") == expected and task.worked_solutions(expected) == solutions
    assert task.exemplars("sw", 1) == MGSM("local").exemplars("sw", 1)
    with pytest.raises(UserError, match="test_Japanese.json cannot be loaded"):
        task.problems("ja")


@pytest.mark.parametrize(
    ("equation", "question", "expected"),
    [
        ("* number1 number0", "3 boxes of 1.5", "1.5 * 3 = 4.5"),
        ("/ number0 number1", "55 and 15", "55 / 15 = 3.66666666667"),
        ("* number0 number1", "302611 and 73", "302611 * 73 = 22090603"),
        ("- number0 - number1 number2", "9 and 5 and 2", "5 - 2 = 3 . 9 - 3 = 6"),
        ("number0", "8", None),
        ("/ number0 number1", "5 and 0", None),
        ("+ number0 number7", "5", None),
        ("+ number0", "5", None),
        ("+ number0 apples", "5", None),
    ],
)
def test_steps(equation, question, expected):
    assert steps(equation, question) == expected


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs MSVAMP as published")
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_published_data(language):
    task = MSVAMP()
    numbers = [problem.number for problem in task.problems("en")]
    problems = task.problems(language)
    assert [problem.number for problem in problems] == numbers and len(numbers) == 1000
    assert [problem.id for problem in problems] == [f"msvamp-{i:03d}" for i in range(1000)]
    exemplars = task.exemplars(language, 8)
    assert exemplars == MGSM("local").exemplars(language, 8) and len(exemplars) == 8
    assert task.prompt(problems[0], exemplars, "native_cot").count(problems[0].question) == 1


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs MSVAMP as published")
def test_all_worked_solutions_are_true():
    problems = MSVAMP().problems("sw")
    solutions = MSVAMP().worked_solutions(problems)
    assert [id for id, solution in solutions.items() if solution is None] == ["msvamp-944"]  # its number is in the text
    for problem in problems:
        if solution := solutions[problem.id]:
            assert all(map(is_true, equations(solution)))
            for equation in solution.split(" . "):
                left, symbol, right, result = re.fullmatch(r"(\S+) (\S) (\S+) = (\S+)", equation).groups()
                exact = OPERATIONS[symbol](Fraction(left), Fraction(right))
                assert abs(exact - Fraction(result)) < 1e-8
            assert Fraction(result) == problem.number
