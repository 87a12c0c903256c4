"""The lab's world: parallel, disjoint, solvable, and silent about what it must not tell."""

import re

import pytest
from transformers import PreTrainedTokenizerFast

from layerswap.errors import UserError
from layerswap.lab.world import (
    BASE,
    LANGUAGES,
    arithmetic_rows,
    build_tokenizer,
    load_language,
    make_problems,
    math_rows,
    render_prompt,
    text_rows,
)

TARGETS = [language for language in LANGUAGES if language != "en"]


def test_problems_are_parallel():
    english = make_problems("en", "test", 60)
    for language in TARGETS:
        for problem, translated in zip(english, make_problems(language, "test", 60), strict=True):
            assert (problem.id, problem.number, problem.answer) == (translated.id, translated.number, translated.answer)
            assert sorted(re.findall(r"\d+", problem.question)) == sorted(re.findall(r"\d+", translated.question))
            assert problem.question != translated.question


def test_splits_are_disjoint_and_distinct():
    split_of = {}
    for split in ("train", "validation", "test"):
        for seed in (0, 1):
            questions = [problem.question for problem in make_problems("en", split, 300, seed)]
            assert len(set(questions)) == 300
            for question in questions:
                assert split_of.setdefault(question, split) == split
    assert make_problems("sw", "test", 20) == make_problems("sw", "test", 30)[:20]


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_right(split):
    for problem in make_problems("sw", split, 300):
        equations = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", problem.answer)
        assert equations and problem.answer.endswith(f"#### {problem.number}")
        for a, sign, b, result in equations:
            assert eval(f"{a} {sign} {b}") == int(result)
        assert int(equations[-1][3]) == problem.number > 0
        assert {a for a, *_ in equations[:1]} <= set(re.findall(r"\d+", problem.question))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_in_the_vocabulary(language):
    tokenizer = build_tokenizer()
    rows = text_rows(language, 2000, 0, code_switched=0.5) + math_rows(200, 0) + arithmetic_rows(200, 0)
    text = " ".join(f"{row['prompt']}{row['completion']}" for row in rows)
    text += " " + " ".join(render_prompt(problem.question) for problem in make_problems(language, "test", 300))
    assert set(text.split()) - set(tokenizer.get_vocab()) == set()
    assert tokenizer.decode(tokenizer(rows[0]["completion"]).input_ids) == rows[0]["completion"].strip()


@pytest.mark.parametrize("language", TARGETS)
def test_language_files_agree(language):
    english, other = load_language("en"), load_language(language)
    for section in ("names", "objects", "boxes", "places", "gain", "lose", "sentences", "questions", "answers"):
        assert list(english[section]) == list(other[section]), section
    for section in ("names", "objects", "boxes", "places", "verb"):
        words = [entry["word"] for entry in other[section].values()]
        assert len(set(words)) == len(words), section
    for section, concepts in other["held_out"].items():
        assert 2 * len(concepts) == len(other[section]) and set(concepts) < set(other[section])


@pytest.mark.parametrize("language", TARGETS)
def test_held_out_words_are_held_out(language):
    data = load_language(language)
    hidden = {data[section][concept]["word"] for section, concepts in data["held_out"].items() for concept in concepts}
    text = {}
    for all_words in (False, True):
        rows = text_rows(language, 3000, 1, all_words)
        text[all_words] = " ".join(f"{row['prompt']}{row['completion']}" for row in rows)
    assert not hidden & set(text[False].split())
    assert hidden <= set(text[True].split())


@pytest.mark.parametrize("language", TARGETS)
def test_language_text_solves_nothing(language):
    for row in text_rows(language, 2000, 2):
        assert not {"####", "=", "+", "*"} & set(f"{row['prompt']} {row['completion']}".split())


def test_same_seed_same_text():
    assert text_rows("te", 50, 3) == text_rows("te", 50, 3) != text_rows("te", 50, 4)
    assert math_rows(50, 3) == math_rows(50, 3) != math_rows(50, 4)


def test_the_shipped_tokenizer_is_the_worlds():
    shipped = PreTrainedTokenizerFast.from_pretrained(BASE)
    assert shipped.get_vocab() == build_tokenizer().get_vocab()


def test_unknown_language():
    with pytest.raises(UserError, match="'xx' is unknown"):
        make_problems("xx", "test", 1)
