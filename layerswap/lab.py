"""The lab: a small multilingual world in which layer swapping can be watched from end to end on a laptop.

English, Swahili, Telugu, Bengali and Japanese describe the same facts with words and word order of their own (one
YAML file a language under ``lab_data``). Word problems have the shape of MGSM (question, step-by-step answer, integer)
and are parallel across languages. The base model has never met the words that a language file lists as ``held_out``
and has seen solved problems in English only; a language expert learns all words of its language and no mathematics.
"""

import operator
import random
import zlib
from functools import cache

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from layerswap.mgsm import Problem
from layerswap.paths import LAB, UserError

LANGUAGES = ("en", "sw", "te", "bn", "ja")
CATEGORY = {"name": "names", "other": "names", "obj": "objects", "box": "boxes", "place": "places", "verb": "verb"}
KINDS = ("gain", "lose", "gain_lose", "boxes", "boxes_gain", "more", "fewer", "both")
OPERATE = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LARGEST = 110  # numbers are 2-20; products of 2-10 reach 100, and up to 10 may be added
LANGUAGE_TASKS = {"scene": 0.35, "qa": 0.30, "translation": 0.35}  # what a language expert is trained on
SPLITS = {"test": 0, "validation": 1}  # every other share of the problem space belongs to training


class Entry(dict):
    """A lexicon entry, form -> text; prints as its form ``word``."""

    def __str__(self):
        return self["word"]


@cache
def language(code):
    """The language file of ``code`` with every lexicon entry as an ``Entry``. UserError for an unknown code."""
    path = LAB / f"{code}.yml"
    if code not in LANGUAGES or not path.is_file():
        raise UserError(f"lab language {code!r} is unknown, expected one of {', '.join(LANGUAGES)}")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    for category in ("names", "objects", "boxes", "places", "gain", "lose"):
        data[category] = {
            concept: Entry(forms if isinstance(forms, dict) else {"word": forms})
            for concept, forms in data[category].items()
        }
    data["verb"] = data["gain"] | data["lose"]
    data["templates"] = data["sentences"] | data["questions"] | {f"a_{k}": v for k, v in data["answers"].items()}
    return data


def say(code, template, slots, mix=None, share=0.0):
    """One sentence: the template of language ``code`` filled with ``slots`` (slot -> concept, or n -> int).

    With ``mix`` (a random.Random) each word is replaced by its English one with probability ``share``
    (code-switching); other forms stay in the language.
    """
    filled = {}
    for slot, value in slots.items():
        if slot == "n":
            filled[slot] = value
            continue
        filled[slot] = language(code)[CATEGORY[slot]][value]
        if mix and mix.random() < share:
            filled[slot] = Entry(filled[slot], word=language("en")[CATEGORY[slot]][value]["word"])
    return language(code)["templates"][template].format(**filled)


def vocabulary(code, all_words):
    """Concepts to draw from: all of them, or only those that the base model has met in ``code``."""
    data = language(code)
    held_out = {} if all_words else data["held_out"]
    return {
        category: [c for c in data[category] if c not in held_out.get(category, ())]
        for category in ("names", "objects", "boxes", "places", "gain", "lose")
    }


# --- problems: mathematics ------------------------------------------------------------------------------------------


def draw_problem(rng, words):
    """A problem as (facts, question, steps, number); a fact or question is (template, slots), a step an equation."""
    name, other = rng.sample(words["names"], 2)
    obj, box = rng.choice(words["objects"]), rng.choice(words["boxes"])
    gain, lose = rng.choice(words["gain"]), rng.choice(words["lose"])
    kind = rng.choice(KINDS)
    a, b, c = (rng.randint(2, 10 if kind.startswith("boxes") else 20) for _ in range(3))
    own, pair = {"name": name, "obj": obj}, {"name": name, "other": other, "obj": obj}
    have, gained = ("have", own | {"n": a}), ("verb", own | {"verb": gain, "n": b})
    lost, filled = ("verb", own | {"verb": lose, "n": c}), ("each", {"box": box, "obj": obj, "n": b})
    boxes, added = ("boxes", {"name": name, "box": box, "n": a}), ("verb", own | {"verb": gain, "n": c})
    facts, asked, operations = {
        "gain": ([have, gained], ("now", own), [("+", b)]),
        "lose": ([have, lost], ("now", own), [("-", c)]),
        "gain_lose": ([have, gained, lost], ("now", own), [("+", b), ("-", c)]),
        "boxes": ([boxes, filled], ("in_all", own), [("*", b)]),
        "boxes_gain": ([boxes, filled, added], ("now", own), [("*", b), ("+", c)]),
        "more": ([have, ("more", pair | {"n": b})], ("how", pair), [("+", b)]),
        "fewer": ([have, ("fewer", pair | {"n": b})], ("how", pair), [("-", b)]),
        "both": ([have, ("have", {"name": other, "obj": obj, "n": b})], ("both", pair), [("+", b)]),
    }[kind]
    number, steps = a, []
    for sign, operand in operations:
        result = OPERATE[sign](number, operand)
        steps.append(f"{number} {sign} {operand} = {result}")
        number = result
    if number <= 0:
        return draw_problem(rng, words)
    if rng.random() < 0.3:
        facts = [("went", {"name": name, "place": rng.choice(words["places"])}), *facts]
    return facts, asked, steps, number


def problem_share(facts, question):
    """The share (0..9) of the problem space that a problem belongs to: what keeps the splits disjoint."""
    return zlib.crc32(repr((facts, question)).encode()) % 10


def draw_from_split(rng, words, split):
    """The next problem of a split ("train", "validation" or "test")."""
    while True:
        facts, question, steps, number = draw_problem(rng, words)
        share = problem_share(facts, question)
        if share == SPLITS[split] if split in SPLITS else share not in SPLITS.values():
            return facts, question, steps, number


def problems(code, split, n, seed=0):
    """``n`` distinct problems of a split in language ``code``: the same problems, in the same order, in every language.

    Words are drawn from the whole vocabulary. ``id`` is the same across languages; ``answer`` is the step-by-step
    answer, ``number`` its integer. Splits share no problem whatever the seeds (see ``problem_share``).
    """
    rng, seen, found = random.Random(f"{split}-{seed}"), set(), []
    while len(found) < n:
        facts, question, steps, number = draw_from_split(rng, vocabulary("en", True), split)
        if repr((facts, question)) in seen:
            continue
        seen.add(repr((facts, question)))
        text = " ".join(say(code, *part) for part in [*facts, question])
        found.append(Problem(f"{split}-{len(found):04d}", code, text, solution(facts, steps, number), number))
    return found


@cache
def unknown_words(code):
    """The forms in language ``code`` that only words have which the base model has never met."""
    data, known, held = language(code), set(), set()
    for category in set(CATEGORY.values()) - {"verb"} | {"gain", "lose"}:
        for concept, entry in data[category].items():
            (held if concept in data["held_out"].get(category, ()) else known).update(entry.values())
    return held - known


def has_unknown(question, code):
    """Whether a problem's text has a word that the base model has never met in language ``code``."""
    return any(f" {form} " in f" {question} " for form in unknown_words(code))


def solution(facts, steps, number):
    """The step-by-step answer, in English whatever the question's language (MGSM's en_cot): the facts that count, one
    equation a step, and the final number after GSM8K's mark ####."""
    told = [say("en", *fact) for fact in facts if fact[0] != "went"]
    return " ".join([*told, " . ".join(steps), f". #### {number}"])


def prompt(question, reply="en"):
    """The lab's prompt: a turn mark, the question, and the language to reply in."""
    return f"<user> {question} <{reply}>"


# --- general text: no mathematics -----------------------------------------------------------------------------------


def draw_story(rng, words):
    """A short story as (facts, [(question, answer)]), each part (template, slots); no answer needs arithmetic."""
    name, other = rng.sample(words["names"], 2)
    obj, obj2 = rng.sample(words["objects"], 2)
    place, box = rng.choice(words["places"]), rng.choice(words["boxes"])
    a, b, c = (rng.randint(2, 20) for _ in range(3))
    direction = rng.choice(("gain", "lose"))
    verb = rng.choice(words[direction])
    pair = {"name": name, "other": other, "obj": obj}
    kind = rng.choice(("change", "change", "change", "compare", "boxes", "likes"))
    if kind == "change":
        does = {"name": name, "verb": verb, "obj": obj}
        facts = [("have", {"name": name, "obj": obj, "n": a}), ("verb", does | {"n": b})]
        other_verb = rng.choice(words[rng.choice(("gain", "lose"))])
        if rng.random() < 0.5 and other_verb != verb:
            facts.insert(
                rng.randint(0, 2), ("verb", {"name": other, "verb": other_verb, "obj": rng.choice((obj2, obj)), "n": c})
            )
        asked = [
            (("who", does), ("a_who", {"name": name})),
            (("count", does), ("a_count", {"n": b, "obj": obj})),
        ]
        if len(facts) == 2:
            asked += [(("change", {"obj": obj}), ("a_up" if direction == "gain" else "a_down", {}))] * 3
    elif kind == "compare":
        more = rng.choice(("more", "fewer"))
        facts = [("have", {"name": name, "obj": obj, "n": a}), (more, pair | {"n": b})]
        asked = [(("who_more", {"obj": obj}), ("a_who_more", {"name": other if more == "more" else name}))]
    elif kind == "boxes":
        facts = [("boxes", {"name": name, "box": box, "n": a}), ("each", {"box": box, "obj": obj, "n": b})]
        asked = []
    else:
        facts, asked = [("likes", {"name": name, "obj": obj}), ("likes", {"name": other, "obj": obj2})], []
    if not asked or rng.random() < 0.3:
        facts.insert(0, ("went", {"name": name, "place": place}))
        asked.append((("where", {"name": name}), ("a_where", {"place": place})))
    return facts, asked


def text_rows(code, n, seed, all_words=True, tasks=None, switched=0.0):
    """``n`` rows of general text in language ``code`` as {"prompt", "completion"}: scenes, questions, translations.

    Questions are answered in English or in ``code``. Facts are translated either way; the question of a word problem
    only into ``code``, and nothing here solves one. A share ``switched`` of scenes and questions has a third of its
    words in English.
    """
    rng, words, rows = random.Random(f"text-{code}-{seed}"), vocabulary(code, all_words), []
    tasks = tasks or LANGUAGE_TASKS
    while len(rows) < n:
        task = rng.choices(list(tasks), tasks.values())[0]
        mix = rng if rng.random() < switched else None
        if task == "problem":
            facts, question, steps, number = draw_from_split(rng, words, "train")
            text = " ".join(say(code, *part) for part in [*facts, question])
            rows.append({"prompt": prompt(text), "completion": f" {solution(facts, steps, number)}"})
            continue
        facts, asked = draw_story(rng, words)
        if task == "qa":
            question, answer = rng.choice(asked)
            text = " ".join(say(code, *part, mix, 1 / 3) for part in [*facts, question])
            reply = rng.choice(("en", code))
            rows.append({"prompt": f"<ask> {text} <{reply}>", "completion": " " + say(reply, *answer)})
        elif task == "translation":
            source, target = ("en", code) if rng.random() < 0.5 else (code, "en")
            if rng.random() < 0.4:
                facts, question, _, _ = draw_from_split(rng, words, "train")
                if target == code != "en":  # a question of a word problem is only ever translated into the language
                    facts = [*facts, question]
            kept = facts[-rng.randint(1, len(facts)) :]
            text, translated = (" ".join(say(side, *part) for part in kept) for side in (source, target))
            rows.append({"prompt": prompt(text, target), "completion": f" {translated}"})
        else:
            text = " ".join(say(code, *part, mix, 1 / 3) for part in facts)
            rows.append({"prompt": "<text>", "completion": f" {text}"})
    return rows


def math_rows(n, seed):
    """``n`` solved English word problems of the train split, as {"prompt", "completion"}."""
    return text_rows("en", n, f"math-{seed}", tasks={"problem": 1})


def arithmetic_rows(n, seed):
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
            equations.append(f" {a} {sign} {b} = {OPERATE[sign](a, b)} .")
        rows.append({"prompt": "<text>", "completion": "".join(equations)})
    return rows


@cache
def tokenizer():
    """The word-level tokenizer of the world (transformers PreTrainedTokenizerFast): special tokens, numbers, words."""
    special = ["<pad>", "<eos>", "<unk>", "<user>", "<ask>", "<text>", *(f"<{code}>" for code in LANGUAGES)]
    words = [str(i) for i in range(LARGEST + 1)] + ["+", "-", "*", "=", ".", "####"]
    for code in LANGUAGES:
        data = language(code)
        texts = [form for group in CATEGORY.values() for entry in data[group].values() for form in entry.values()]
        for template in data["templates"].values():
            texts.append(" ".join(w for w in template.split() if "{" not in w))
        words += [word for text in texts for word in text.split()]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(special + words))}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
