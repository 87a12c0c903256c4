"""The number that an answer gives, read from text in eleven languages, and lm-eval's scores for comparison.

Announcements ("the answer is", "Jibu ni"), digits of any script, grouped and decimal numbers, and calculations are
understood. The rules are tables of regular expressions at the top; ``extract`` says in what order they count.
benchmarks/extraction.py measures them on answers of models, and compares the scores of lm-eval's filters with lm-eval.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


@dataclass(frozen=True)
class Extraction:
    """The number in an answer.

    Attributes:
        value: the number, None if there is none.
        rule: what found it: "mark", "phrase", "last number" or "none"; "truncated" if the text ends in its thinking.
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
    "en": r"(?<!to )\banswer",
    "es": r"(?<!sin )\brespuesta",
    "fr": r"(?<!sans )\bréponse",
    "ja": r"答え|解答|回答|答案|答(?=\W)",
    "ru": r"(?<!без )\bответ",
    "sw": r"\bjibu",
    "te": r"సమాధానం|జవాబు",
    "th": r"คำตอบ",
    "zh": r"答案|解答|回答|答(?=\W)",
}
# What is no space, digit or mark: to regular expressions, vowel signs of Indian scripts and Thai are no letters.
LETTER = r"[^\s\d!-/:-@\[-`{-~\u00a0-\u00bf×÷–—’“”„…、。，；：！？（）「」・।≈€₹\ufffc]"
MARKS = r"[\s*_`\"”»」)>$]*"  # emphasis, quotes, brackets and mathematics that may stand before a number
QUALIFIERS = rf"(?:[ \t]+{LETTER}+){{0,3}}?"  # "réponse finale est"
COPULAS = r"(?:is|was|would be|should be|will be|lautet|ist|es|est|ni)\b|হলো|হল|হবে|คือ|は|是|为|為|[:：=—–→]"
ANNOUNCEMENT = rf"(?:{QUALIFIERS}{MARKS}(?:{COPULAS})|(?={MARKS}[€£¥₹]?\d))"
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
# "- 5" is a list item. Atomic, and never begun within a run: long lists of numbers would take time in square.
NUMBER = rf"[-+]?(?:[$€£¥₹]\s?)?(?<!\d)(?<!\d[.,\u00a0\u2009\u202f' ])(?>{DIGITS})"
GROUPED = r"[1-9]\d{{0,2}}(?:{s}\d{{3}})+|[1-9]\d?(?:{s}\d{{2}})*{s}\d{{3}}"  # 1,234,567 or 12,34,567
NO_NUMBER = "\ufffc"  # stands for what has digits and is not one number: a clock time, a fraction, "3 or 4"
UNIT = rf"\s?{LETTER}*[ \t)）$€£¥₹%°]*"
OPERAND = rf"[ \t(（]*(?:{NUMBER}|{NO_NUMBER}){UNIT}"  # a number with its unit, in or out of brackets
OPERATOR = r"(?:[-+*/×÷–=]|\bx\b|(?<=\s):(?=\s))"
CALCULATION = re.compile(rf"{OPERAND}(?:{OPERATOR}{OPERAND})+")
# What a calculation comes to: the number after an equality sign, unless it is calculated with there.
RESULT = re.compile(rf"[=≈]{MARKS}(?:{LETTER}+\s)?({NUMBER})(?![.,]?\d)(?!{UNIT}(?:[-/–x]\s?[\d$(]|[×÷+]|\*(?!\*)))")
BOX = re.compile(r"\\f?boxed?\s?\{((?:[^{}]|\{[^{}]*\})*)\}")
GSM8K_MARK = re.compile(
    rf"####(?![ \t]*\d+[.)][ \t]*\S)[ \t]*({OPERAND}(?:{OPERATOR}{OPERAND})*[^\d\n]*)$", re.MULTILINE
)
BOLD = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
IN_BRACKETS = re.compile(r"\s?[(（\[][^()（）\n]*[)）\]]")
SHORT_UNIT = rf"\s?(?:[a-zа-яäöüßéèêçñáíóú]*|{LETTER}{{0,4}}(?<![后後内內中でに間间]))[ \t)$€£¥₹%°]*"
HAS_NUMBER = re.compile(rf"[\d{NO_NUMBER}]")
IS_NO_NUMBER = re.compile(rf"\W*{NO_NUMBER}{UNIT}(?:[,.;，]|$)|[^\d]*{NO_NUMBER}[^\d]*$")
BARE_NUMBER = re.compile(rf"\W*?{NUMBER}{SHORT_UNIT}\W*?(?=[,，、;]|\.?\s*$)", re.IGNORECASE)
# "3 or 4", "from 240 to 300 dollars", "3 and 4": which of them is not said.
OR_WORDS = r"\b(?:or|oder|o|ou|или|au)\b|లేదా|বা|অথবা|หรือ|または|或者?"
ALTERNATIVE_WORDS = rf"{OR_WORDS}|\b(?:to|bis|à|a|до|hadi|and|und|y|et|и|na)\b|మరియు|ও|এবং|และ|ถึง|か|から|と|到|至|和"
ALTERNATIVES = (
    rf"(?<!\d,\s){NUMBER}\s?(?:{ALTERNATIVE_WORDS})\s?{NUMBER}|"
    rf"{NUMBER}\s?(?P<unit>{LETTER}{{1,20}}?)\s?(?:{ALTERNATIVE_WORDS})\s?{NUMBER}\s?(?P=unit)"
)
# A number that tells which or how large, not how many: "30-minute", "6th", "第6", "6回目", "the 24 liters", "42 + 4".
MODIFIER = re.compile(
    rf"\d+-{LETTER}|\d+\s?[-+*/×÷]\s?(?=\d)|\d+(?:st|nd|rd|th|º|ª|er|ère|ème|ম|য়|র্থ|ঠ|వ)\b|第\s?\d+|ที่\s?\d+|"
    r"\d+\s?(?:つ|回|番|日|か所|個|人|年)?目|\d+\w{1,3}(?:あたり|当たり|につき|ごと)|"
    r"\d+\s?(?:分間?|時間|日間?|年間?|円|ドル|インチ|センチ|メートル|マイル|グラム)の|\d+\s?(?:分钟|小时|英寸|厘米)的|"
    r"\b(?:the|all|these|those|his|her|their|first|last|next|remaining|den|allen?|diesen?|ersten|letzten|nächsten|"
    r"verbleibenden|restlichen|los|las|est[oa]s|primer[oa]s|últim[oa]s|próxim[oa]s|les|des|ces|ses|premi[eè]re?s|"
    r"derni[eè]re?s|все|всех|этих|перв\w+|последн\w+|оставшихся|следующ\w+)\s\d+|"
    r"(?:全部|所有|这|前|后|剩下的|最初の|最後の|残りの|ทั้ง)\s?\d+", re.IGNORECASE,
)  # fmt: skip
REASONS = (
    r"\b(?:because|weil|porque|parce que|потому что|так как|kwa sababu|kwa kuwa)\b|ఎందుకంటే|কারণ|যেহেতু|เพราะ|"
    r"เนื่องจาก|なぜなら|因为|因為|由于"
)
PREMISES = (  # which mean more than that elsewhere in a sentence
    r"\b(?:since|as|denn|da|ya que|dado que|puesto que|como|car|puisque|étant donné que|comme|поскольку)\b"
)
CONDITIONS = (
    r"\b(?:after|in|by|for|with|within|during|over|if|nach|bei|mit|für|wenn|después de|tras|en|con|para|durante|si|"
    r"après|dans|avec|pour|pendant|через|после|за|спустя|если|baada ya|kwa|katika|ikiwa)\b|หลังจาก|ใน"
)
EQUALS = r"\b(?:is|are|equals?|ist|sind|entspr\w+|es|son|est|sont|font|ni)\b|は|是|等于"
# What is left out of a sentence, as long as a number is left: "since 60 minutes are an hour, ...", "after 4 hours, ",
# "..., because 3 + 4 = 7", and what stands before the same in another unit ("180 minutes, that is ...").
ASIDES = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in [
        (IN_BRACKETS.pattern, ""), (ALTERNATIVES, NO_NUMBER),
        (rf"^.{{0,12}}?(?:{REASONS}|{PREMISES}|{CONDITIONS})(?:[^,，、]|,(?=\d))*[,，、]", " "),
        (rf"^\W*(?:{CONDITIONS})\s(?:{LETTER}+\s)?{NUMBER}{UNIT}", " "),
        (r"^[^,，、\d]*\d[^,，、\d]*(?:[后後内內中で間间]|には?)[,，、]", " "), ("^.*?(?:ので|ため)、", " "),
        (rf"(?<=\d)[^\d]*?(?:{REASONS}|,\s?{PREMISES}).*", " "),
        (rf"(?<=\d){UNIT}(?:{LETTER}+\s)?,?\s?(?:{OR_WORDS})\s[^\d]*?{NUMBER}{UNIT}", " "),
        (r"^.*(?:\b(?:that is|i\.e\.|das heißt|d\. ?h\.|das sind|es decir|o sea|c'est-à-dire|soit|то есть|yaani)\b|"
         r"つまり|すなわち|అంటే|অর্থাৎ|นั่นคือ|即|也就是)", " "),
        (rf"^.*{NUMBER}\s?{LETTER}*\s?(?:{EQUALS})\s?(?={NUMBER})", " "),
    ]
]  # fmt: skip
HOURS = r"(?:hours?|hrs?|h|Stunden?|horas?|heures?|час\w*|saa|గంట\S*|ঘণ্টা|ঘন্টা|ชั่วโมง|時間|小时|小時)"
MINUTES = r"(?:min\w*|Min\w*|мин\w*|dakika|నిమిష\S*|মিনিট|นาที|分\w*)"
# Replacements (pattern, text) after which one spelling is left: full-width marks, the minus sign, LaTeX.
REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        ("[\uff0d\u2212]", "-"), ("\uff0b", "+"), ("\uff1d", "="), (r"(?<=\d)\uff0e(?=\d)", "."), ("\uff04", "$"),
        (r"(?<=\d)\uff0c(?=\d)", ","), (r"(?<=\d)\u2019(?=\d)", "'"), (r"(?<![\d\s])\s*–(?=\d)", " -"),
        (r"(?<=[:：={])([ \t*]*)[-–] (?=[$€£¥₹]?\d)", r"\1-"), (r"\\!", ""), (r"\{,\}", ","),
        (r"(?<=\d)\\[,;: ](?=\d{3})", "\u2009"), (r"\\([$%#&_])", r"\1"),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s?\{([^{}]*)\}", r"\1"),
        (r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r" \1/\2"), (r"\\sqrt\s?\{[^{}]*\}", NO_NUMBER),
        (r"\^\s?\{?\\circ\}?", "°"), (rf"(?<={LETTER})\s?\^\s?(?:\{{[^{{}}]*\}}|\w)", ""),
        (r"\\times\b|\\cdot\b|[⋅·]", "×"), (r"\\div\b", "÷"), (r"\\approx\b", "≈"),
        (r"\\(?:left|right|quad|qquad)\b|\\[()\[\],;:! ]", " "),
        # Clock times and ratios, hours with minutes, fractions and dates, powers, algebra, ranges.
        (r"\d{1,2}[:：]\d{2}(?::\d{2})?(?:\s?[ap]\.?m\b\.?)?|\d+:\d+|(?i:\b\d{1,2}\s?[ap]\.?m\b\.?)", NO_NUMBER),
        (r"\b\d{1,2} Uhr\b|\b(?:à|avant|jusqu'à) \d{1,2} ?h(?:eures)?\b|[上下]午\s?\d+\s?[点點時时]|"
         r"午[前後]\s?\d+\s?時(?!間)|"
         r"(?:సాయంత్రం|ఉదయం|మధ్యాహ్నం|রাত|বিকেল|বিকাল|সন্ধ্যা|সকাল|দুপুর) \d+\s?(?:గంట\S*|টা)|"
         r"saa \d+ (?:asubuhi|mchana|jioni|usiku)", NO_NUMBER),
        (rf"\d+\s?{HOURS}\s?(?:{LETTER}+\s)?\d+\s?{MINUTES}|saa \d+ na dakika \d+|\d+ ?h ?\d\d\b|"
         rf"\d+\s{LETTER}+\s(?:and|und|y|et|и|na)\s\d+\s(?:[Cc]ents?|centavos|centimes|цент\w*)\b", NO_NUMBER),
        (r"(?<![\d.,])(?:\d+ )?\d[\d.,]*\s?/\s?\d+(?![\d.,]*\d)(?:/\d+)?", NO_NUMBER),
        (r"\d[\d.,]*\s?\^\s?\{?-?\d+\}?", NO_NUMBER), (r"\d(?:[xyzn](?!\w)|\([xyzn]\b)", NO_NUMBER),
        (r"\d\s?[~～〜]\s?\d+", NO_NUMBER),
    ]
]  # fmt: skip
# Words for large numbers after a number: "70 thousand". 11万4200 and 3万5千 in Chinese and Japanese.
POWERS_OF_TEN = {
    3: r"thousand|k|Tausend|mil|mille|тыс(?:\.|яч\w*)|elfu|వేలు|వేల|হাজার|พัน|千",
    4: "หมื่น",
    5: "lakhs?|laki|లక్షలు|లక్షల|లక్ష|লাখ|লক্ষ|แสน",
    6: r"millions?|Millionen|Mio\.?|millón|millones|миллион\w*|млн|milioni|ล้าน",
}
TEN_THOUSANDS = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s?[万萬]\s?(?:(\d)千|(\d{1,4}))?(?!\d)")
STEP_NUMBER = re.compile(r"(?m)^[ \t]*\d{1,2}[.)][ \t]+(?=\S)")  # "2. " before a step
SENTENCE_END = re.compile(r"\n|[。।]|[.!?](?:\s|$)")
# The end of a text that was not cut off: of a sentence, or a line that is a label with a number.
COMPLETE = re.compile(r"(?:[.。।!?*$}\]-]|^[^:：\n]{0,40}[:：][^\n]*\d[^\n]{0,20})\s*\Z", re.MULTILINE)
THINKING = re.compile(r"<think(?:ing)?>|<\|im_start\|>think")
THINKING_END = re.compile(r"</think(?:ing)?>|<\|im_start\|>answer")


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
        is_clear = group_mark != "." or language in DECIMAL_COMMA or fraction or whole.count(".") > 1
        if well_formed and re.fullmatch(r"\d*", fraction) and is_clear:
            return sign * Decimal(whole.replace(group_mark, "") + (f".{fraction}" if fraction else ""))
    if language in DECIMAL_COMMA or re.fullmatch(r"\d+,\d{1,2}", body):
        body = body.replace(",", ".")
    return sign * Decimal(body) if re.fullmatch(r"\d*(?:\.\d+)?", body) and body else None


class Number(NamedTuple):
    """A number as it stands in a text.

    Attributes:
        value: the number.
        raw: its text, with sign and currency.
        end: where it ends in the text.
    """

    value: Decimal
    raw: str
    end: int


class Statement(NamedTuple):
    """A sentence that may give the answer; the largest one counts most.

    Attributes:
        is_final: whether it holds nothing but the answer, or stands under its heading.
        start: where it begins.
        rule: as in ``Extraction``.
        text: the sentence.
    """

    is_final: bool
    start: int
    rule: str
    text: str


def find_numbers(text: str, language: str) -> Iterator[Number]:
    """The numbers of a text in order; a run that is no well-formed number is read piece by piece."""
    for match in re.finditer(NUMBER, text):
        raw = match.group()
        previous = text[match.start() - 1] if match.start() else " "
        if raw.startswith("-") and previous.isalnum() and unicodedata.category(previous) != "Lo":
            raw = raw[1:]  # a hyphen, no sign; but a sign in scripts that write no spaces
        value = to_number(raw, language)
        pieces = [value] if value is not None else [to_number(digits, language) for digits in re.findall(r"\d+", raw)]
        yield from (Number(piece, raw, match.end()) for piece in pieces if piece is not None)


def normalize(text: str, language: str) -> str:
    """A text in one spelling of digits, signs, marks and LaTeX, without an answer's header and numbers of steps."""
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if language in ("ja", "zh"):
        text = TEN_THOUSANDS.sub(lambda match: str(expand_ten_thousands(*match.groups())), text)
    text = re.sub(rf"\b(elfu|laki|milioni) ({NUMBER})", r"\2 \1", text)  # as Swahili has it
    for power, words in POWERS_OF_TEN.items():
        text = re.sub(rf"({NUMBER})\s?(?:{words})(?![a-zа-яéธ])", partial(expand_power, language, power), text)
    for code in (language, "en"):
        text = text.replace(HEADERS[code][1].rstrip(" :："), "")
    return STEP_NUMBER.sub("", text) if re.search(r"(?m)^[ \t]*1[.)][ \t]", text) else text


def expand_power(language: str, power: int, match: re.Match[str]) -> str:
    """The digits of a number and its power of ten: "70" and 3 are 70000."""
    value = to_number(match[1], language)
    return match[0] if value is None else f"{value.scaleb(power):f}"


def expand_ten_thousands(ten_thousands: str, thousands: str | None, units: str | None) -> int:
    """The groups of ``TEN_THOUSANDS`` as a number: ("3", "5", None) is 35000."""
    whole = Decimal(ten_thousands.replace(",", "")) * 10000
    return int(whole + 1000 * int(thousands or 0) + int(units or 0))


def cut_at(text: str, stop: Iterable[str]) -> str:
    """A text up to the first stop string in it."""
    return text[: min((start for start in map(text.find, stop) if start >= 0), default=len(text))]


def strip_thinking(text: str) -> str | None:
    """What an answer says after its thinking (``<think>...</think>``); None if it was cut off before.

    Some models never close the tag, or write no number after it: then what follows the thinking's first paragraph
    counts, unless an open one ends in the middle of a sentence.
    """
    *thoughts, answer = THINKING_END.split(text)
    is_open = not thoughts and THINKING.search(text) is not None
    if not is_open and (not thoughts or re.search(r"\d", answer)):
        return answer
    _, _, rest = (text if is_open else thoughts[-1]).strip().partition("\n\n")
    return rest if rest and (thoughts or COMPLETE.search(rest)) else None


def extract(text: str, language: str, stop: Sequence[str] = ()) -> Extraction:
    """The number that an answer gives, after its thinking.

    The last of these: a mark (\\boxed, or GSM8K's #### before nothing but a number), a heading of the answer
    ("**Answer:** ..."), an announcement of nothing but a number, native or English. Without them the last announcement
    that has a number; without one the last sentence. Where it gives what is not one number (a fraction, a clock time,
    "3 or 4", a calculation without its result), there is no answer. ``stated_number`` says which of several counts.

    Args:
        text: the answer.
        language: of the question; one of ``HEADERS``.
        stop: strings that end an answer; text after one does not count.
    """
    answer = strip_thinking(cut_at(text, stop))
    if answer is None:
        return Extraction(None, "truncated")
    answer = normalize(answer, language)
    results = [abs(value) for match in RESULT.finditer(answer) if (value := to_number(match[1], language)) is not None]
    frequencies = Counter(abs(number.value) for number in find_numbers(answer, language))
    for statement in [*sorted(announcements(answer, language), reverse=True), *last_sentences(answer)]:
        if not HAS_NUMBER.search(statement.text):
            continue
        is_last = statement.rule == "last number"
        sentence = strip_asides(statement.text, is_last)
        if IS_NO_NUMBER.match(sentence):
            break
        if numbers := list(find_numbers(sentence, language)):
            return Extraction(stated_number(sentence, numbers, is_last, results, frequencies), statement.rule)
    return Extraction(None, "none")


def announcements(text: str, language: str) -> Iterator[Statement]:
    """The statements that a text marks or announces as its answer.

    A heading of the answer that the whole solution follows is none.
    """
    for mark in (BOX, GSM8K_MARK):
        yield from (Statement(True, match.start(), "mark", match[1]) for match in mark.finditer(text))
    for word in {ANSWER_WORDS[language], ANSWER_WORDS["en"]}:
        pattern = rf"(?P<line>^[^\w\n]*(?:{LETTER}+[ \t]+){{0,3}})?(?:{word}){ANNOUNCEMENT}"
        for match in re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE):
            sentence = SENTENCE_END.split(re.sub(rf"^{MARKS}", "", text[match.end() :]))[0]
            alone = BARE_NUMBER.match(IN_BRACKETS.sub("", sentence))
            is_heading = match["line"] is not None and match.group()[-1] in ":："
            is_heading = is_heading and (match["line"] != "" or match.start() > 1)
            if alone or is_heading or not RESULT.search(text, match.end() + len(sentence)):
                announced = alone.group() if alone else sentence
                yield Statement(bool(alone or is_heading), match.start(), "phrase", announced)


def last_sentences(text: str) -> Iterator[Statement]:
    """The sentences of a text, the last one first."""
    for line in reversed(text.splitlines()):
        yield from (Statement(False, 0, "last number", sentence) for sentence in reversed(SENTENCE_END.split(line)))


def strip_asides(sentence: str, is_last: bool) -> str:
    """A sentence without its asides, as long as a number is left, and with results in place of calculations.

    A calculation without a result is no number, but that the last sentence breaks off in one says nothing.
    """

    def result(match: re.Match[str]) -> str:
        return match[0].rpartition("=")[2] if "=" in match[0] else match[0] if is_last else NO_NUMBER

    sentence = CALCULATION.sub(result, sentence)
    for aside, replacement in ASIDES:
        shorter = aside.sub(replacement, sentence)
        if replacement == NO_NUMBER or re.search(r"\d", shorter):
            sentence = shorter
    return sentence


def stated_number(
    sentence: str,
    numbers: Sequence[Number],
    is_last: bool,
    results: Sequence[Decimal],
    frequencies: Mapping[Decimal, int],
) -> Decimal:
    """Which of its numbers a sentence states.

    One in bold type, or the one that was calculated last; but a number that stands nowhere else, after two others, is
    what they were calculated to in words. Else the only amount of money; else the first number of an announcement, the
    last of another sentence. Numbers that tell which or how large count only if there are no others.

    Args:
        sentence: as ``strip_asides`` leaves it.
        numbers: those in it, one or more.
        is_last: whether it is the last sentence, not an announcement.
        results: what the whole text calculated, in order, without signs.
        frequencies: number without its sign -> how often it stands in the whole text.
    """
    modifiers = [match.span() for match in MODIFIER.finditer(sentence)]
    numbers = [
        number for number in numbers if not any(start < number.end <= end for start, end in modifiers)
    ] or numbers
    bold = "\n".join(BOLD.findall(sentence))
    numbers = [number for number in numbers if number.raw in bold] or numbers
    default = numbers[-1 if is_last else 0]
    by_size = {abs(number.value): number.value for number in numbers}
    if is_last and len(by_size) > 2 and frequencies[abs(default.value)] == 1:
        return default.value
    if calculated := [by_size[result] for result in results if result in by_size]:
        return calculated[-1]
    money = [number.value for number in numbers if number.raw.strip("-+")[0] in "$€£¥₹"]
    return money[0] if len(money) == 1 else default.value


def lm_eval_scores(text: str, language: str, number: int, style: str) -> tuple[bool, bool]:
    """Whether lm-eval 0.4.13's two filters for a style find the number in an answer.

    For comparison with published figures; ``extract`` is what this project counts. The text is cut where lm-eval ends
    an answer, and compared without punctuation, signs included. Styles that lm-eval does not have are scored like
    "native_cot".

    Returns:
        (strict, flexible). Strict takes the first announced number (in "direct" the whole answer), flexible the last
        run of digits and marks.
    """
    text = cut_at(text, (HEADERS.get(language, HEADERS["en"])[0].rstrip(), "</s>", "<|im_end|>"))
    before, after = LM_EVAL_STRICT.get("en" if style == "en_cot" else language, LM_EVAL_STRICT["en"])
    announced = re.findall(rf"{before}(-?[0-9.,]+){after}", text)[:1]
    strict = text.strip() if style == "direct" else "".join(announced)
    flexible = "".join(LM_EVAL_FLEXIBLE.findall(text)[-1:])
    marks = str.maketrans("", "", string.punctuation)
    expected = str(number).translate(marks)
    return strict.translate(marks) == expected, flexible.translate(marks) == expected
