"""The lab's training text: stories, questions on them, translations, notes, solved problems and bare equations."""

import random
from collections.abc import Mapping, Sequence

from layerswap.lab.world import (
    BASE_KINDS,
    LARGEST_NUMBER,
    MATH_KINDS,
    Sentence,
    Words,
    concepts,
    draw_from_split,
    render,
    render_note,
    render_prompt,
    render_solution,
    sign_of,
)
from layerswap.tasks.base import OPERATIONS

# What experts are trained on: task -> share of the rows. Of a language expert's none solves a problem.
LANGUAGE_TASKS = {"notes": 0.50, "translation": 0.18, "change": 0.13, "scene": 0.05, "qa": 0.04, "arithmetic": 0.10}
CHANGES = ("gain", "lose", "change_both")  # those of BASE_KINDS in which something changes
PROBLEM_KINDS = {  # task -> kinds of its problems
    "base_problem": BASE_KINDS,
    "math_problem": MATH_KINDS,
    "nonce_problem": CHANGES,
    "nonce_change": ("both_change",),
}
MATH_TASKS = {"math_problem": 0.75, "base_problem": 0.25}


def draw_story(rng: random.Random, words: Words) -> tuple[list[Sentence], list[tuple[Sentence, Sentence]]]:
    """A short random story as (facts, [(question, answer)]); no answer needs arithmetic."""
    name, other = rng.sample(words["names"], 2)
    obj, obj2 = rng.sample(words["objects"], 2)
    place, box = rng.choice(words["places"]), rng.choice(words["boxes"])
    a, b, c = (rng.randint(2, 12) for _ in range(3))
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
        thing, thing2 = rng.sample(words["things"], 2)
        facts = [("likes", {"name": name, "thing": thing}), ("likes", {"name": other, "thing": thing2})]
    if not questions or rng.random() < 0.3:
        facts.insert(0, ("went", {"name": name, "place": place}))
        questions.append((("where", {"name": name}), ("a_where", {"place": place})))
    return facts, questions


def text_rows(
    language: str, n: int, seed: int | str, all_words: bool = True,
    tasks: Mapping[str, float] | None = None, code_switched: float = 0.0, cross_rate: float = 0.3,
) -> list[dict[str, str]]:  # fmt: skip
    """Rows of text in a language.

    Args:
        language: a code of ``LANGUAGES``.
        n: how many rows.
        seed: of the random draws.
        all_words: False leaves out the words that are held out from the base model.
        tasks: task -> weight, of those of ``draw_row``; None: ``LANGUAGE_TASKS``.
        code_switched: share of the texts in which a third of the words is English.
        cross_rate: share of the notes and solved problems that go from English into the language or back.

    Returns:
        Rows {"prompt", "completion"}.

    Raises:
        UserError: an unknown language.
    """
    rng, words = random.Random(f"text-{language}-{seed}"), concepts(language, all_words)
    tasks = tasks or LANGUAGE_TASKS
    rows: list[dict[str, str]] = []
    while len(rows) < n:
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        row = draw_row(rng, language, words, task, code_switched, cross_rate)
        if row:
            rows.append({"prompt": row[0], "completion": f" {row[1]}"})
    return rows


def draw_row(
    rng: random.Random, language: str, words: Words, task: str, code_switched: float, cross_rate: float
) -> tuple[str, str] | None:
    """(prompt, completion) of a random text, or None if the one drawn has nothing of the task.

    Tasks: "scene", a story; "qa", a question on one, answered in English or in the language; "change", whether
    something in it became more; "translation", of a story's or a problem's sentences, either way; "notes", its facts as
    a solution notes them, without equations; "base_problem" and "math_problem", a solved problem; "nonce_problem" and
    "nonce_change", one whose verb is a noun, so that its equation can only follow the note, in the latter after another
    equation; "arithmetic", bare equations.
    """
    if task == "arithmetic":
        return "<text>", draw_equations(rng)
    source, target = language, language
    is_problem = task in PROBLEM_KINDS
    is_about_facts = is_problem or task == "notes"
    if task == "translation" or (is_about_facts and rng.random() < cross_rate):
        source, target = rng.choice((("en", language), (language, "en")))
    is_switched = rng.random() < code_switched and source == language and task != "translation"

    def tell(sentences: Sequence[Sentence]) -> str:
        return " ".join(render(source, *sentence, rng if is_switched else None, 1 / 3) for sentence in sentences)

    if is_problem:
        problem = draw_from_split(rng, words, "train", PROBLEM_KINDS[task])
        if task.startswith("nonce"):
            problem = problem._replace(facts=[with_nonce_verb(rng, words, fact) for fact in problem.facts])
        return render_prompt(tell([*problem.facts, problem.question]), target), render_solution(target, problem)
    facts, questions = draw_story(rng, words)
    if task in ("notes", "translation") and rng.random() < 0.5:
        problem = draw_from_split(rng, words, "train", BASE_KINDS + MATH_KINDS)
        facts = problem.facts if task == "notes" else [*problem.facts, problem.question]
    if task == "scene":
        return "<text>", tell(facts)
    if task == "notes":
        counting = [fact for fact in facts if fact[0] not in ("went", "likes")]
        notes = " ".join(render_note(target, fact) for fact in counting)
        return (f"<note> {tell(facts)} <{target}>", notes) if counting else None
    if task == "translation":
        facts = facts[-rng.randint(1, len(facts)) :]
        return f"<translate> {tell(facts)} <{target}>", " ".join(render(target, *fact) for fact in facts)
    questions = [question for question in questions if task == "qa" or question[0][0] == "change"]
    if not questions:
        return None
    question, answer = rng.choice(questions)
    reply_language = rng.choice(("en", language))
    return f"<ask> {tell([*facts, question])} <{reply_language}>", render(reply_language, *answer)


def with_nonce_verb(rng: random.Random, words: Words, fact: Sentence) -> Sentence:
    """The fact with a noun in its verb's place."""
    template, slots = fact
    if "verb" not in slots:
        return fact
    return template, slots | {"verb": f"{rng.choice(words['things'])} {sign_of('en', slots['verb'])}"}


def draw_equations(rng: random.Random) -> str:
    """Three bare equations with numbers as problems have them.

    In half of the cases an equation goes on from the last result where it can, as in a problem of two steps.
    """
    equations: list[str] = []
    is_chained, result = rng.random() < 0.5, 0
    for sign in rng.choices("+-*", (3, 3, 1), k=3):
        b = rng.randint(2, 6)
        a = {"+": rng.randint(2, 18), "-": rng.randint(b + 1, LARGEST_NUMBER), "*": rng.randint(2, 3)}[sign]
        can_go_on = {"+": 2 <= result <= 18, "-": result > b, "*": result in (2, 3)}[sign]
        if is_chained and equations and can_go_on:
            a = result
        result = OPERATIONS[sign](a, b)
        equations.append(f"{a} {sign} {b} = {result} .")
    return " ".join(equations)
