"""The lab's world: parallel, disjoint, solvable, and silent about what it must not tell."""

import re

import pytest

from layerswap import lab
from layerswap.paths import LAB, UserError

TARGETS = [code for code in lab.LANGUAGES if code != "en"]


def test_problems_are_parallel():
    english = lab.problems("en", "test", 60)
    for code in TARGETS:
        for one, other in zip(english, lab.problems(code, "test", 60), strict=True):
            assert (one.id, one.number, one.answer) == (other.id, other.number, other.answer)
            assert sorted(re.findall(r"\d+", one.question)) == sorted(re.findall(r"\d+", other.question))
            assert one.question != other.question


def test_splits_are_disjoint_and_distinct():
    seen = {}
    for split in ("train", "validation", "test"):
        for seed in (0, 1):
            questions = [problem.question for problem in lab.problems("en", split, 300, seed)]
            assert len(set(questions)) == 300
            for question in questions:
                assert seen.setdefault(question, split) == split
    assert lab.problems("sw", "test", 20) == lab.problems("sw", "test", 30)[:20]


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_right(split):
    for problem in lab.problems("sw", split, 300):
        equations = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", problem.answer)
        assert equations and problem.answer.endswith(f"#### {problem.number}")
        for a, sign, b, result in equations:
            assert eval(f"{a} {sign} {b}") == int(result)
        assert int(equations[-1][3]) == problem.number > 0
        assert {a for a, *_ in equations[:1]} <= set(re.findall(r"\d+", problem.question))


@pytest.mark.parametrize("code", lab.LANGUAGES)
def test_every_word_is_in_the_vocabulary(code):
    known = lab.tokenizer().get_vocab()
    rows = lab.text_rows(code, 2000, 0, switched=0.5) + lab.math_rows(200, 0) + lab.arithmetic_rows(200, 0)
    text = " ".join(f"{row['prompt']}{row['completion']}" for row in rows)
    text += " " + " ".join(lab.prompt(p.question) for p in lab.problems(code, "test", 300))
    assert set(text.split()) - set(known) == set()
    tokenizer = lab.tokenizer()
    assert tokenizer.decode(tokenizer(rows[0]["completion"]).input_ids) == rows[0]["completion"].strip()


@pytest.mark.parametrize("code", TARGETS)
def test_language_files_agree(code):
    english, other = lab.language("en"), lab.language(code)
    for part in ("names", "objects", "boxes", "places", "gain", "lose", "sentences", "questions", "answers"):
        assert list(english[part]) == list(other[part]), part
    for part in ("names", "objects", "boxes", "places", "verb"):
        words = [entry["word"] for entry in other[part].values()]
        assert len(set(words)) == len(words), part
    for part, concepts in other["held_out"].items():
        assert 2 * len(concepts) == len(other[part]) and set(concepts) < set(other[part])


@pytest.mark.parametrize("code", TARGETS)
def test_held_out_words_are_held_out(code):
    data = lab.language(code)
    hidden = {data[part][concept]["word"] for part, concepts in data["held_out"].items() for concept in concepts}
    text = {}
    for all_words in (False, True):
        rows = lab.text_rows(code, 3000, 1, all_words)
        text[all_words] = " ".join(f"{row['prompt']}{row['completion']}" for row in rows)
    assert not hidden & set(text[False].split())
    assert hidden <= set(text[True].split())


@pytest.mark.parametrize("code", TARGETS)
def test_language_text_solves_nothing(code):
    for row in lab.text_rows(code, 2000, 2):
        assert not {"####", "=", "+", "*"} & set(f"{row['prompt']} {row['completion']}".split())


def test_same_seed_same_text():
    assert lab.text_rows("te", 50, 3) == lab.text_rows("te", 50, 3) != lab.text_rows("te", 50, 4)
    assert lab.math_rows(50, 3) == lab.math_rows(50, 3) != lab.math_rows(50, 4)


def test_the_shipped_tokenizer_is_the_worlds():
    shipped = lab.PreTrainedTokenizerFast.from_pretrained(LAB / "base")
    assert shipped.get_vocab() == lab.tokenizer().get_vocab()


def test_unknown_language():
    with pytest.raises(UserError, match="'xx' is unknown"):
        lab.problems("xx", "test", 1)
