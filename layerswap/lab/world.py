"""The lab: a small multilingual world in which layer swapping can be watched from end to end on a laptop.

English, Swahili, Telugu, Bengali and Japanese describe the same facts with words and word order of their own (one
YAML file a language under ``data``), spelled in pieces of words as real tokenizers do. Word problems have the shape of
MGSM with native chains of thought (question, step-by-step answer in the question's language, integer) and are parallel
across languages. The base model has never met the words that a language file lists as ``held_out``; of some kinds of
problems it has met a few that were solved, in each language. A math expert learns other kinds, in English alone; a
language expert learns all words of its language and solves nothing.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from layerswap.errors import UserError
from layerswap.tasks.base import OPERATIONS, Problem

DATA = Path(__file__).with_name("data")
BASE = DATA / "base"  # the base model's folder
BASE_LANGUAGES = ("en", "sw", "te", "bn", "ja")  # of the shipped base, in the order of its vocabulary
LANGUAGES = (*BASE_LANGUAGES, *sorted({path.stem for path in DATA.glob("*.yml")} - {*BASE_LANGUAGES}))
CATEGORY = {
    "name": "names", "other": "names", "obj": "objects", "box": "boxes", "place": "places", "thing": "things",
    "verb": "verb",
}  # fmt: skip
LEXICON = ("names", "objects", "boxes", "places", "things", "gain", "lose")  # sections with words to draw from
# Kinds of problems that the base model meets: of one step, and one of two, without which it never goes on after a step.
BASE_KINDS = ("gain", "lose", "boxes", "more", "fewer", "both", "change_both", "boxes_both", "compare_both")
MATH_KINDS = ("change_change", "boxes_change", "compare_change")  # of two steps; only mathematics SFT teaches them
LARGEST_NUMBER = 24  # numbers are 2-12, those of a change 2-6; products reach 18, and 6 may be added
GRAMMAR_FORMS = ("counter", "how")  # forms of an entry that are words of grammar
SPLIT_BUCKETS = {"test": 0, "validation": 1}  # all other buckets of the problem space belong to training

Sentence = tuple[str, dict[str, Any]]  # a template's name, and its slots: slot -> concept, or n -> int
Words = Mapping[str, Sequence[str]]  # category -> concepts to draw from


class DrawnProblem(NamedTuple):
    """A problem before any language: facts that its question is about come after those that do not count."""

    facts: list[Sentence]
    question: Sentence
    steps: list[tuple[int, str]]  # how many of the facts that count an equation needs, and the equation
    number: int


class Entry(dict[str, str]):
    """A lexicon entry, form -> text; prints as its form ``word``."""

    def __str__(self) -> str:
        return self["word"]


@cache
def load_language(language: str) -> dict[str, Any]:
    """The language file of a code, with every lexicon entry as an ``Entry``. UserError for an unknown code."""
    path = DATA / f"{language}.yml"
    if language not in LANGUAGES or not path.is_file():
        raise UserError(f"lab language {language!r} is unknown, expected one of {', '.join(LANGUAGES)}")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    for category in LEXICON:
        data[category] = {
            concept: Entry(forms if isinstance(forms, dict) else {"word": forms})
            for concept, forms in data[category].items()
        }
    # A noun in a verb's place: nobody can know its sign but from a note.
    nonce = {f"{concept} {sign}": Entry(entry, base=entry["word"])
             for concept, entry in data["things"].items() for sign in "+-"}  # fmt: skip
    data["verb"] = data["gain"] | data["lose"] | nonce
    answers = {f"a_{name}": template for name, template in data["answers"].items()}
    notes = {f"n_{name}": template for name, template in data["notes"].items()}
    data["templates"] = data["sentences"] | data["questions"] | answers | notes
    return data


def render(
    language: str, template: str, slots: Mapping[str, Any],
    switch_rng: random.Random | None = None, switch_rate: float = 0.0,
) -> str:  # fmt: skip
    """One sentence: a template of the language with its slots filled.

    With ``switch_rng`` each word is replaced by its English one with probability ``switch_rate`` (code-switching);
    other forms stay in the language.
    """
    texts: dict[str, Any] = {}
    for slot, value in slots.items():
        if slot == "n":
            texts[slot] = value
            continue
        texts[slot] = load_language(language)[CATEGORY[slot]][value]
        if switch_rng and switch_rng.random() < switch_rate:
            texts[slot] = Entry(texts[slot], word=load_language("en")[CATEGORY[slot]][value]["word"])
    if "verb" in slots:  # a note marks a change by its sign, the same in every language
        texts["sign"] = sign_of(language, slots["verb"])
    return load_language(language)["templates"][template].format(**texts)


def sign_of(language: str, verb: str) -> str:
    """Whether a verb says that something became more ("+") or less ("-")."""
    data = load_language(language)
    return "+" if verb in data["gain"] else "-" if verb in data["lose"] else verb[-1]


def concepts(language: str, all_words: bool) -> dict[str, list[str]]:
    """Concepts to draw from: all of them, or only those whose words the base model has met in the language."""
    data = load_language(language)
    held_out = {} if all_words else data["held_out"]
    return {
        category: [concept for concept in data[category] if concept not in held_out.get(category, ())]
        for category in LEXICON
    }


def draw_problem(rng: random.Random, words: Words, kinds: Sequence[str] = MATH_KINDS) -> DrawnProblem:
    """A random problem of one of the kinds."""
    while True:
        name, other = rng.sample(words["names"], 2)
        obj, box = rng.choice(words["objects"]), rng.choice(words["boxes"])
        problem_kind = rng.choice(kinds)
        # The last change is more often a loss: whoever only adds up the numbers is right in a minority of problems.
        change_signs = [{"gain": "+", "lose": "-"}.get(problem_kind, rng.choice("+-")), rng.choice("+---")]
        first_verb, second_verb = (rng.choice(words["gain" if sign == "+" else "lose"]) for sign in change_signs)
        in_boxes = problem_kind.startswith("boxes")
        a, b, c = rng.randint(2, 3 if in_boxes else 12), rng.randint(2, 6), rng.randint(2, 6)
        compare = problem_kind if problem_kind in ("more", "fewer") else rng.choice(("more", "fewer"))
        compare_sign = "+" if compare == "more" else "-"
        own, others, pair = (
            {"name": name, "obj": obj},
            {"name": other, "obj": obj},
            {"name": name, "other": other, "obj": obj},
        )
        have, other_has = ("have", own | {"n": a}), ("have", others | {"n": b})
        change, compared = ("verb", own | {"verb": first_verb, "n": b}), (compare, pair | {"n": b})
        boxes = [("boxes", {"name": name, "box": box, "n": a}), ("each", {"box": box, "obj": obj, "n": b})]
        second, others_change = (("verb", who | {"verb": second_verb, "n": c}) for who in (own, others))
        problems: dict[str, tuple[list[Sentence], Sentence, list[tuple[int, str, int]]]] = {
            "gain": ([have, change], ("now", own), [(2, "+", b)]),
            "lose": ([have, change], ("now", own), [(2, "-", b)]),
            "boxes": (boxes, ("in_all", own), [(2, "*", b)]),
            "more": ([have, compared], ("how", pair), [(2, "+", b)]),
            "fewer": ([have, compared], ("how", pair), [(2, "-", b)]),
            "both": ([have, other_has], ("both", pair), [(2, "+", b)]),
            "change_change": ([have, change, second], ("now", own), [(2, change_signs[0], b), (3, change_signs[1], c)]),
            "boxes_change": ([*boxes, second], ("now", own), [(2, "*", b), (3, change_signs[1], c)]),
            "compare_change": (
                [have, compared, others_change],
                ("how", pair),
                [(2, compare_sign, b), (3, change_signs[1], c)],
            ),
            "change_both": (
                [have, change, ("have", others | {"n": c})],
                ("both", pair),
                [(2, change_signs[0], b), (3, "+", c)],
            ),
            "boxes_both": ([*boxes, ("have", others | {"n": c})], ("both", pair), [(2, "*", b), (3, "+", c)]),
            "compare_both": ([have, compared], ("both", pair), [(2, compare_sign, b), (2, "+", a)]),
            "both_change": ([have, other_has, second], ("both", pair), [(2, "+", b), (3, change_signs[1], c)]),
        }
        facts, question, operations = problems[problem_kind]
        numbers, steps = [a], []
        for n_facts, sign, operand in operations:
            numbers.append(OPERATIONS[sign](numbers[-1], operand))
            steps.append((n_facts, f"{numbers[-2]} {sign} {operand} = {numbers[-1]}"))
        if not 0 < min(numbers) <= max(numbers) <= LARGEST_NUMBER or (
            problem_kind == "change_change" and first_verb == second_verb
        ):
            continue
        if rng.random() < 0.2:
            facts = [("went", {"name": name, "place": rng.choice(words["places"])}), *facts]
        return DrawnProblem(facts, question, steps, numbers[-1])


def split_bucket(facts: Sequence[Sentence], question: Sentence) -> int:
    """The tenth (0..9) of the problem space that a problem belongs to, which keeps the splits disjoint."""
    return zlib.crc32(repr((facts, question)).encode()) % 10


def draw_from_split(rng: random.Random, words: Words, split: str, kinds: Sequence[str] = MATH_KINDS) -> DrawnProblem:
    """The next random problem of a split ("train", "validation" or "test")."""
    while True:
        problem = draw_problem(rng, words, kinds)
        bucket = split_bucket(problem.facts, problem.question)
        if bucket == SPLIT_BUCKETS[split] if split in SPLIT_BUCKETS else bucket not in SPLIT_BUCKETS.values():
            return problem


def make_problems(language: str, split: str, n: int, seed: int = 0, kinds: Sequence[str] = MATH_KINDS) -> list[Problem]:
    """Distinct problems of a split: the same ones, in the same order, in every language.

    Words are drawn from the whole vocabulary. Splits share no problem whatever the seeds (see ``split_bucket``).

    Args:
        language: a code of ``LANGUAGES``.
        split: "train", "validation" or "test".
        n: how many; the first of a longer list are those of a shorter one.
        seed: of the random draws.
        kinds: of ``MATH_KINDS`` and ``BASE_KINDS``.

    Returns:
        Problems with the same ``id`` in every language, the worked answer in the question's language as ``answer`` and
        the integer it ends in as ``number``.

    Raises:
        UserError: an unknown language.
    """
    rng, keys = random.Random(f"{split}-{seed}"), set()
    problems: list[Problem] = []
    while len(problems) < n:
        drawn_problem = draw_from_split(rng, concepts("en", True), split, kinds)
        key = repr((drawn_problem.facts, drawn_problem.question))
        if key in keys:
            continue
        keys.add(key)
        text = " ".join(render(language, *sentence) for sentence in [*drawn_problem.facts, drawn_problem.question])
        solution = render_solution(language, drawn_problem)
        problems.append(Problem(f"{split}-{len(problems):04d}", language, text, solution, drawn_problem.number))
    return problems


def lexicon_words(language: str, met: bool) -> list[str]:
    """The spelled words of a language's lexicon that the base model meets, or those that it does not, sorted.

    Names, counters and the words of sentences are whole, as are all English words.
    """
    data = load_language(language)
    return sorted(
        {
            word
            for category in LEXICON
            if category != "names"
            for concept, entry in data[category].items()
            if met == (concept not in data["held_out"].get(category, ()))
            for form, text in entry.items()
            if form not in GRAMMAR_FORMS
            for word in text.split()
        }
    )


def whole_words(language: str) -> list[str]:
    """The words of a language that are one token each."""
    data = load_language(language)
    words = [word for template in data["templates"].values() for word in template.split() if "{" not in word]
    for category in LEXICON:
        for entry in data[category].values():
            for form, text in entry.items():
                if language == "en" or category == "names" or form in GRAMMAR_FORMS:
                    words += text.split()
    return words


@cache
def unknown_words(language: str) -> set[str]:
    """The forms in a language that only words have which the base model has never met."""
    return {*lexicon_words(language, met=False)} - {*lexicon_words(language, met=True)}


@cache
def own_words(language: str) -> set[str]:
    """The words of a language, of its sentences and of its lexicon, that no other language has."""

    def words_of(language: str) -> set[str]:
        return {*whole_words(language), *lexicon_words(language, met=True), *lexicon_words(language, met=False)}

    return words_of(language).difference(*(words_of(other) for other in LANGUAGES if other != language))


def render_solution(language: str, problem: DrawnProblem) -> str:
    """The step-by-step answer in a language (MGSM's native_cot), its number after GSM8K's mark ####.

    Each fact that counts is noted in other words than the question's, and after it stand the equations that it makes
    possible.
    """
    counting = [fact for fact in problem.facts if fact[0] != "went"]
    sentences = []
    for i, fact in enumerate(counting, 1):
        sentences.append(render_note(language, fact))
        sentences += [f"{equation} ." for n_facts, equation in problem.steps if n_facts == i]
    return " ".join([*sentences, f"#### {problem.number}"])


def render_note(language: str, fact: Sentence) -> str:
    """A fact as a solution tells it: shorter, its verb in another form, a change with its sign."""
    template, slots = fact
    return render(language, f"n_{template}", slots)


def render_prompt(question: str, reply_language: str) -> str:
    """The prompt of a problem: a turn mark, the question, and the language to reply in."""
    return f"<user> {question} <{reply_language}>"
