"""The lab as a benchmark: its problems, prompts and training text in the form that every other part works with."""

from collections.abc import Sequence

from layerswap.lab import text, world
from layerswap.tasks.base import Problem, Task, check_limit, is_held_out
from layerswap.tasks.extraction import HEADERS, Extraction, extract

N_PROBLEMS = 250  # problems where no limit is given, as many as MGSM has


class LabTask(Task):
    """The built-in world. Solutions are in the question's language, as in MGSM's native_cot."""

    name = "the lab"
    languages = world.LANGUAGES
    styles = ("lab",)

    def problems(self, language: str, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The first ``limit`` problems of a split, "test", "validation" or "train" (None: 250)."""
        check_limit(limit)
        self.check(language)
        return world.make_problems(language, split, limit or N_PROBLEMS)

    def exemplars(self, language: str, n: int, style: str = "lab") -> list[Problem]:
        """The first ``n`` training problems."""
        self.check(language, style)
        return self.problems(language, "train", n) if n else []

    def prompt(self, problem: Problem, exemplars: Sequence[Problem], style: str = "lab") -> str:
        """The question between the lab's own markers."""
        self.check(problem.language, style)
        solved = [f"{render_question(exemplar)} {exemplar.answer} <eos>" for exemplar in exemplars]
        return " ".join([*solved, render_question(problem)])

    def stops(self, language: str, style: str = "lab", has_exemplars: bool = True) -> tuple[str, ...]:
        """None: an answer ends itself."""
        return ()

    def reference_text(self, problem: Problem, style: str = "lab") -> str:
        """The worked answer."""
        return f" {problem.answer}"

    number_end = ""  # its numbers are one token

    def number_text(self, number: int, language: str, style: str = "lab") -> str:
        """The number, as worked answers end."""
        return f" #### {number}"

    def extract(self, text: str, language: str) -> Extraction:
        """The number that an answer gives; a language that MGSM does not have writes numbers as English does."""
        return extract(text, language if language in HEADERS else "en")

    def reply_language(self, language: str, style: str = "lab") -> str:
        """The question's."""
        return language

    def answer_language(self, text: str) -> str | None:
        """The language that most of an answer's words belong to, of those words that one language alone has."""
        n_own_words = {language: len(world.own_words(language) & set(text.split())) for language in world.LANGUAGES}
        return max(n_own_words, key=n_own_words.__getitem__) if any(n_own_words.values()) else None

    def is_whole_solution(self, problem: Problem, text: str) -> bool:
        """Whether an answer is the worked answer word by word: its facts, equations and number have one wording."""
        return text.split() == (problem.answer or "").split()

    def unknown_words(self, problem: Problem) -> set[str]:
        """The words of the question that the base model has never met in its language."""
        return world.unknown_words(problem.language) & set(problem.question.split())

    def training_rows(
        self, expert: str, n: int, seed: int | str, held_out: bool = False
    ) -> list[dict[str, str]] | None:
        """Solved English problems for the math expert, text without solved problems for a language expert.

        ``held_out`` rows are problems of the test split, and a tenth of the text that no training row is of.
        """
        if expert != "math":
            rows = text.text_rows(expert, n * (20 if held_out else 2), seed)  # enough of either kind
            return [row for row in rows if is_held_out(row["prompt"] + row["completion"]) == held_out][:n]
        if not held_out:
            return text.text_rows("en", n, f"math-{seed}", tasks=text.MATH_TASKS)
        return [
            {"prompt": render_question(problem), "completion": f" {problem.answer}"}
            for problem in self.problems("en", "test", n)
        ]


def render_question(problem: Problem) -> str:
    """The prompt of one problem, with no solved ones before it."""
    return world.render_prompt(problem.question, problem.language)
