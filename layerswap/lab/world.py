"""The lab: a small multilingual world in which layer swapping can be watched from end to end on a laptop.

English, Swahili, Telugu, Bengali and Japanese describe the same facts with words and word order of their own (one
YAML file a language under ``data``). Word problems have the shape of MGSM (question, step-by-step answer, integer)
and are parallel across languages. The base model has never met the words that a language file lists as ``held_out``
and has seen solved problems in English only; a language expert learns all words of its language and no mathematics.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from layerswap.errors import UserError
from layerswap.tasks.base import OPERATIONS, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).with_name("data")
BASE = DATA / "base"  # the base model's folder
BASE_LANGUAGES = ("en", "sw", "te", "bn", "ja")  # of the shipped base, in the order of its vocabulary
LANGUAGES = (*BASE_LANGUAGES, *sorted({path.stem for path in DATA.glob("*.yml")} - {*BASE_LANGUAGES}))
CATEGORY = {"name": "names", "other": "names", "obj": "objects", "box": "boxes", "place": "places", "verb": "verb"}
PROBLEM_KINDS = ("gain", "lose", "gain_lose", "boxes", "boxes_gain", "more", "fewer", "both")
LARGEST_NUMBER = 110  # numbers are 2-20; products of 2-10 reach 100, and up to 10 may be added
LANGUAGE_TASKS = {"scene": 0.35, "qa": 0.30, "translation": 0.35}  # what a language expert is trained on
SPLIT_BUCKETS = {"test": 0, "validation": 1}  # all other buckets of the problem space belong to training

Sentence = tuple[str, dict[str, Any]]  # a template's name, and its slots: slot -> concept, or n -> int
Words = Mapping[str, Sequence[str]]  # category -> concepts to draw from
DrawnProblem = tuple[list[Sentence], Sentence, list[str], int]  # facts, question, equations, number


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
    for category in ("names", "objects", "boxes", "places", "gain", "lose"):
        data[category] = {
            concept: Entry(forms if isinstance(forms, dict) else {"word": forms})
            for concept, forms in data[category].items()
        }
    data["verb"] = data["gain"] | data["lose"]
    answers = {f"a_{name}": template for name, template in data["answers"].items()}
    data["templates"] = data["sentences"] | data["questions"] | answers
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
    return load_language(language)["templates"][template].format(**texts)


def concepts(language: str, all_words: bool) -> dict[str, list[str]]:
    """Concepts to draw from: all of them, or only those whose words the base model has met in the language."""
    data = load_language(language)
    held_out = {} if all_words else data["held_out"]
    return {
        category: [concept for concept in data[category] if concept not in held_out.get(category, ())]
        for category in ("names", "objects", "boxes", "places", "gain", "lose")
    }


def draw_problem(rng: random.Random, words: Words) -> DrawnProblem:
    """A random problem as (facts, question, equations, number)."""
    name, other = rng.sample(words["names"], 2)
    obj, box = rng.choice(words["objects"]), rng.choice(words["boxes"])
    gain, lose = rng.choice(words["gain"]), rng.choice(words["lose"])
    problem_kind = rng.choice(PROBLEM_KINDS)
    a, b, c = (rng.randint(2, 10 if problem_kind.startswith("boxes") else 20) for _ in range(3))
    own, pair = {"name": name, "obj": obj}, {"name": name, "other": other, "obj": obj}
    have, gained = ("have", own | {"n": a}), ("verb", own | {"verb": gain, "n": b})
    lost, in_box = ("verb", own | {"verb": lose, "n": c}), ("each", {"box": box, "obj": obj, "n": b})
    boxes, added = ("boxes", {"name": name, "box": box, "n": a}), ("verb", own | {"verb": gain, "n": c})
    problems: dict[str, tuple[list[Sentence], Sentence, list[tuple[str, int]]]] = {
        "gain": ([have, gained], ("now", own), [("+", b)]),
        "lose": ([have, lost], ("now", own), [("-", c)]),
        "gain_lose": ([have, gained, lost], ("now", own), [("+", b), ("-", c)]),
        "boxes": ([boxes, in_box], ("in_all", own), [("*", b)]),
        "boxes_gain": ([boxes, in_box, added], ("now", own), [("*", b), ("+", c)]),
        "more": ([have, ("more", pair | {"n": b})], ("how", pair), [("+", b)]),
        "fewer": ([have, ("fewer", pair | {"n": b})], ("how", pair), [("-", b)]),
        "both": ([have, ("have", {"name": other, "obj": obj, "n": b})], ("both", pair), [("+", b)]),
    }
    facts, question, operations = problems[problem_kind]
    number, equations = a, []
    for sign, operand in operations:
        result = OPERATIONS[sign](number, operand)
        equations.append(f"{number} {sign} {operand} = {result}")
        number = result
    if number <= 0:
        return draw_problem(rng, words)
    if rng.random() < 0.3:
        facts = [("went", {"name": name, "place": rng.choice(words["places"])}), *facts]
    return facts, question, equations, number


def split_bucket(facts: Sequence[Sentence], question: Sentence) -> int:
    """The tenth (0..9) of the problem space that a problem belongs to, which keeps the splits disjoint."""
    return zlib.crc32(repr((facts, question)).encode()) % 10


def draw_from_split(rng: random.Random, words: Words, split: str) -> DrawnProblem:
    """The next random problem of a split ("train", "validation" or "test")."""
    while True:
        facts, question, equations, number = draw_problem(rng, words)
        bucket = split_bucket(facts, question)
        if bucket == SPLIT_BUCKETS[split] if split in SPLIT_BUCKETS else bucket not in SPLIT_BUCKETS.values():
            return facts, question, equations, number


def make_problems(language: str, split: str, n: int, seed: int = 0) -> list[Problem]:
    """Distinct problems of a split: the same ones, in the same order, in every language.

    Words are drawn from the whole vocabulary. Splits share no problem whatever the seeds (see ``split_bucket``).

    Args:
        language: a code of ``LANGUAGES``.
        split: "train", "validation" or "test".
        n: how many; the first of a longer list are those of a shorter one.
        seed: of the random draws.

    Returns:
        Problems with the same ``id`` in every language, the worked answer in English as ``answer`` and the integer it
        ends in as ``number``.

    Raises:
        UserError: an unknown language.
    """
    rng, keys = random.Random(f"{split}-{seed}"), set()
    problems: list[Problem] = []
    while len(problems) < n:
        facts, question, equations, number = draw_from_split(rng, concepts("en", True), split)
        key = repr((facts, question))
        if key in keys:
            continue
        keys.add(key)
        text = " ".join(render(language, *sentence) for sentence in [*facts, question])
        solution = render_solution(facts, equations, number)
        problems.append(Problem(f"{split}-{len(problems):04d}", language, text, solution, number))
    return problems


@cache
def unknown_words(language: str) -> set[str]:
    """The forms in a language that only words have which the base model has never met."""
    data = load_language(language)
    met_forms: set[str] = set()
    held_out_forms: set[str] = set()
    for category in set(CATEGORY.values()) - {"verb"} | {"gain", "lose"}:
        for concept, entry in data[category].items():
            is_held_out = concept in data["held_out"].get(category, ())
            (held_out_forms if is_held_out else met_forms).update(entry.values())
    return held_out_forms - met_forms


def has_unknown(question: str, language: str) -> bool:
    """Whether a problem's text has a word that the base model has never met in the language."""
    return any(f" {form} " in f" {question} " for form in unknown_words(language))


def render_solution(facts: Sequence[Sentence], equations: Sequence[str], number: int) -> str:
    """The step-by-step answer: the facts that count, one equation a step, and the number after GSM8K's mark ####.

    It is in English whatever the question's language, as in MGSM's en_cot.
    """
    statements = [render("en", *fact) for fact in facts if fact[0] != "went"]
    return " ".join([*statements, " . ".join(equations), f". #### {number}"])


def render_prompt(question: str, reply_language: str = "en") -> str:
    """The lab's prompt: a turn mark, the question, and the language to reply in."""
    return f"<user> {question} <{reply_language}>"


def draw_story(rng: random.Random, words: Words) -> tuple[list[Sentence], list[tuple[Sentence, Sentence]]]:
    """A short random story as (facts, [(question, answer)]); no answer needs arithmetic."""
    name, other = rng.sample(words["names"], 2)
    obj, obj2 = rng.sample(words["objects"], 2)
    place, box = rng.choice(words["places"]), rng.choice(words["boxes"])
    a, b, c = (rng.randint(2, 20) for _ in range(3))
    direction = rng.choice(("gain", "lose"))
    verb = rng.choice(words[direction])
    pair = {"name": name, "other": other, "obj": obj}
    story_kind = rng.choice(("change", "change", "change", "compare", "boxes", "likes"))
    facts: list[Sentence]
    questions: list[tuple[Sentence, Sentence]] = []
    if story_kind == "change":
        event = {"name": name, "verb": verb, "obj": obj}
        facts = [("have", {"name": name, "obj": obj, "n": a}), ("verb", event | {"n": b})]
        other_verb = rng.choice(words[rng.choice(("gain", "lose"))])
        if rng.random() < 0.5 and other_verb != verb:
            facts.insert(
                rng.randint(0, 2), ("verb", {"name": other, "verb": other_verb, "obj": rng.choice((obj2, obj)), "n": c})
            )
        questions = [
            (("who", event), ("a_who", {"name": name})),
            (("count", event), ("a_count", {"n": b, "obj": obj})),
        ]
        if len(facts) == 2:
            questions += [(("change", {"obj": obj}), ("a_up" if direction == "gain" else "a_down", {}))] * 3
    elif story_kind == "compare":
        more = rng.choice(("more", "fewer"))
        facts = [("have", {"name": name, "obj": obj, "n": a}), (more, pair | {"n": b})]
        questions = [(("who_more", {"obj": obj}), ("a_who_more", {"name": other if more == "more" else name}))]
    elif story_kind == "boxes":
        facts = [("boxes", {"name": name, "box": box, "n": a}), ("each", {"box": box, "obj": obj, "n": b})]
    else:
        facts = [("likes", {"name": name, "obj": obj}), ("likes", {"name": other, "obj": obj2})]
    if not questions or rng.random() < 0.3:
        facts.insert(0, ("went", {"name": name, "place": place}))
        questions.append((("where", {"name": name}), ("a_where", {"place": place})))
    return facts, questions


def text_rows(
    language: str, n: int, seed: int | str, all_words: bool = True,
    tasks: Mapping[str, float] | None = None, code_switched: float = 0.0,
) -> list[dict[str, str]]:  # fmt: skip
    """Rows of general text in a language: scenes, questions with answers, translations. Nothing here solves a problem.

    Questions are answered in English or in the language. Facts are translated either way, the question of a word
    problem only into the language.

    Args:
        language: a code of ``LANGUAGES``.
        n: how many rows.
        seed: of the random draws.
        all_words: False leaves out the words that are held out from the base model.
        tasks: task ("scene", "qa", "translation"; "problem" for solved ones) -> weight; None: ``LANGUAGE_TASKS``.
        code_switched: share of the scenes and questions in which a third of the words is English.

    Returns:
        Rows {"prompt", "completion"}.

    Raises:
        UserError: an unknown language.
    """
    rng, words = random.Random(f"text-{language}-{seed}"), concepts(language, all_words)
    rows: list[dict[str, str]] = []
    tasks = tasks or LANGUAGE_TASKS
    while len(rows) < n:
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        switch_rng = rng if rng.random() < code_switched else None
        if task == "problem":
            facts, question, equations, number = draw_from_split(rng, words, "train")
            text = " ".join(render(language, *sentence) for sentence in [*facts, question])
            solution = render_solution(facts, equations, number)
            rows.append({"prompt": render_prompt(text), "completion": f" {solution}"})
            continue
        facts, questions = draw_story(rng, words)
        if task == "qa":
            question, answer = rng.choice(questions)
            text = " ".join(render(language, *sentence, switch_rng, 1 / 3) for sentence in [*facts, question])
            reply_language = rng.choice(("en", language))
            completion = " " + render(reply_language, *answer)
            rows.append({"prompt": f"<ask> {text} <{reply_language}>", "completion": completion})
        elif task == "translation":
            source, target = ("en", language) if rng.random() < 0.5 else (language, "en")
            if rng.random() < 0.4:
                facts, question, _, _ = draw_from_split(rng, words, "train")
                if target == language != "en":  # a problem's question is only ever translated into the language
                    facts = [*facts, question]
            last_facts = facts[-rng.randint(1, len(facts)) :]
            text, translation = (" ".join(render(code, *fact) for fact in last_facts) for code in (source, target))
            rows.append({"prompt": render_prompt(text, target), "completion": f" {translation}"})
        else:
            text = " ".join(render(language, *fact, switch_rng, 1 / 3) for fact in facts)
            rows.append({"prompt": "<text>", "completion": f" {text}"})
    return rows


def math_rows(n: int, seed: int | str) -> list[dict[str, str]]:
    """``n`` solved English word problems of the train split, as {"prompt", "completion"}."""
    return text_rows("en", n, f"math-{seed}", tasks={"problem": 1})


def arithmetic_rows(n: int, seed: int | str) -> list[dict[str, str]]:
    """``n`` rows of three bare equations with numbers as problems have them, as {"prompt", "completion"}."""
    rng, rows = random.Random(f"arithmetic-{seed}"), []
    for _ in range(n):
        equations = []
        for sign in rng.choices("+-*", (3, 2, 1), k=3):
            a, b = (rng.randint(2, 20), rng.randint(2, 20)) if sign != "*" else (rng.randint(2, 10), rng.randint(2, 10))
            if sign == "+" and rng.random() < 0.5:  # the second step of a two-step problem
                a, b = rng.randint(2, 10) * rng.randint(2, 10), rng.randint(2, 10)
            elif sign == "-":
                a, b = rng.randint(max(a, b), 40), min(a, b)
            equations.append(f" {a} {sign} {b} = {OPERATIONS[sign](a, b)} .")
        rows.append({"prompt": "<text>", "completion": "".join(equations)})
    return rows


@cache
def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of the world: special tokens, numbers, the words of all languages."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<ask>", "<text>", *(f"<{code}>" for code in LANGUAGES)]
    words = [str(i) for i in range(LARGEST_NUMBER + 1)] + ["+", "-", "*", "=", ".", "####"]
    for language in LANGUAGES:
        data = load_language(language)
        texts = [form for group in CATEGORY.values() for entry in data[group].values() for form in entry.values()]
        for template in data["templates"].values():
            texts.append(" ".join(word for word in template.split() if "{" not in word))
        words += [word for text in texts for word in text.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(special + words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
