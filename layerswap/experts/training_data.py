"""Training text of the experts: the task's own, real text in the folder LAYERSWAP_DATA, files, and the hub.

Real language rows are built from native question answering, stories and dialogues by TEMPLATES, for want of an
instruction set in Swahili, Telugu or Bengali without a hub; they hold no equations.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerswap.errors import UserError
from layerswap.files import ROOT, data_folder, read_rows
from layerswap.tasks.base import Task, is_held_out
from layerswap.tasks.extraction import HEADERS, LANGUAGES
from layerswap.tasks.mgsm import hub_split

Row = dict[str, str]  # {"prompt", "completion"}
TEMPLATES = {code: language["templates"] for code, language in LANGUAGES.items() if language["templates"]}
# Pairs of columns that a data set may have: a prompt, and the response to it.
COLUMNS = [("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("inputs", "targets")]
FINAL_MARK = re.compile("####|The answer is")  # before the final number of a solution
EQUATION = re.compile(r"\d\s*[+×÷*=＋＝]\s*\d")


def training_rows(
    data_sets: Sequence[str], task: Task, expert: str, n: int, seed: int | str, held_out: bool = False
) -> list[Row]:
    """Rows to train an expert on, or to measure it on.

    Args:
        data_sets: names, each with a weight if there are several ("gsm8k", "rows.jsonl:0.5",
            "owner/name@commit#sw:2"); none: the task's own. "{language}" in a name stands for the language. "own" is
            the task's own set; a file has one JSON object a line; a set on the hub is named at one commit, with its
            configuration after a #. Files and sets have one of the pairs of ``COLUMNS``, or "messages" in turns; of a
            set with a column language_code (Aya) only the language's rows count.
        task: the benchmark that the expert is for.
        expert: "math" or a language.
        n: rows in all; a set of few rows gives what it has.
        seed: of the draw.
        held_out: rows from other documents than training rows, whatever the seeds: a tenth of all (of GSM8K: its test
            set).

    Returns:
        At most ``n`` rows {"prompt", "completion"}.

    Raises:
        UserError: a weight that is no number above zero, or a set that is missing or malformed.
    """
    if n < 1:
        raise UserError(
            f"{n} rows are requested for expert {expert}, expected 1 or more: samples, or steps times batch_size"
        )
    mixture = [parse_mixture(str(name).replace("{language}", expert)) for name in data_sets or ["own"]]
    total, cumulated = sum(weight for _, weight in mixture), 0.0
    rows: list[Row] = []
    for name, weight in mixture:
        n_rows = round(n * (cumulated + weight) / total) - round(n * cumulated / total)
        cumulated += weight
        if name == "own":
            rows += own_rows(task, expert, n_rows, seed, held_out)
        else:
            rows += sample_rows(external_rows(name, expert, held_out), n_rows, seed)
    return rows if len(mixture) == 1 else random.Random(seed).sample(rows, len(rows))


def own_rows(task: Task, expert: str, n: int, seed: int | str, held_out: bool = False) -> list[Row]:
    """The rows of the task itself; where it has none, GSM8K's and those of native text."""
    rows = task.training_rows(expert, n, seed, held_out)
    if rows is not None:
        return rows
    if expert == "math":
        return sample_rows(gsm8k_rows("test" if held_out else "train"), n, seed)
    return native_rows(expert, n, seed, held_out)


def split_final_number(row: Row) -> Row:
    """A row of worked mathematics with its final number alone as the completion: the steps go to the prompt."""
    ends = [mark.end() for mark in FINAL_MARK.finditer(row["completion"])] or [0]
    steps, number = row["completion"][: ends[-1]], row["completion"][ends[-1] :]
    return {"prompt": row["prompt"] + steps, "completion": f" {number.strip()}"}


def parse_mixture(name: str) -> tuple[str, float]:
    """(data set, weight) of "set" or "set:weight"."""
    match = re.fullmatch(r"(.+):([^:/@#]*)", name)
    if not match:
        return name, 1.0
    try:
        weight = float(match[2])
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UserError(f"data set {name!r}: the weight is {match[2]!r}, expected a number above 0")
    return match[1], weight


def sample_rows(rows: Sequence[Row], n: int, seed: int | str) -> list[Row]:
    """At most ``n`` of the rows, drawn without replacement."""
    return random.Random(seed).sample(rows, min(n, len(rows)))


def external_rows(name: str, expert: str, held_out: bool) -> list[Row]:
    """All rows of GSM8K, of a file or of a data set on the hub, as ``training_rows`` describes them."""
    if name == "gsm8k":
        return gsm8k_rows("test" if held_out else "train")
    language = "en" if expert == "math" else expert
    raw = read_rows(ROOT / name) if name.endswith((".json", ".jsonl")) else hub_training_rows(name)
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise UserError(f"data set {name}: expected a list of JSON objects")
    pairs = [
        parse_row(name, i, row)
        for i, row in enumerate(raw)
        if row.get("language_code", language) in (language, LANGUAGES.get(language, {}).get("iso_639_3"))
    ]
    pairs = [pair for pair in pairs if all(text.strip() for text in pair)]  # an empty reply teaches nothing
    rows = [format_row(*pair, expert) for pair in pairs if is_held_out(pair[0]) == held_out]
    if not rows:
        what = "held-out rows" if held_out else "rows"
        raise UserError(f"data set {name}: among its {len(raw)} rows are no {what} for expert {expert}")
    return rows


def parse_row(name: str, i: int, row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, response) of a row. UserError names the row and its columns if it has neither."""
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        prompt, response = (
            next((message.get("content") for message in messages if message.get("role") == role), None)
            for role in ("user", "assistant")
        )
    else:
        columns = next((pair for pair in COLUMNS if set(pair) <= row.keys()), ("", ""))
        prompt, response = (row.get(column) for column in columns)
        if columns == ("instruction", "output") and row.get("input"):
            prompt = f"{prompt}\n{row['input']}"
    if not isinstance(prompt, str) or not isinstance(response, str):
        expected = ", ".join(map(" and ".join, COLUMNS))
        raise UserError(
            f"data set {name}, row {i + 1}: found columns {', '.join(row)}, expected text in {expected} or messages"
        )
    return prompt, response


def format_row(prompt: str, response: str, expert: str) -> Row:
    """A row of foreign text: a language expert's as two lines, a math expert's as MGSM's English exemplars.

    Of a solution that ends as GSM8K's do, calculator marks go, and the number after #### becomes a sentence.
    """
    if expert != "math":
        return {"prompt": f"{prompt.strip()}\n", "completion": response.strip()}
    question_header, worked_header, _ = HEADERS["en"]
    steps, mark, number = re.sub(r"<<[^>]*>>", "", response.strip()).partition("\n#### ")
    if mark:
        sentences = re.sub(r"([^.!?:\s])\s*(?=\n|$)", r"\1.", steps)  # every line ends as a sentence
        steps = f"{' '.join(sentences.split())} The answer is {number.strip()}."
    return {"prompt": f"{question_header}{prompt.strip()}\n{worked_header.rstrip()}", "completion": f" {steps}"}


def hub_training_rows(name: str) -> list[dict[str, Any]]:
    """The train split of owner/name@commit#configuration on the hub."""
    reference, _, configuration = name.partition("#")
    owner, _, commit = reference.partition("@")
    if not commit:
        raise UserError(f"data set {name!r}: expected own, gsm8k, a .jsonl file or owner/name@commit")
    return hub_split(f"data set {name}:", owner, configuration or None, "train", commit)


def gsm8k_rows(split: str) -> list[Row]:
    """All rows of a split of GSM8K, in the form of the English MGSM exemplars, without calculator marks.

    MGSM's English problems are the first 250 of its test split. UserError for a missing or malformed file.
    """
    rows = read_rows(data_folder() / "gsm8k" / f"{split}.jsonl")
    for i, row in enumerate(rows, 1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("question"), str)
            or "\n#### " not in str(row.get("answer"))
        ):
            raise UserError(
                f"gsm8k/{split}.jsonl, row {i}: expected a question, and an answer with a line that begins ####"
            )
    return [format_row(row["question"], row["answer"], "math") for row in rows]


def native_rows(language: str, n: int, seed: int | str, held_out: bool = False) -> list[Row]:
    """At most ``n`` rows of text in a language, {"prompt", "completion"}, from LAYERSWAP_DATA/<language>.

    ``held_out`` rows come from other documents (articles, stories) than training rows, whatever the seeds: a tenth of
    all. UserError for a language without templates or files, and for a malformed file.
    """
    if language not in TEMPLATES:
        raise UserError(f"no training text for language {language!r}, expected one of {', '.join(TEMPLATES)}")
    folder, rows = data_folder() / language, []
    try:
        for document, prompt, completion in native_documents(folder, TEMPLATES[language]):
            if is_held_out(document) == held_out and completion.strip() and not EQUATION.search(completion):
                gap = "" if prompt.endswith("：") else " "
                rows.append({"prompt": prompt, "completion": gap + completion.strip()})
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: a file is not laid out as it was published ({reason})") from None
    if not rows:
        raise UserError(f"{folder}: no rows in tydiqa_*.json, stories_*.json, instruction_*.jsonl")
    return sample_rows(rows, n, seed)


def native_documents(folder: Path, templates: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (document, prompt, completion) for all the text of a language's folder.

    TyDi QA: the answer from its passage. Stories with as many pages as their English original: each page from the
    English one, and from the page before. instruction_ja: the reply.
    """
    titles: dict[str, str] = {}  # passage -> title; a passage that stands under two counts under the first
    for path in sorted(folder.glob("tydiqa_*.json")):
        for article in read_rows(path)["data"]:
            for paragraph in article["paragraphs"]:
                if titles.setdefault(paragraph["context"], article["title"]) == article["title"]:
                    for qa in paragraph["qas"]:
                        prompt = templates["passage"].format(paragraph["context"], qa["question"])
                        yield article["title"], prompt, qa["answers"][0]["text"]
    for path in sorted(folder.glob("stories_*source.json")):
        english = {story["id"]: story["pages"] for story in read_rows(path.with_suffix(".en.json"))}
        for story in read_rows(path):
            pages, original = story["pages"], english.get(story["id"], ())
            for i, page in enumerate(pages if len(pages) == len(original) else ()):
                yield story["id"], templates["translate"].format(original[i]), page
                if i:
                    yield story["id"], templates["continue"].format(pages[i - 1]), page
    for path in sorted(folder.glob("instruction_*.jsonl")):
        for row in read_rows(path):
            yield row["id"], templates["reply"].format(row["utterances"][0]["text"]), row["utterances"][1]["text"]
