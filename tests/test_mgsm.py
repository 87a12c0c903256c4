"""Extraction case by case, prompts, and the published file format."""

import json
from decimal import Decimal

import pytest

from layerswap import mgsm
from layerswap.paths import UserError

CASES = [
    ("5 + 3 = 8 . #### 8", "sw", 8),
    ("#### 2,125", "en", 2125),
    ("#### -3", "te", -3),
    ("x #### 4\n#### 5", "en", 5),
    ("The answer is 18.0.", "en", 18),
    ("The answer is 1.8.", "en", "1.8"),
    ("The answer is -18.", "en", -18),
    ("So it is 18 dollars...", "en", 18),
    ("The answer is 18 dollars Q.E.D...", "en", 18),
    ("The answer is 18, as 3 are left.", "en", 18),
    ("The answer is $18.", "en", 18),
    ("The answer is **18**", "en", 18),
    (r"The answer is \boxed{18}", "en", 18),
    ("The answer is 70 000.", "en", 70000),
    ("Die Antwort lautet 18,00.", "de", 18),
    ("Antwort: 70.000", "de", 70000),
    ("La respuesta es 1.234,5.", "es", "1234.5"),
    ("Réponse: 70 000", "fr", 70000),
    ("La réponse est 70\u202f000.", "fr", 70000),
    ("Ответ — 18.", "ru", 18),
    ("答案是18。", "zh", 18),
    ("答案是 18 美元。", "zh", 18),
    ("答案：１８", "zh", 18),
    ("答えは18個です。", "ja", 18),
    ("答えは１，０００円です。", "ja", 1000),
    ("উত্তর: ১৮", "bn", 18),
    ("উত্তর হল 11।", "bn", 11),
    ("సమాధానం: ౧౮", "te", 18),
    ("సమాధానం 39.", "te", 39),
    ("คำตอบคือ 7", "th", 7),
    ("คำตอบคือ ๗", "th", 7),
    ("Jibu ni 39.", "sw", 39),
    ("১৮", "bn", 18),
    ("Answer: 18 (see step 3)", "en", 18),
    ("Answer: 18\n(5 apples left)", "en", 18),
    ("12,34,567", "te", 1234567),
    ("It costs 18.50", "en", "18.5"),
    ("The answer is \u22125", "en", -5),
    ("10-3=7", "en", 7),
    ("50%", "en", 50),
    ("€1,000,000", "en", 1000000),
    ("3, 4 and 5", "en", 5),
    ("1,23", "de", "1.23"),
    ("3.000", "de", 3000),
    ("3.000", "en", 3),
    ("no number", "en", None),
    ("", "ja", None),
    ("first 3\nthen nothing", "en", 3),
]


@pytest.mark.parametrize(("text", "language", "value"), CASES)
def test_extract(text, language, value):
    expected = None if value is None else Decimal(str(value))
    assert mgsm.extract(text, language).value == expected


def test_text_after_a_stop_string_does_not_count():
    assert mgsm.extract("The answer is 4.\n\nQuestion: 7", "en", ("\n\n",)).value == 4


def test_rules_are_told():
    rules = [mgsm.extract(text, "sw").rule for text in ("#### 1", "Jibu ni 1", "ni 1", "hakuna")]
    assert rules == ["mark", "phrase", "last number", "none"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm/mgsm_te.tsv").write_text("అ\u200cఆ ఎన్ని?\t2,125\nరెండు?\t7\n", encoding="utf-8")
    shots = {
        str(i): {"q": f"ప్రశ్న: {i} మరియు 1?", "a": f"దశలవారీగా సమాధానం: {i} + 1 = {i + 1}. సమాధానం {i + 1}."} for i in (1, 2)
    }
    content = {"MGSM_EXEMPLARS": {"te": shots}}
    (tmp_path / "mgsm/exemplars.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    return tmp_path / "mgsm"


def test_published_files(folder):
    first, second = mgsm.load("local", "te")
    assert (first.number, second.number) == (2125, 7) and first.question == "అ\u200cఆ ఎన్ని?"
    assert mgsm.load("local", "te", limit=1) == [first]


def test_prompts_of_a_language_share_their_exemplars(folder):
    shots = mgsm.exemplars("local", "te", 2)
    assert [shot.number for shot in shots] == [2, 3] and shots[0].question == "1 మరియు 1?"
    one, two = (mgsm.prompt(problem, shots, "native_cot") for problem in mgsm.load("local", "te"))
    shared = one[: one.index("అ\u200cఆ")]
    assert two.startswith(shared) and shared.count("సమాధానం 2.") == 1 and one.endswith("దశలవారీగా సమాధానం:")
    assert mgsm.prompt(mgsm.load("local", "te")[1], shots, "direct").count("సమాధానం: 3\n\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"one field\n", "line 1: found 1 fields"), (b"a\t1\nb\t2\t3\n", "line 2: found 3"), (b"\xff\t1\n", "utf-8"),
     (b"a\tmany\n", "row 1: answer 'many'"), (b"a\t1.5\n", "expected an integer")],
)  # fmt: skip
def test_malformed_files(folder, content, message):
    (folder / "mgsm_te.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        mgsm.load("local", "te")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mgsm.load("local", "xx"), "'xx' is not in MGSM"),
        (lambda: mgsm.load("local", "sw"), "mgsm_sw.tsv"),
        (lambda: mgsm.load("local", "te", "train"), "no split 'train'"),
        (lambda: mgsm.load("local", "te", limit=0), "is 0, expected 1 or more"),
        (lambda: mgsm.exemplars("local", "te", 3), "3 exemplars asked for, te has 2"),
        (lambda: mgsm.prompt(mgsm.load("local", "te")[0], [], "cot"), "style is 'cot'"),
        (lambda: mgsm.load("locla", "en"), "source is 'locla', expected lab, local or a hub id"),
        (lambda: mgsm.exemplars("locla", "en", 1), "source is 'locla', expected lab, local or a hub id"),
    ],
)
def test_bad_input(folder, call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "language", "scores"),  # as peers' tables and lm-eval itself say; benchmarks/extraction.py asks it
    [
        ("The answer is 18.", "en", (True, True)),
        ("The answer is 18.0.", "en", (False, False)),
        ("The answer is 1.8.", "en", (True, True)),
        ("The answer is -18.", "en", (True, True)),
        ("The answer is 18 dollars...", "en", (True, False)),
        ("The answer is 18, as 3 are left.", "en", (True, False)),
        ("The answer is $18.", "en", (False, True)),
        ("উত্তর হল 18।", "bn", (False, True)),
        ("答えは18個です。", "ja", (False, True)),
        ("答えは18です。", "ja", (True, True)),
        ("Jibu ni 18.", "sw", (True, True)),
        ("১৮", "bn", (False, False)),
        ("", "te", (False, False)),
    ],
)
def test_lm_evals_scores(text, language, scores):
    assert mgsm.lm_eval_scores(text, language, 18) == scores
