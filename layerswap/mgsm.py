"""MGSM (Shi et al., arXiv 2210.03057): problems, prompts, and the number that an answer means.

Problems come from the lab, from a folder of the published TSV files, or from the hub. Question text is never altered:
Telugu and Bengali need their zero-width joiners, Japanese and Chinese their full-width colons.
"""

import json
import re
import string
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from layerswap.paths import UserError, data_folder


@dataclass(frozen=True)
class Problem:
    """A word problem: ``answer`` is the step-by-step answer where there is one, ``number`` the integer asked for."""

    id: str
    language: str
    question: str
    answer: str | None
    number: int


@dataclass(frozen=True)
class Extraction:
    """The number found in an answer (None if none) and the rule that found it: mark, phrase, last number, none."""

    value: Decimal | None
    rule: str


# The headers before question and step-by-step answer, as in the published exemplars.
HEADERS = {
    "bn": ("প্রশ্ন: ", "ধাপে ধাপে উত্তর: "),
    "de": ("Frage: ", "Schritt-für-Schritt-Antwort: "),
    "en": ("Question: ", "Step-by-Step Answer: "),
    "es": ("Pregunta: ", "Respuesta paso a paso: "),
    "fr": ("Question : ", "Réponse étape par étape : "),
    "ja": ("問題：", "ステップごとの答え："),
    "ru": ("Задача: ", "Пошаговое решение: "),
    "sw": ("Swali: ", "Jibu la Hatua kwa Hatua: "),
    "te": ("ప్రశ్న: ", "దశలవారీగా సమాధానం: "),
    "th": ("โจทย์: ", "คำตอบทีละขั้นตอน: "),
    "zh": ("问题：", "逐步解答："),
}
# What stands right before the number (or, in ja, within its sentence) when an answer is announced.
PHRASES = {
    "bn": r"উত্তর(?:\s*হলো|\s*হল|টি)?",
    "de": r"Antwort(?:\s+(?:lautet|ist))?",
    "en": r"answer(?:\s+is)?",
    "es": r"respuesta(?:\s+es)?",
    "fr": r"réponse(?:\s+est)?",
    "ja": r"答えは?",
    "ru": r"Ответ",
    "sw": r"Jibu(?:\s+ni)?",
    "te": r"సమాధానం",
    "th": r"คำตอบ(?:คือ)?",
    "zh": r"答案(?:是)?",
}
# lm-eval 0.4.13: what stands before and after the number in its strict filters (its Bengali one is English), and the
# one flexible filter.
STRICT = {
    "bn": ("The answer is ", ""), "de": ("Die Antwort lautet ", ""), "en": ("The answer is ", ""),
    "es": ("La respuesta es ", ""), "fr": ("La réponse est ", ""), "ja": ("答えは", "です。"), "ru": ("Ответ — ", ""),
    "sw": ("Jibu ni ", ""), "te": ("సమాధానం ", ""), "th": ("คำตอบคือ ", ""), "zh": ("答案是 ", "。"),
}  # fmt: skip
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
STYLES = ("lab", "native_cot", "direct")
DECIMAL_COMMA = ("de", "es", "fr", "ru")
SPACES = " '\u00a0\u2009\u202f"
DIGITS = r"\d+(?:[.,\u00a0\u2009\u202f' ]\d+)*"
NUMBER = re.compile(rf"[-+]?\s?[$€£¥₹]?\s?(?<![\d.,]){DIGITS}")
GROUPED = r"\d{{1,3}}(?:{s}\d{{3}})+|\d{{1,2}}(?:{s}\d{{2}})*{s}\d{{3}}"  # 1,234,567 or 12,34,567


def check(source, language):
    """UserError unless the source can hold MGSM and MGSM has the language."""
    if source != "local" and "/" not in source:
        raise UserError(f"source is {source!r}, expected lab, local or a hub id such as juletxara/mgsm")
    if language not in HEADERS:
        raise UserError(f"language {language!r} is not in MGSM, expected one of {', '.join(HEADERS)}")


def load(source, language, split="test", limit=None):
    """The problems of a language, the first ``limit`` of them.

    source: "lab" (any split), "local" (the TSV files in the folder LAYERSWAP_DATA/mgsm), or a hub id such as
    juletxara/mgsm. UserError for an unknown language, a missing or malformed file, a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the number of problems is {limit}, expected 1 or more")
    if source == "lab":
        from layerswap import lab

        return lab.problems(language, split, limit or 250)
    check(source, language)
    if split != "test":
        raise UserError(f"MGSM has no split {split!r}, expected test")
    if source == "local":
        rows = read_tsv(data_folder() / "mgsm" / f"mgsm_{language}.tsv")
    else:
        from datasets import load_dataset

        rows = [(row["question"], str(row["answer_number"])) for row in load_dataset(source, language, split="test")]
    problems = []
    for i, (question, number) in enumerate(rows[:limit]):
        value = to_number(number, "en")
        if value is None or value != int(value):
            raise UserError(f"mgsm {language}, row {i + 1}: answer {number!r}, expected an integer")
        problems.append(Problem(f"mgsm-{i:03d}", language, question, None, int(value)))
    return problems


def read_tsv(path):
    """[(question, answer)] of a published TSV file. UserError names the line that has not two fields."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    rows = [line.split("\t") for line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(f"{path}, line {i}: found {len(row)} fields, expected question and answer")
    return [(question, number.strip()) for question, number in rows]


def exemplars(source, language, n):
    """The first ``n`` published exemplars in their fixed order, without their native headers."""
    if n == 0:
        return []
    if source == "lab":
        return load(source, language, "train", n)
    check(source, language)
    if source == "local":
        path = data_folder() / "mgsm" / "exemplars.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected the published exemplars")
        rows = list(json.loads(path.read_text(encoding="utf-8"))["MGSM_EXEMPLARS"][language].values())
        pairs = [(row["q"], row["a"]) for row in rows]
    else:
        from datasets import load_dataset

        pairs = [(row["question"], row["answer"]) for row in load_dataset(source, language, split="train")]
    if n > len(pairs):
        raise UserError(f"{n} exemplars asked for, {language} has {len(pairs)}")
    found = []
    for i, (question, answer) in enumerate(pairs[:n]):
        number = extract(answer, language).value
        found.append(Problem(f"exemplar-{i}", language, bare(question), bare(answer), int(number)))
    return found


def bare(text):
    """A text without the header before its first colon."""
    return re.split(r"[:：]\s*", text, maxsplit=1)[1]


def prompt(problem, shots, style):
    """The prompt of a problem after ``shots`` solved ones.

    "lab": the lab's own markers. "native_cot": native headers and step-by-step answers, all prompts of a language share
    the shots as their prefix. "direct": native headers, shots answered by the bare number.
    """
    if style not in STYLES:
        raise UserError(f"style is {style!r}, expected one of {', '.join(STYLES)}")
    if style == "lab":
        from layerswap import lab

        return " ".join([f"{lab.prompt(s.question)} {s.answer} <eos>" for s in shots] + [lab.prompt(problem.question)])
    ask, reply = HEADERS[problem.language]
    solved = [f"{ask}{s.question}\n{reply}{s.answer if style == 'native_cot' else s.number}\n\n" for s in shots]
    return "".join(solved) + f"{ask}{problem.question}\n{reply.rstrip()}"


def stops(language, style):
    """Strings that end an answer: the header of a next question."""
    return () if style == "lab" else ("\n\n", HEADERS[language][0].rstrip())


def gold(problem, style):
    """The text whose loss is the answer loss: the worked answer where the data has one, else the bare number."""
    return f" {problem.answer}" if style == "lab" else f" {problem.number}"


def to_number(text, language):
    """The Decimal that a number's text means, or None: any script's digits, groups only where they are well formed."""
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text).replace("\u2212", "-")
    text = re.sub(r"[^\d.,'\-\u00a0\u2009\u202f ]", "", text).strip(" .,'")
    sign, body = (-1, text.lstrip("-+ ")) if text.startswith("-") else (1, text)
    for mark in (",", ".", *SPACES):
        point = "," if mark == "." else "."
        whole, _, rest = body.partition(point)
        well_formed = re.fullmatch(GROUPED.format(s=re.escape(mark)), whole)
        if well_formed and re.fullmatch(r"\d*", rest) and (mark != "." or language in DECIMAL_COMMA):
            return sign * Decimal(whole.replace(mark, "") + (f".{rest}" if rest else ""))
    if language in DECIMAL_COMMA:
        body = body.replace(",", ".")
    return sign * Decimal(body) if re.fullmatch(r"\d+(?:\.\d+)?", body) else None


def numbers(text, language):
    """The numbers of a text in order; a run that is no well-formed number is read piece by piece."""
    text = text.translate(str.maketrans("\uff0d\u2212\uff0e\uff0c", "--.,"))
    for found in NUMBER.finditer(text):
        raw = found.group()
        if found.start() and text[found.start() - 1].isalnum() and raw.startswith("-"):
            raw = raw[1:]  # a hyphen, no sign
        value = to_number(raw, language)
        yield from [value] if value is not None else (to_number(part, language) for part in re.findall(r"\d+", raw))


def extract(text, language, stop=()):
    """The number an answer gives. First after the mark ####, else after the last native (or English) announcement of
    the answer, else the last number of the last line that has one. Text after a stop string does not count.
    """
    for mark in stop:
        text = text.split(mark)[0]
    if "####" in text:
        value = next(numbers(text.split("####")[-1].split("\n")[0], language), None)
        return Extraction(value, "mark" if value is not None else "none")
    for phrase in (PHRASES.get(language, PHRASES["en"]), PHRASES["en"]):
        found = list(re.finditer(phrase, text, re.IGNORECASE))
        if found:
            sentence = re.split(r"\n|[.।。](?:\s|$)", text[found[-1].end() :])[0]
            value = next(numbers(sentence, language), None)
            if value is not None:
                return Extraction(value, "phrase")
    for line in reversed(text.splitlines()):
        if values := list(numbers(line, language)):
            return Extraction(values[-1], "last number")
    return Extraction(None, "none")


def lm_eval_scores(text, language, number):
    """(strict, flexible): whether lm-eval 0.4.13's two filters for native_cot find the number in an answer.

    For comparison with published figures; ``extract`` is what this project counts. Strict takes the first announced
    number, flexible the last run of digits and marks; both are compared without punctuation, signs included.
    """
    before, after = STRICT[language]
    announced = re.findall(rf"{before}(-?[0-9.,]+){after}", text)[:1]
    found = FLEXIBLE.findall(text)[-1:]
    marks = str.maketrans("", "", string.punctuation)
    return tuple("".join(said).translate(marks) == str(number).translate(marks) for said in (announced, found))
