"""MGSM: problems, exemplars and prompts, from files laid out as published and from the hub's layout."""

import json
import os
from decimal import Decimal
from os.path import commonprefix

import pytest

from layerswap.errors import UserError
from layerswap.files import data_folder
from layerswap.tasks import MGSM, Extraction, Problem, extract
from layerswap.tasks.extraction import HEADERS, LANGUAGES

LOCAL = MGSM("local")


def write_exemplars(folder, exemplars):
    content = {"MGSM_EXEMPLARS": exemplars}
    (folder / "exemplars.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm/mgsm_te.tsv").write_text("అ\u200cఆ ఎన్ని?\t2,125\nరెండు?\t7\n", encoding="utf-8")
    exemplars = {
        str(i): {"q": f"ప్రశ్న: {i} మరియు 1?", "a": f"దశలవారీగా సమాధానం: {i} + 1 = {i + 1}. సమాధానం {i + 1}."} for i in (1, 2)
    }
    write_exemplars(tmp_path / "mgsm", {"te": exemplars})
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    return tmp_path / "mgsm"


def test_published_files(folder):
    first, second = LOCAL.problems("te")
    assert (first.number, second.number) == (2125, 7) and first.question == "అ\u200cఆ ఎన్ని?"
    assert LOCAL.problems("te", limit=1) == [first]


def test_prompts_of_a_language_share_their_exemplars(folder):
    exemplars = LOCAL.exemplars("te", 2)
    assert [exemplar.number for exemplar in exemplars] == [2, 3] and exemplars[0].question == "1 మరియు 1?"
    first, second = (LOCAL.prompt(problem, exemplars, "native_cot") for problem in LOCAL.problems("te"))
    prefix = first[: first.index("అ\u200cఆ")]
    assert second.startswith(prefix) and prefix.count("సమాధానం 2.") == 1 and first.endswith("దశలవారీగా సమాధానం:")
    direct = LOCAL.prompt(LOCAL.problems("te")[1], exemplars, "direct")
    assert direct.count("\nసమాధానం: 3\n\n") == 1 and direct.endswith("\nసమాధానం:")


def test_english_chains_of_thought_come_from_the_english_exemplars(folder):
    with pytest.raises(UserError, match="not the published exemplars of en"):
        LOCAL.exemplars("te", 1, "en_cot")
    published = json.loads((folder / "exemplars.json").read_text(encoding="utf-8"))["MGSM_EXEMPLARS"]
    english = {"q": "Question: 1?", "a": "Step-by-Step Answer: One more. The answer is 2."}
    write_exemplars(folder, published | {"en": {"1": english}})
    exemplars = LOCAL.exemplars("te", 1, "en_cot")
    solved, unsolved = LOCAL.prompt(LOCAL.problems("te")[1], exemplars, "en_cot").split("\n\n")
    assert solved == "ప్రశ్న: 1 మరియు 1?\nStep-by-Step Answer: One more. The answer is 2."
    assert unsolved == "ప్రశ్న: రెండు?\nStep-by-Step Answer:"
    english["a"] = "Step-by-Step Answer: The answer is 3."
    write_exemplars(folder, published | {"en": {"1": english}})
    with pytest.raises(UserError, match="exemplar-0 is 2 in te and 3 in en"):
        LOCAL.exemplars("te", 1, "en_cot")


def test_corrected_translations_take_the_published_exemplars(folder):
    with pytest.raises(UserError, match="mgsm_rev2: found 0 files"):
        MGSM("rev2").problems("te")
    (folder.parent / "mgsm_rev2").mkdir()
    (folder.parent / "mgsm_rev2/mgsm_rev2_te.tsv").write_text("మూడు?\t3\n", encoding="utf-8")
    assert [problem.number for problem in MGSM("rev2").problems("te")] == [3]
    assert MGSM("rev2").exemplars("te", 2) == LOCAL.exemplars("te", 2)


def test_a_chat_asks_in_the_problems_language(folder):
    problem = LOCAL.problems("te")[1]
    prompt = LOCAL.prompt(problem, [], "chat")
    assert prompt.endswith("\n\nరెండు?") and '"సమాధానం:"' in prompt and LOCAL.stops("te", "chat") == ()
    assert all("{}" in words["request"] for words in LANGUAGES.values())


def test_data_sets_laid_out_like_those_of_the_hub(tmp_path):
    test = [{"question": "అ\u200cఆ?", "answer": None, "answer_number": 2125}]
    train = [{"question": "ప్రశ్న: 1?", "answer": "దశలవారీగా సమాధానం: సమాధానం 2.", "answer_number": 2}]
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: te\n  data_files:\n  - split: train\n    path: te/train.jsonl\n"
        "  - split: test\n    path: te/test.jsonl\n---\n"
    )
    (tmp_path / "te").mkdir()
    for split, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "te" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    source = str(tmp_path)
    assert MGSM(source).problems("te") == [Problem("mgsm-000", "te", "అ\u200cఆ?", None, 2125)]
    assert MGSM(source).exemplars("te", 1) == [Problem("exemplar-0", "te", "1?", "సమాధానం 2.", 2)]
    with pytest.raises(UserError, match="test of sw cannot be loaded"):
        MGSM(source).problems("sw")


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs MGSM as published")
@pytest.mark.parametrize("language", HEADERS)
def test_the_published_data(language):
    numbers = [problem.number for problem in LOCAL.problems("en")]
    problems = LOCAL.problems(language)
    assert [problem.number for problem in problems] == numbers and len(numbers) == 250 and max(numbers) == 276000
    exemplars, english = LOCAL.exemplars(language, 8), LOCAL.exemplars("en", 8)
    assert [exemplar.number for exemplar in exemplars] == [exemplar.number for exemplar in english]
    assert len(exemplars) == 8
    stop = LOCAL.stops(language, "native_cot")
    for exemplar in [*exemplars, *LOCAL.exemplars(language, 8, "en_cot")]:
        assert extract(exemplar.answer, language, stop) == Extraction(Decimal(exemplar.number), "phrase")
        assert len(exemplar.answer) > 20 and not exemplar.answer.startswith(HEADERS[language][1].strip())
    raw = (data_folder() / "mgsm" / f"mgsm_{language}.tsv").read_bytes().decode()
    assert all(problem.question in raw for problem in problems)
    for style in ("native_cot", "en_cot", "direct"):
        exemplars = LOCAL.exemplars(language, 8, style)
        first, last = (LOCAL.prompt(problems[i], exemplars, style) for i in (0, -1))
        assert len(commonprefix([first, last])) >= len(first) - len(problems[0].question) - 80


@pytest.mark.skipif("LAYERSWAP_DATA" not in os.environ, reason="needs GSM8K as published")
def test_worked_solutions_are_those_of_gsm8k():
    problems = LOCAL.problems("sw")
    solutions = LOCAL.worked_solutions(problems)
    assert solutions["mgsm-000"].split() == "16 - 3 - 4 = 9 . 9 * 2 = 18 .".split()
    assert sum(solution is not None for solution in solutions.values()) > 240


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"one field\n", "line 1: found 1 fields"), (b"a\t1\nb\t2\t3\n", "line 2: found 3"), (b"\xff\t1\n", "utf-8"),
     (b"a\tmany\n", "row 1: answer 'many'"), (b"a\t1.5\n", "expected an integer"),
     (b"a\t\n", "line 1: found 1 fields"), (b"\t5\n", "line 1: found 1 fields")],
)  # fmt: skip
def test_malformed_files(folder, content, message):
    (folder / "mgsm_te.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        LOCAL.problems("te")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LOCAL.problems("xx"), "'xx' is not in MGSM"),
        (lambda: LOCAL.problems("sw"), "found 0 files"),
        (lambda: LOCAL.problems("te", "train"), "no split 'train'"),
        (lambda: LOCAL.problems("te", limit=0), "is 0, expected 1 or more"),
        (lambda: LOCAL.exemplars("te", 3), "3 exemplars are requested, te has 2"),
        (lambda: LOCAL.prompt(LOCAL.problems("te")[0], [], "cot"), "style is 'cot'"),
        (lambda: LOCAL.exemplars("te", 1, "cot"), "style is 'cot', expected one that MGSM has: native_cot"),
        (lambda: LOCAL.exemplars("te", 1, "chat"), "1 exemplars are requested, style chat takes 0"),
        (lambda: MGSM("juletxara/mgsm").problems("en"), "expected juletxara/mgsm@<commit>"),
        (lambda: MGSM("locla"), "source is 'locla', expected local, rev2 or a hub id"),
    ],
)
def test_bad_input(folder, call, message):
    with pytest.raises(UserError, match=message):
        call()
