"""The lab's world: parallel, disjoint, solvable, and silent about what it must not tell."""

import re

import pytest
from transformers import PreTrainedTokenizerFast

from layerswap.errors import UserError
from layerswap.lab import tokenizer as lab_tokenizer
from layerswap.lab.text import MATH_TASKS, text_rows
from layerswap.lab.tokenizer import UNKNOWN, build_tokenizer, learn_pieces
from layerswap.lab.world import (
    BASE,
    BASE_KINDS,
    LANGUAGES,
    LARGEST_NUMBER,
    MATH_KINDS,
    lexicon_words,
    load_language,
    make_problems,
    own_words,
    render_prompt,
    unknown_words,
)

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
TARGETS = [language for language in LANGUAGES if language != "en"]


def math_rows(n, seed):
    return text_rows("en", n, seed, tasks=MATH_TASKS)


def test_problems_are_parallel():
    english = make_problems("en", "test", 60)
    for language in TARGETS:
        for problem, translated in zip(english, make_problems(language, "test", 60), strict=True):
            assert (problem.id, problem.number) == (translated.id, translated.number)
            for text, other in ((problem.question, translated.question), (problem.answer, translated.answer)):
                assert sorted(re.findall(r"\d+", text)) == sorted(re.findall(r"\d+", other)) and text != other
            assert EQUATION.findall(problem.answer) == EQUATION.findall(translated.answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_solutions_are_in_the_language_of_the_question(language):
    """And tell a change in another form of its verb than the question does, so that copying is not enough."""
    others = set().union(*(own_words(other) for other in LANGUAGES if other != language))
    verbs = {entry["word"]: entry["base"] for entry in load_language(language)["verb"].values()}
    for problem in make_problems(language, "test", 100):
        words = set(problem.answer.split())
        assert words & own_words(language) and not words & others
        for verb, base in verbs.items():
            if f" {verb} " in problem.question:
                assert f" {base} " in problem.answer and f" {verb} " not in problem.answer


def test_splits_are_disjoint_and_distinct():
    split_of = {}
    for split in ("train", "validation", "test"):
        for seed in (0, 1):
            questions = [problem.question for problem in make_problems("en", split, 300, seed)]
            assert len(set(questions)) == 300
            for question in questions:
                assert split_of.setdefault(question, split) == split
    assert make_problems("sw", "test", 20) == make_problems("sw", "test", 30)[:20]


@pytest.mark.parametrize("kinds", [BASE_KINDS, MATH_KINDS])
def test_answers_are_right(kinds):
    for problem in make_problems("sw", "test", 300, kinds=kinds):
        equations = EQUATION.findall(problem.answer)
        assert len(equations) in ((2,) if kinds == MATH_KINDS else (1, 2)) and problem.answer.endswith(
            f"#### {problem.number}"
        )
        for a, sign, b, result in equations:
            assert eval(f"{a} {sign} {b}") == int(result) and 0 < int(result) <= LARGEST_NUMBER
        assert int(equations[-1][3]) == problem.number
        assert [a for a, *_ in equations[1:]] == [result for *_, result in equations[:-1]]
        assert equations[0][0] in re.findall(r"\d+", problem.question)


def test_what_is_asked_does_not_say_how_to_solve_it():
    """Every question of the kinds that mathematics SFT teaches is one of kinds that the base met."""
    questions = {
        problem_kind: make_problems("en", "test", 20, kinds=[problem_kind])[0].question.split(".")[-1].split()[-2:]
        for problem_kind in (*BASE_KINDS, *MATH_KINDS)
    }
    of_math, of_base = ({tuple(questions[name]) for name in kinds} for kinds in (MATH_KINDS, BASE_KINDS))
    assert of_math <= of_base


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_spelled(language):
    tokenizer = build_tokenizer()
    rows = text_rows(language, 1000, 0, code_switched=0.5) + text_rows(
        "en", 300, 0, tasks=MATH_TASKS | {"arithmetic": 1}
    )
    texts = [f"{row['prompt']}{row['completion']}" for row in rows]
    texts += [f"{render_prompt(p.question, language)} {p.answer}" for p in make_problems(language, "test", 200)]
    for ids, text in zip(tokenizer(texts).input_ids, texts, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("language", TARGETS)
def test_words_held_out_are_spelled_in_pieces_of_known_words(language):
    """No piece of them is untrained; English, names and the words of sentences are one piece each."""
    tokenizer = build_tokenizer()
    met = {piece for word in lexicon_words(language, met=True) for piece in tokenizer.tokenize(word)}
    for word in lexicon_words(language, met=False):
        pieces = tokenizer.tokenize(word)
        assert len(pieces) > 1 and set(pieces) <= met
    numbers = [str(i) for i in range(LARGEST_NUMBER + 1)]
    names = [str(name) for name in load_language(language)["names"].values()]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in ["apples", "bought", *numbers, *names])


def test_a_word_that_cannot_be_spelled_is_named(monkeypatch):
    words = {True: ["abc"], False: ["abd"]}
    monkeypatch.setattr(lab_tokenizer, "lexicon_words", lambda language, met: words[met])
    learn_pieces.cache_clear()
    with pytest.raises(UserError, match=r"sw\.yml: 'abd' has a character where no word known to the base has it"):
        learn_pieces("sw")
    assert UNKNOWN in build_tokenizer().get_vocab()


@pytest.mark.parametrize("language", TARGETS)
def test_language_files_agree(language):
    english, other = load_language("en"), load_language(language)
    for section in (
        "names",
        "objects",
        "boxes",
        "places",
        "things",
        "gain",
        "lose",
        "sentences",
        "questions",
        "answers",
        "notes",
    ):
        assert list(english[section]) == list(other[section]), section
    verbs = other["gain"] | other["lose"]
    for words in (*(other[section] for section in ("names", "objects", "boxes", "places", "things")), verbs):
        assert len({entry["word"] for entry in words.values()}) == len(words)
    n_held_out = {section: len(set(concepts) & set(other[section])) for section, concepts in other["held_out"].items()}
    assert n_held_out == {"gain": 2, "lose": 2, "objects": 3}


@pytest.mark.parametrize("language", TARGETS)
def test_held_out_words_are_held_out(language):
    data = load_language(language)
    hidden = {data[section][concept]["word"] for section, concepts in data["held_out"].items() for concept in concepts}
    text = {}
    for all_words in (False, True):
        rows = text_rows(language, 3000, 1, all_words)
        text[all_words] = " ".join(f"{row['prompt']}{row['completion']}" for row in rows)
    assert hidden <= unknown_words(language)
    assert not unknown_words(language) & set(text[False].split())
    assert hidden <= set(text[True].split())
    problems = make_problems(language, "test", 200)
    assert {unknown_words(language).isdisjoint(problem.question.split()) for problem in problems} == {True, False}


@pytest.mark.parametrize("language", TARGETS)
def test_language_text_solves_nothing(language):
    """An equation stands alone, never beside what it is about."""
    for row in text_rows(language, 2000, 2):
        words = f"{row['prompt']} {row['completion']}".split()
        assert "####" not in words
        assert not {"=", "*"} & set(words) or set(row["completion"]) <= set("0123456789+-*=. ")


def test_same_seed_same_text():
    assert text_rows("te", 50, 3) == text_rows("te", 50, 3) != text_rows("te", 50, 4)
    assert math_rows(50, 3) == math_rows(50, 3) != math_rows(50, 4)


def test_the_shipped_tokenizer_is_the_worlds():
    shipped = PreTrainedTokenizerFast.from_pretrained(BASE)
    assert shipped.get_vocab() == build_tokenizer().get_vocab()


def test_unknown_language():
    with pytest.raises(UserError, match="'xx' is unknown"):
        make_problems("xx", "test", 1)
