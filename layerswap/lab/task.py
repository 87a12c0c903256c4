"""The lab as a benchmark: its problems, prompts and training text in the form that every other part works with."""

from collections.abc import Sequence

from layerswap.lab import world
from layerswap.tasks.base import Problem, Task, check_limit, is_held_out
from layerswap.tasks.extraction import HEADERS, Extraction, extract

N_PROBLEMS = 250  # problems where no limit is given, as many as MGSM has


class LabTask(Task):
    """The built-in world. Solutions are in English whatever the question's language, as in MGSM's en_cot."""

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
        solved = [f"{world.render_prompt(exemplar.question)} {exemplar.answer} <eos>" for exemplar in exemplars]
        return " ".join([*solved, world.render_prompt(problem.question)])

    def stops(self, language: str, style: str = "lab", has_exemplars: bool = True) -> tuple[str, ...]:
        """None: an answer ends itself."""
        return ()

    def reference_text(self, problem: Problem, style: str = "lab") -> str:
        """The worked answer."""
        return f" {problem.answer}"

    def extract(self, text: str, language: str) -> Extraction:
        """The number that an answer gives; a language that MGSM does not have writes numbers as English does."""
        return extract(text, language if language in HEADERS else "en")

    def reply_language(self, language: str, style: str = "lab") -> str:
        """English."""
        return "en"

    def has_unknown_word(self, problem: Problem) -> bool | None:
        """Whether the question has a word that the base model never met in its language."""
        return world.has_unknown(problem.question, problem.language)

    def training_rows(
        self, expert: str, n: int, seed: int | str, held_out: bool = False
    ) -> list[dict[str, str]] | None:
        """Solved English problems for the math expert, text without mathematics for a language expert.

        ``held_out`` rows are problems of the test split, and a tenth of the text that no training row is of.
        """
        if expert != "math":
            rows = world.text_rows(expert, n * (20 if held_out else 2), seed)  # enough of either kind
            return [row for row in rows if is_held_out(row["prompt"] + row["completion"]) == held_out][:n]
        if not held_out:
            return world.math_rows(n, seed)
        return [
            {"prompt": world.render_prompt(problem.question), "completion": f" {problem.answer}"}
            for problem in self.problems("en", "test", n)
        ]
