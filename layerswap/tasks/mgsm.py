"""MGSM (Shi et al., arXiv 2210.03057): grade-school word problems in eleven languages, and their prompts.

Problems come from a folder of the published TSV files or from the hub. Question text is never altered: Telugu and
Bengali need their zero-width joiners, Japanese and Chinese their full-width colons.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from layerswap.errors import UserError, one_line
from layerswap.files import data_folder, read_rows
from layerswap.tasks.base import Problem, Task, check_limit
from layerswap.tasks.extraction import HEADERS, LANGUAGES, extract, to_number

# Sources below LAYERSWAP_DATA: MGSM as published, and its corrected translations (MGSM-Rev2, arXiv 2511.05162).
FOLDERS = {"local": "mgsm", "rev2": "mgsm_rev2"}
N_PROBLEMS, N_VALIDATION = 250, 50  # the validation problems are its last ones: it has no validation split


class MGSM(Task):
    """MGSM from ``source``.

    "local" or "rev2" (the TSV files in LAYERSWAP_DATA/mgsm or mgsm_rev2); a data set on the hub at one commit, such as
    juletxara/mgsm@<commit>; or the folder of such a data set. UserError for any other source.

    Styles: "native_cot" (native headers and step-by-step answers), "en_cot" (native questions, English header and
    exemplars' answers), "direct" (exemplars answered by the bare number), "chat" (what the user says, for the
    tokenizer's chat template, without exemplars).
    """

    name, id_prefix = "MGSM", "mgsm"
    languages = tuple(HEADERS)
    styles = ("native_cot", "en_cot", "direct", "chat")
    n_test = N_PROBLEMS - N_VALIDATION
    n_validation = N_VALIDATION

    def __init__(self, source: str = "local") -> None:
        if source not in FOLDERS and "/" not in source:
            raise UserError(
                f"source is {source!r}, expected {', '.join(FOLDERS)} or a hub id such as juletxara/mgsm@<commit>"
            )
        self.source = source
        # Of a data set on the hub too: training text and GSM8K's solutions lie there.
        self.reads_data_folder = source in FOLDERS or "LAYERSWAP_DATA" in os.environ

    def problems(self, language: str, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The first ``limit`` problems; validation problems are the last ones, so score no more than those before."""
        check_limit(limit)
        self.check(language)
        if split not in ("test", "validation"):
            raise UserError(f"{self.name} has no split {split!r}, expected test or validation")
        rows = self.read_problems(language)
        if not rows:
            raise UserError(f"{self.name} {language} from {self.source} holds no problems")
        problems = []
        for i in self.places(split, len(rows))[:limit]:
            question, answer = rows[i]
            number = to_number(answer, "en")
            if number is None or number != int(number):
                raise UserError(f"{self.name} {language}, row {i + 1}: answer {answer!r}, expected an integer")
            problems.append(Problem(f"{self.id_prefix}-{i:03d}", language, question, None, int(number)))
        return problems

    def places(self, split: str, n_rows: int) -> Sequence[int]:
        """Which rows of the files are the problems of a split, in their order."""
        return range(max(n_rows - self.n_validation, 0) if split == "validation" else 0, n_rows)

    def read_problems(self, language: str) -> list[tuple[str, str]]:
        """All (question, answer) of a language, in their fixed order."""
        if self.source in FOLDERS:
            return read_tsv(tsv_path(self.source, language))
        return [(row["question"], str(row["answer_number"])) for row in published_rows(self.source, language, "test")]

    def read_exemplars(self, language: str) -> list[tuple[str, str]]:
        """All published (question, worked answer) of a language, with their headers."""
        if self.source in FOLDERS:
            return published_exemplars(self.source, language)
        return [(row["question"], row["answer"]) for row in published_rows(self.source, language, "train")]

    def exemplars(self, language: str, n: int, style: str = "native_cot") -> list[Problem]:
        """The first ``n`` published exemplars in their fixed order, without their headers.

        Their answers are native, and English in style "en_cot" (the same exemplars, as MGSM has them in English).
        UserError if there are not so many, and for a style that takes none.
        """
        self.check(language, style)
        if n and style == "chat":
            raise UserError(f"{n} exemplars are requested, style chat takes 0")
        if n == 0:
            return []
        published = self.read_exemplars(language)
        if n > len(published):
            raise UserError(f"{n} exemplars are requested, {language} has {len(published)}")
        exemplars = []
        for i, (question, answer) in enumerate(published[:n]):
            number = extract(answer, language).value
            if number is None:
                raise UserError(f"exemplar {i} of {language} has no number in its answer {answer[:60]!r}")
            question, answer = strip_header(question, language), strip_header(answer, language)
            exemplars.append(Problem(f"exemplar-{i}", language, question, answer, int(number)))
        if style != "en_cot":
            return exemplars
        english = self.exemplars("en", n)
        for native, translated in zip(exemplars, english, strict=True):
            if native.number != translated.number:
                raise UserError(f"{native.id} is {native.number} in {language} and {translated.number} in en")
        return [
            replace(native, answer=translated.answer) for native, translated in zip(exemplars, english, strict=True)
        ]

    def prompt(self, problem: Problem, exemplars: Sequence[Problem], style: str) -> str:
        """The prompt of a problem after its solved ``exemplars``."""
        self.check(problem.language, style)
        question_header, worked_header, bare_header = HEADERS[problem.language]
        if style == "chat":
            return f"{LANGUAGES[problem.language]['request'].format(bare_header.strip())}\n\n{problem.question}"
        header = {"native_cot": worked_header, "en_cot": HEADERS["en"][1], "direct": bare_header}[style]
        solved = [
            f"{question_header}{exemplar.question}\n"
            f"{header}{exemplar.number if style == 'direct' else exemplar.answer}\n\n"
            for exemplar in exemplars
        ]
        return "".join(solved) + f"{question_header}{problem.question}\n{header.rstrip()}"

    def stops(self, language: str, style: str, has_exemplars: bool = True) -> tuple[str, ...]:
        """The header of a next question, and a blank line after exemplars (of base models); a chat ends itself."""
        return () if style == "chat" else (*["\n\n"][:has_exemplars], HEADERS[language][0].rstrip())

    def reference_text(self, problem: Problem, style: str) -> str:
        """The bare number."""
        return self.number_text(problem.number, problem.language, style)

    def number_text(self, number: int, language: str, style: str) -> str:
        """The number, after a space where the header ends in one."""
        return f"{number}" if style == "chat" or not HEADERS[language][1].endswith(" ") else f" {number}"

    def reply_language(self, language: str, style: str) -> str:
        """The question's language, or English in style "en_cot"."""
        return "en" if style == "en_cot" else language

    def worked_solutions(self, problems: Sequence[Problem]) -> dict[str, str | None]:
        """Problem id -> its English solution's calculations, None where there is none with the same number.

        MGSM's problems are the first 250 of GSM8K's test set, whose English solutions mark each calculation; they are
        looked up in LAYERSWAP_DATA/gsm8k/test.jsonl if it is there.
        """
        published, solutions = gsm8k_test_solutions(), {}
        for problem in problems:
            i = int(problem.id.rpartition("-")[2])
            solution, _, number = published[i].rpartition("#### ") if i < len(published) else ("", "", "")
            calculations = " ".join(f"{calculation} ." for calculation in re.findall(r"<<([^>]*)>>", solution))
            spaced = re.sub(r"([-+*/=])", r" \1 ", re.sub(r"[()]", "", calculations))
            solutions[problem.id] = spaced if to_number(number, "en") == problem.number else None
        return solutions


@cache
def gsm8k_test_solutions() -> list[str]:
    """The solutions of GSM8K's test set; none without its file."""
    try:
        return [row["answer"] for row in read_rows(data_folder() / "gsm8k" / "test.jsonl")]
    except (UserError, KeyError):
        return []


def published_rows(source: str, language: str, split: str) -> list[dict[str, Any]]:
    """The rows of a data set on the hub, or in a folder that is laid out like one."""
    name, _, commit = source.partition("@")
    if not commit and not Path(name).is_dir():
        raise UserError(f"source {source}: expected {name}@<commit>, so that the problems stay the same")
    description = f"source {source}: {split} of {language}"
    return hub_split(description, name, language, split, commit, ["question", "answer", "answer_number"])


def hub_split(
    description: str, name: str, configuration: str | None, split: str, commit: str, columns: Sequence[str] = (),
    **files: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of a split of a data set on the hub, as dicts of these columns (none: all).

    description: what the rows are, for the error. files: ``data_files`` of ``datasets.load_dataset``.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = list(load_dataset(name, configuration, split=split, revision=commit or None, **files))
        return [{column: row[column] for column in columns} for row in rows] if columns else rows
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{description} cannot be loaded ({one_line(error)})") from None


def tsv_path(source: str, language: str) -> Path:
    """The one TSV file of a language, whatever stands before its ``_<language>.tsv``."""
    folder = data_folder() / FOLDERS[source]
    files = sorted(folder.glob(f"*_{language}.tsv"))
    if len(files) != 1:
        raise UserError(f"{folder}: found {len(files)} files *_{language}.tsv, expected one")
    return files[0]


def read_tsv(path: Path) -> list[tuple[str, str]]:
    """[(question, answer)] of a published TSV file. UserError names the line that has not two fields."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    rows = [line.split("\t") for line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if len(row) != 2 or not all(field.strip() for field in row):
            n_fields = sum(bool(field.strip()) for field in row)
            raise UserError(f"{path}, line {i}: found {n_fields} fields, expected question and answer")
    return [(question, number.strip()) for question, number in rows]


def published_exemplars(source: str, language: str) -> list[tuple[str, str]]:
    """[(question, answer)] of exemplars.json; MGSM-Rev2's problems without exemplars of their own take MGSM's."""
    paths = [data_folder() / folder / "exemplars.json" for folder in dict.fromkeys((FOLDERS[source], "mgsm"))]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{paths[0]}: no such file, expected the published exemplars")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["MGSM_EXEMPLARS"][language].values()
        return [(row["q"], row["a"]) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the published exemplars of {language} ({error!r})") from None


def strip_header(text: str, language: str) -> str:
    """An exemplar's text without its header."""
    header = next((header.rstrip() for header in HEADERS[language] if text.startswith(header.rstrip())), "")
    return text.removeprefix(header).lstrip()
