"""MGSM (Shi et al., arXiv 2210.03057): problems, prompts, and the number that an answer means.

Problems come from the lab, from a folder of the published TSV files, or from the hub. Question text is never altered:
Telugu and Bengali need their zero-width joiners, Japanese and Chinese their full-width colons.
"""

import json
import re
import string
import unicodedata
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

from layerswap.paths import UserError, data_folder, one_line


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


# The headers before question and step-by-step answer, as in the published exemplars, and before a bare answer.
HEADERS = {
    "bn": ("প্রশ্ন: ", "ধাপে ধাপে উত্তর: ", "উত্তর: "),
    "de": ("Frage: ", "Schritt-für-Schritt-Antwort: ", "Antwort: "),
    "en": ("Question: ", "Step-by-Step Answer: ", "Answer: "),
    "es": ("Pregunta: ", "Respuesta paso a paso: ", "Respuesta: "),
    "fr": ("Question : ", "Réponse étape par étape : ", "Réponse : "),
    "ja": ("問題：", "ステップごとの答え：", "答え："),
    "ru": ("Задача: ", "Пошаговое решение: ", "Ответ: "),
    "sw": ("Swali: ", "Jibu la Hatua kwa Hatua: ", "Jibu: "),
    "te": ("ప్రశ్న: ", "దశలవారీగా సమాధానం: ", "సమాధానం: "),
    "th": ("โจทย์: ", "คำตอบทีละขั้นตอน: ", "คำตอบ: "),
    "zh": ("问题：", "逐步解答：", "答案："),
}
# What is asked of a model in a chat, before the question: to reason, then to give the number after the header.
INSTRUCTIONS = {
    "bn": 'এই গণিতের সমস্যাটি ধাপে ধাপে সমাধান করো। তারপর শেষ লাইনে "{}" লিখে শুধু উত্তরের সংখ্যাটি লেখো।',
    "de": 'Löse diese Rechenaufgabe Schritt für Schritt. Schreibe dann in die letzte Zeile "{}" und nur die Zahl.',
    "en": 'Solve this math problem step by step. Then write "{}" and only the number on the last line.',
    "es": 'Resuelve este problema paso a paso. Después escribe en la última línea "{}" y solo el número.',
    "fr": "Résous ce problème étape par étape. Écris ensuite, sur la dernière ligne, « {} » et seulement le nombre.",
    "ja": "この算数の問題を順を追って解いてください。そして最後の行に「{}」と答えの数字だけを書いてください。",
    "ru": "Реши эту задачу шаг за шагом. Затем напиши в последней строке «{}» и только число.",
    "sw": 'Tatua swali hili la hesabu hatua kwa hatua. Kisha andika "{}" na namba peke yake kwenye mstari wa mwisho.',
    "te": 'ఈ గణిత సమస్యను దశలవారీగా పరిష్కరించండి. తర్వాత చివరి పంక్తిలో "{}" అని, సంఖ్యను మాత్రమే రాయండి.',
    "th": 'แก้โจทย์คณิตศาสตร์นี้ทีละขั้นตอน แล้วเขียน "{}" และตัวเลขคำตอบเท่านั้นในบรรทัดสุดท้าย',
    "zh": "请逐步解答这道数学题。然后在最后一行写出“{}”和答案的数字，不要写别的。",
}
# What an answer is called; it is announced where one of BEFORE, or the number itself, follows.
PHRASES = {
    "bn": r"উত্তর(?:টি)?",
    "de": r"\bAntwort",
    "en": r"\banswer",
    "es": r"\brespuesta",
    "fr": r"\bréponse",
    "ja": r"答え|解答|回答",
    "ru": r"\bответ",
    "sw": r"\bjibu",
    "te": r"సమాధానం|జవాబు",
    "th": r"คำตอบ",
    "zh": r"答案|(?<!解)答",
}
QUOTES = r"[\s*_`\"”»」)]*"
COPULAS = r"(?:is|was|would be|should be|will be|lautet|ist|es|est|ni)\b|হলো|হল|হবে|คือ|は|是|为|為|[:：=—–→]"
BEFORE = rf"(?:{QUOTES}(?:{COPULAS})|(?={QUOTES}[$€£¥₹]?\d))"
# lm-eval 0.4.13: what stands before and after the number in its strict filters (its Bengali one is English), and the
# one flexible filter.
STRICT = {
    "bn": ("The answer is ", ""), "de": ("Die Antwort lautet ", ""), "en": ("The answer is ", ""),
    "es": ("La respuesta es ", ""), "fr": ("La réponse est ", ""), "ja": ("答えは", "です。"), "ru": ("Ответ — ", ""),
    "sw": ("Jibu ni ", ""), "te": ("సమాధానం ", ""), "th": ("คำตอบคือ ", ""), "zh": ("答案是 ", "。"),
}  # fmt: skip
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
STYLES = ("lab", "native_cot", "en_cot", "direct", "chat")
# Sources below LAYERSWAP_DATA: MGSM as published, and its corrected translations (MGSM-Rev2, arXiv 2511.05162).
FOLDERS = {"local": "mgsm", "rev2": "mgsm_rev2"}
VALIDATION = 50  # problems, the last of MGSM's 250: it has no validation split
DECIMAL_COMMA = ("de", "es", "fr", "ru")
SPACES = " '\u00a0\u2009\u202f"
DIGITS = r"\d+(?:[.,\u00a0\u2009\u202f' ]\d+)*|(?<![^\s$€£¥₹(])\.\d+"
NUMBER = rf"[-+]?(?:[$€£¥₹]\s?)?(?<!\d)(?<!\d[.,])(?:{DIGITS})"  # a sign stands at its number: "- 5" is a list
GROUPED = r"[1-9]\d{{0,2}}(?:{s}\d{{3}})+|[1-9]\d?(?:{s}\d{{2}})*{s}\d{{3}}"  # 1,234,567 or 12,34,567
OPERAND = rf"[\s(（]*{NUMBER}\s?[^\W\d]*[\s)）]*"  # a number with its unit, in or out of brackets
CALCULATION = re.compile(rf"{OPERAND}(?:(?:[-+*/×÷=–]|\bx\b|:(?=\s)){OPERAND})*")
# 11万4200 and 3万5千 in Chinese and Japanese.
TEN_THOUSANDS = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s?[万萬]\s?(?:(\d)千|(\d{1,4}))?(?!\d)")
# What means the same, so that one spelling is left: full width marks, the minus sign, LaTeX.
SPELLINGS = [
    (re.compile(pattern), to)
    for pattern, to in [
        ("[\uff0d\u2212]", "-"), ("\uff0b", "+"), ("\uff1d", "="), (r"(?<=\d)\uff0e(?=\d)", "."),
        (r"(?<=\d)\uff0c(?=\d)", ","), (r"(?<=\d)\u2019(?=\d)", "'"), (r"\\!", ""), (r"\{,\}", ","),
        (r"(?<=\d)\\[,;:](?=\d)", ","), (r"\\times\b|\\cdot\b|[⋅·]", "×"), (r"\\div\b", "÷"), (r"\\[()\[\]]", " "),
    ]
]  # fmt: skip
LISTED = re.compile(r"(?m)^[ \t]*\d{1,2}[.)][ \t]+(?=\S)")  # "2. " before a step
SENTENCE_END = re.compile(r"\n|[。।]|[.!?](?:\s|$)")


def check(source, language, style=None):
    """UserError unless the source can hold MGSM, MGSM has the language, and the prompt style exists."""
    if source not in FOLDERS and source != "lab" and "/" not in source:
        known = ", ".join(["lab", *FOLDERS])
        raise UserError(f"source is {source!r}, expected {known} or a hub id such as juletxara/mgsm@<commit>")
    if language not in HEADERS:
        raise UserError(f"language {language!r} is not in MGSM, expected one of {', '.join(HEADERS)}")
    if style is not None and style not in STYLES:
        raise UserError(f"style is {style!r}, expected one of {', '.join(STYLES)}")
    if style == "lab" and source != "lab":
        raise UserError(
            f"style lab is for the lab's own problems, source is {source!r}; expected {', '.join(STYLES[1:])}"
        )


def load(source, language, split="test", limit=None):
    """The problems of a language, the first ``limit`` of them.

    split: test, or validation, on which settings may be chosen: the lab's own, of MGSM its last VALIDATION problems (it
    has none of its own; then score no more than those before). source: "lab"; "local" or "rev2" (the TSV files in
    LAYERSWAP_DATA/mgsm or mgsm_rev2); a data set on the hub at one commit, such as juletxara/mgsm@<commit>; or the
    folder of such a data set. UserError for an unknown language, a missing or malformed file, a hub id without its
    commit, a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the number of problems is {limit}, expected 1 or more")
    check(source, language)
    if source == "lab":
        from layerswap import lab

        return lab.problems(language, split, limit or 250)
    if split not in ("test", "validation"):
        raise UserError(f"MGSM has no split {split!r}, expected test or validation")
    if source in FOLDERS:
        rows = read_tsv(tsv_path(source, language))
    else:
        rows = [(row["question"], str(row["answer_number"])) for row in hub_rows(source, language, "test")]
    if not rows:
        raise UserError(f"mgsm {language} from {source} holds no problems")
    problems = []
    start = max(len(rows) - VALIDATION, 0) if split == "validation" else 0
    for i, (question, number) in list(enumerate(rows))[start:][:limit]:
        value = to_number(number, "en")
        if value is None or value != int(value):
            raise UserError(f"mgsm {language}, row {i + 1}: answer {number!r}, expected an integer")
        problems.append(Problem(f"mgsm-{i:03d}", language, question, None, int(value)))
    return problems


def hub_rows(source, language, split):
    """The rows of a data set on the hub, or in a folder that is laid out like one."""
    name, _, commit = source.partition("@")
    if not commit and not Path(name).is_dir():
        raise UserError(f"source {source}: expected {name}@<commit>, so that the problems stay the same")
    what = f"source {source}: {split} of {language}"
    return hub_split(what, name, language, split, commit, ["question", "answer", "answer_number"])


def hub_split(what, name, configuration, split, commit, columns=None):
    """The rows of a split of a data set on the hub, as dicts of these columns (all). ``what``: for the error."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = list(load_dataset(name, configuration, split=split, revision=commit or None))
        return [{column: row[column] for column in columns} for row in rows] if columns else rows
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{what} cannot be loaded ({one_line(error)})") from None


def tsv_path(source, language):
    """The one TSV file of a language, whatever stands before its ``_<language>.tsv``."""
    folder = data_folder() / FOLDERS[source]
    found = sorted(folder.glob(f"*_{language}.tsv"))
    if len(found) != 1:
        raise UserError(f"{folder}: found {len(found)} files *_{language}.tsv, expected one")
    return found[0]


def read_tsv(path):
    """[(question, answer)] of a published TSV file. UserError names the line that has not two fields."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    rows = [line.split("\t") for line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if len(row) != 2 or not all(field.strip() for field in row):
            filled = sum(bool(field.strip()) for field in row)
            raise UserError(f"{path}, line {i}: found {filled} fields, expected question and answer")
    return [(question, number.strip()) for question, number in rows]


def exemplars(source, language, n, style="native_cot"):
    """The first ``n`` published exemplars in their fixed order, without their headers.

    Their answers are native, and English in style "en_cot" (the same exemplars, as MGSM has them in English).
    UserError if there are not so many, and for a style that takes none.
    """
    check(source, language, style)
    if n and style == "chat":
        raise UserError(f"{n} exemplars asked for, style chat takes 0")
    if n == 0:
        return []
    if source == "lab":
        return load(source, language, "train", n)
    if source in FOLDERS:
        pairs = published_exemplars(source, language)
    else:
        pairs = [(row["question"], row["answer"]) for row in hub_rows(source, language, "train")]
    if n > len(pairs):
        raise UserError(f"{n} exemplars asked for, {language} has {len(pairs)}")
    found = []
    for i, (question, answer) in enumerate(pairs[:n]):
        number = extract(answer, language).value
        if number is None:
            raise UserError(f"exemplar {i} of {language} has no number in its answer {answer[:60]!r}")
        found.append(Problem(f"exemplar-{i}", language, bare(question, language), bare(answer, language), int(number)))
    if style != "en_cot":
        return found
    english = exemplars(source, "en", n)
    for native, translated in zip(found, english, strict=True):
        if native.number != translated.number:
            raise UserError(f"{native.id} is {native.number} in {language} and {translated.number} in en")
    return [replace(native, answer=translated.answer) for native, translated in zip(found, english, strict=True)]


def published_exemplars(source, language):
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


def bare(text, language):
    """An exemplar's text without its header."""
    header = next((header.rstrip() for header in HEADERS[language] if text.startswith(header.rstrip())), "")
    return text.removeprefix(header).lstrip()


def prompt(problem, shots, style):
    """The prompt of a problem after ``shots`` solved ones; all prompts of a language share the shots as their prefix.

    "lab": the lab's own markers. "native_cot": native headers and step-by-step answers. "en_cot": native questions,
    English header and (in the shots) answers. "direct": shots answered by the bare number. "chat": what the user says,
    for the tokenizer's chat template, without shots.
    """
    check("lab", problem.language, style)
    if style == "lab":
        from layerswap import lab

        return " ".join([f"{lab.prompt(s.question)} {s.answer} <eos>" for s in shots] + [lab.prompt(problem.question)])
    ask, steps, bare_answer = HEADERS[problem.language]
    if style == "chat":
        return f"{INSTRUCTIONS[problem.language].format(bare_answer.strip())}\n\n{problem.question}"
    reply = {"native_cot": steps, "en_cot": HEADERS["en"][1], "direct": bare_answer}[style]
    solved = [f"{ask}{s.question}\n{reply}{s.number if style == 'direct' else s.answer}\n\n" for s in shots]
    return "".join(solved) + f"{ask}{problem.question}\n{reply.rstrip()}"


def stops(language, style, shots=True):
    """Strings that end an answer: the header of a next question, and a blank line after shots; a chat ends itself."""
    return () if style in ("lab", "chat") else (*["\n\n"][:shots], HEADERS[language][0].rstrip())


def gold(problem, style):
    """The text whose loss is the answer loss: the worked answer where the data has one, else the bare number."""
    space = "" if style == "chat" or not HEADERS[problem.language][1].endswith(" ") else " "
    return f" {problem.answer}" if style == "lab" else f"{space}{problem.number}"


def spoken(language, style):
    """The language an answer should be in; the lab's solutions are English."""
    return "en" if style in ("en_cot", "lab") else language


@cache
def identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(list(HEADERS))
    return found


def language_of(text):
    """The MGSM language that a text is in (py3langid), or None for one of fewer than 20 letters."""
    return identifier().classify(text)[0] if sum(c.isalpha() for c in text) >= 20 else None


def to_number(text, language):
    """The Decimal that a number's text means, or None: any script's digits, groups only where they are well formed."""
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
    text = re.sub(r"[^\d.,'\-\u00a0\u2009\u202f ]", "", text).strip(" ,'").rstrip(".")
    sign, body = (-1, text.lstrip("-+ ")) if text.startswith("-") else (1, text)
    for mark in (",", ".", *SPACES):
        point = "," if mark == "." or mark != "," and language in DECIMAL_COMMA else "."
        whole, _, rest = body.partition(point)
        well_formed = re.fullmatch(GROUPED.format(s=re.escape(mark)), whole)
        if well_formed and re.fullmatch(r"\d*", rest) and (mark != "." or language in DECIMAL_COMMA):
            return sign * Decimal(whole.replace(mark, "") + (f".{rest}" if rest else ""))
    if language in DECIMAL_COMMA:
        body = body.replace(",", ".")
    return sign * Decimal(body) if re.fullmatch(r"\d*(?:\.\d+)?", body) and body else None


def numbers(text, language):
    """The numbers of a text in order; a run that is no well-formed number is read piece by piece."""
    for found in re.finditer(NUMBER, text):
        raw = found.group()
        before = text[found.start() - 1] if found.start() else " "
        if raw.startswith("-") and before.isalnum() and unicodedata.category(before) != "Lo":
            raw = raw[1:]  # a hyphen, no sign; but a sign in scripts that write no spaces
        value = to_number(raw, language)
        yield from [value] if value is not None else (to_number(part, language) for part in re.findall(r"\d+", raw))


def spelled(text, language):
    """A text in one spelling: signs, marks and LaTeX; without the header of an answer and the numbers of its steps."""
    for pattern, to in SPELLINGS:
        text = pattern.sub(to, text)
    if language in ("ja", "zh"):
        text = TEN_THOUSANDS.sub(lambda found: str(in_units(*found.groups())), text)
    for code in (language, "en"):
        text = text.replace(HEADERS[code][1].rstrip(" :："), "")
    return LISTED.sub("", text) if re.search(r"(?m)^[ \t]*1[.)][ \t]", text) else text


def in_units(ten_thousands, thousands, units):
    whole = Decimal(ten_thousands.replace(",", "")) * 10000
    return int(whole + 1000 * int(thousands or 0) + int(units or 0))


def extract(text, language, stop=()):
    """The number an answer gives. First in the last mark (\\boxed, or GSM8K's #### before nothing but a number), else
    after the last native (or English) announcement of the answer that has one, else the last number of the last line
    that has one. Text after a stop string does not count.
    """
    text = spelled(text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))], language)
    for mark in (r"\\boxed\{([^{}]*)\}", rf"####[ \t]*({CALCULATION.pattern}[^\d\n]*)$"):
        for said in reversed(re.findall(mark, text, re.MULTILINE)):
            if (value := stated(said, language)) is not None:
                return Extraction(value, "mark")
    for phrase in (PHRASES[language], PHRASES["en"]):
        for found in reversed(list(re.finditer(rf"(?:{phrase}){BEFORE}", text, re.IGNORECASE))):
            said = re.sub(rf"^{QUOTES}", "", text[found.end() :])
            if (value := stated(SENTENCE_END.split(said)[0], language)) is not None:
                return Extraction(value, "phrase")
    for line in reversed(text.splitlines()):
        if values := list(numbers(line, language)):
            return Extraction(values[-1], "last number")
    return Extraction(None, "none")


def stated(sentence, language):
    """The first number of a sentence, or what the calculation that begins there comes to; None if there is none."""
    found = CALCULATION.search(sentence)
    said, _, result = found.group().rpartition("=") if found else ("", "", "")
    values = numbers(result, language) if said else numbers(sentence, language)
    return next(values, None)


def lm_eval_scores(text, language, number, style):
    """(strict, flexible): whether lm-eval 0.4.13's two filters for a style find the number in an answer.

    For comparison with published figures; ``extract`` is what this project counts. Strict takes the first announced
    number (in "direct" the whole answer), flexible the last run of digits and marks; both are compared without
    punctuation, signs included. Styles that lm-eval does not have are scored like "native_cot".
    """
    before, after = STRICT["en" if style == "en_cot" else language]
    said = [text.strip()] if style == "direct" else re.findall(rf"{before}(-?[0-9.,]+){after}", text)[:1]
    found = FLEXIBLE.findall(text)[-1:]
    marks = str.maketrans("", "", string.punctuation)
    return tuple("".join(each).translate(marks) == str(number).translate(marks) for each in (said, found))
