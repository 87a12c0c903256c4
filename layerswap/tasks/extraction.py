"""The number that an answer gives, read from text in eleven languages, and lm-eval's scores for comparison.

Announcements ("the answer is", "Jibu ni"), digits of any script, grouped and decimal numbers, and calculations are
understood. The rules are tables of regular expressions at the top; benchmarks/extraction.py compares the scores of
lm-eval's filters with lm-eval itself.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


@dataclass(frozen=True)
class Extraction:
    """The number in an answer.

    Attributes:
        value: the number, None if there is none.
        rule: what found it: "mark", "phrase", "last number" or "none".
    """

    value: Decimal | None
    rule: str


# Headers before a question and a step-by-step answer, as in MGSM's published exemplars, and before a bare answer.
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
# What an answer is called, by language; ANNOUNCEMENT says what must follow.
ANSWER_WORDS = {
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
CLOSING_MARKS = r"[\s*_`\"”»」)]*"  # quotes, brackets and emphasis between the word and what follows
COPULAS = r"(?:is|was|would be|should be|will be|lautet|ist|es|est|ni)\b|হলো|হল|হবে|คือ|は|是|为|為|[:：=—–→]"
ANNOUNCEMENT = rf"(?:{CLOSING_MARKS}(?:{COPULAS})|(?={CLOSING_MARKS}[$€£¥₹]?\d))"
# lm-eval 0.4.13: what stands before and after the number in its strict filters (its Bengali one is English), and the
# one flexible filter.
LM_EVAL_STRICT = {
    "bn": ("The answer is ", ""), "de": ("Die Antwort lautet ", ""), "en": ("The answer is ", ""),
    "es": ("La respuesta es ", ""), "fr": ("La réponse est ", ""), "ja": ("答えは", "です。"), "ru": ("Ответ — ", ""),
    "sw": ("Jibu ni ", ""), "te": ("సమాధానం ", ""), "th": ("คำตอบคือ ", ""), "zh": ("答案是 ", "。"),
}  # fmt: skip
LM_EVAL_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
DECIMAL_COMMA = ("de", "es", "fr", "ru")  # languages that write 1.234,5
GROUP_MARKS = ",. '\u00a0\u2009\u202f"  # what may stand between groups of digits
# A run of digits with marks in it, or a decimal without its zero; a number with its sign and currency.
DIGITS = r"\d+(?:[.,\u00a0\u2009\u202f' ]\d+)*|(?<![^\s$€£¥₹(])\.\d+"
NUMBER = rf"[-+]?(?:[$€£¥₹]\s?)?(?<!\d)(?<!\d[.,])(?:{DIGITS})"  # "- 5" is a list item
GROUPED = r"[1-9]\d{{0,2}}(?:{s}\d{{3}})+|[1-9]\d?(?:{s}\d{{2}})*{s}\d{{3}}"  # 1,234,567 or 12,34,567
OPERAND = rf"[\s(（]*{NUMBER}\s?[^\W\d]*[\s)）]*"  # a number with its unit, in or out of brackets
CALCULATION = re.compile(rf"{OPERAND}(?:(?:[-+*/×÷=–]|\bx\b|:(?=\s)){OPERAND})*")
# 11万4200 and 3万5千 in Chinese and Japanese.
TEN_THOUSANDS = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s?[万萬]\s?(?:(\d)千|(\d{1,4}))?(?!\d)")
# Replacements (pattern, text) after which one spelling is left: full-width marks, the minus sign, LaTeX.
REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        ("[\uff0d\u2212]", "-"), ("\uff0b", "+"), ("\uff1d", "="), (r"(?<=\d)\uff0e(?=\d)", "."),
        (r"(?<=\d)\uff0c(?=\d)", ","), (r"(?<=\d)\u2019(?=\d)", "'"), (r"\\!", ""), (r"\{,\}", ","),
        (r"(?<=\d)\\[,;:](?=\d)", ","), (r"\\times\b|\\cdot\b|[⋅·]", "×"), (r"\\div\b", "÷"), (r"\\[()\[\]]", " "),
    ]
]  # fmt: skip
STEP_NUMBER = re.compile(r"(?m)^[ \t]*\d{1,2}[.)][ \t]+(?=\S)")  # "2. " before a step
SENTENCE_END = re.compile(r"\n|[。।]|[.!?](?:\s|$)")


@cache
def language_identifier() -> "LanguageIdentifier":
    """py3langid's model, confined to MGSM's languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(HEADERS))
    return identifier


def identify_language(text: str) -> str | None:
    """The MGSM language that a text is in (py3langid), or None for one of fewer than 20 letters."""
    return language_identifier().classify(text)[0] if sum(c.isalpha() for c in text) >= 20 else None


def to_number(text: str, language: str) -> Decimal | None:
    """The number that a text means, or None: digits of any script, groups only where they are well formed.

    Args:
        text: such as "1,234.5", "-$5" or "౧౮".
        language: says whether a comma or a point is the decimal mark.
    """
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
    text = re.sub(r"[^\d.,'\-\u00a0\u2009\u202f ]", "", text).strip(" ,'").rstrip(".")
    sign, body = (-1, text.lstrip("-+ ")) if text.startswith("-") else (1, text)
    for group_mark in GROUP_MARKS:
        point = "," if group_mark == "." or group_mark != "," and language in DECIMAL_COMMA else "."
        whole, _, fraction = body.partition(point)
        well_formed = re.fullmatch(GROUPED.format(s=re.escape(group_mark)), whole)
        if well_formed and re.fullmatch(r"\d*", fraction) and (group_mark != "." or language in DECIMAL_COMMA):
            return sign * Decimal(whole.replace(group_mark, "") + (f".{fraction}" if fraction else ""))
    if language in DECIMAL_COMMA:
        body = body.replace(",", ".")
    return sign * Decimal(body) if re.fullmatch(r"\d*(?:\.\d+)?", body) and body else None


def find_numbers(text: str, language: str) -> Iterator[Decimal]:
    """The numbers of a text in order; a run that is no well-formed number is read piece by piece."""
    for match in re.finditer(NUMBER, text):
        raw = match.group()
        previous = text[match.start() - 1] if match.start() else " "
        if raw.startswith("-") and previous.isalnum() and unicodedata.category(previous) != "Lo":
            raw = raw[1:]  # a hyphen, no sign; but a sign in scripts that write no spaces
        value = to_number(raw, language)
        pieces = [value] if value is not None else [to_number(digits, language) for digits in re.findall(r"\d+", raw)]
        yield from (piece for piece in pieces if piece is not None)


def normalize(text: str, language: str) -> str:
    """A text in one spelling of signs, marks and LaTeX, without an answer's header and the numbers of its steps."""
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if language in ("ja", "zh"):
        text = TEN_THOUSANDS.sub(lambda match: str(expand_ten_thousands(*match.groups())), text)
    for code in (language, "en"):
        text = text.replace(HEADERS[code][1].rstrip(" :："), "")
    return STEP_NUMBER.sub("", text) if re.search(r"(?m)^[ \t]*1[.)][ \t]", text) else text


def expand_ten_thousands(ten_thousands: str, thousands: str | None, units: str | None) -> int:
    """The groups of ``TEN_THOUSANDS`` as a number: ("3", "5", None) is 35000."""
    whole = Decimal(ten_thousands.replace(",", "")) * 10000
    return int(whole + 1000 * int(thousands or 0) + int(units or 0))


def extract(text: str, language: str, stop: Sequence[str] = ()) -> Extraction:
    """The number that an answer gives.

    First in the last mark (\\boxed, or GSM8K's #### before nothing but a number), else after the last announcement of
    the answer, native or English, that has one, else the last number of the last line that has one.

    Args:
        text: the answer.
        language: of the question; one of ``HEADERS``.
        stop: strings that end an answer; text after one does not count.
    """
    text = normalize(text[: min((start for start in map(text.find, stop) if start >= 0), default=len(text))], language)
    for mark in (r"\\boxed\{([^{}]*)\}", rf"####[ \t]*({CALCULATION.pattern}[^\d\n]*)$"):
        for content in reversed(re.findall(mark, text, re.MULTILINE)):
            if (value := stated_number(content, language)) is not None:
                return Extraction(value, "mark")
    for word in (ANSWER_WORDS[language], ANSWER_WORDS["en"]):
        for match in reversed(list(re.finditer(rf"(?:{word}){ANNOUNCEMENT}", text, re.IGNORECASE))):
            rest = re.sub(rf"^{CLOSING_MARKS}", "", text[match.end() :])
            if (value := stated_number(SENTENCE_END.split(rest)[0], language)) is not None:
                return Extraction(value, "phrase")
    for line in reversed(text.splitlines()):
        if values := list(find_numbers(line, language)):
            return Extraction(values[-1], "last number")
    return Extraction(None, "none")


def stated_number(sentence: str, language: str) -> Decimal | None:
    """The first number of a sentence, or the result of the calculation that begins there; None if there is none."""
    match = CALCULATION.search(sentence)
    left, _, result = match.group().rpartition("=") if match else ("", "", "")
    return next(find_numbers(result if left else sentence, language), None)


def lm_eval_scores(text: str, language: str, number: int, style: str) -> tuple[bool, bool]:
    """Whether lm-eval 0.4.13's two filters for a style find the number in an answer.

    For comparison with published figures; ``extract`` is what this project counts. Both filters are compared without
    punctuation, signs included. Styles that lm-eval does not have are scored like "native_cot".

    Returns:
        (strict, flexible). Strict takes the first announced number (in "direct" the whole answer), flexible the last
        run of digits and marks.
    """
    before, after = LM_EVAL_STRICT.get("en" if style == "en_cot" else language, LM_EVAL_STRICT["en"])
    announced = re.findall(rf"{before}(-?[0-9.,]+){after}", text)[:1]
    strict = text.strip() if style == "direct" else "".join(announced)
    flexible = "".join(LM_EVAL_FLEXIBLE.findall(text)[-1:])
    marks = str.maketrans("", "", string.punctuation)
    expected = str(number).translate(marks)
    return strict.translate(marks) == expected, flexible.translate(marks) == expected
