"""The number that an answer gives, read from text in eleven languages, and lm-eval's scores for comparison.

Announcements ("the answer is", "Jibu ni"), digits of any script, grouped and decimal numbers, and calculations are
understood. The rules are tables of regular expressions at the top, for lower case, with the words of languages.toml;
``extract`` says in what order they count.
benchmarks/extraction.py measures them on answers of models, and compares the scores of lm-eval's filters with lm-eval.
"""

import re
import string
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerswap.errors import as_user_error

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


# Of each language: MGSM's headers before a question, a step-by-step and a bare answer, and the words read by.
LANGUAGES = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
HEADERS: dict[str, tuple[str, str, str]] = {code: tuple(words["headers"]) for code, words in LANGUAGES.items()}
LONGEST_ANSWER = 20_000  # characters after the thinking; of longer ones, which go in circles, the end is read
UNSPACED = ("bn", "ja", "te", "th", "zh")  # scripts without spaces, or whose vowel signs are no letters to \b


def any_word(*fields: str) -> str:
    """The pattern of a word of these fields of languages.toml, in any language."""
    words = [(code in UNSPACED, words[field]) for code, words in LANGUAGES.items() for field in fields if words[field]]
    spaced, unspaced = ("|".join(word for is_unspaced, word in words if is_unspaced == n) for n in (False, True))
    bounded = rf"(?<![^\W\d])(?:{spaced})(?![^\W\d])"
    return f"(?:{'|'.join(filter(None, [spaced and bounded, unspaced]))})"


def compile_rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Rules (pattern, replacement), compiled; each is applied to what the one before it leaves."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


# What is no space, digit or mark: to regular expressions, vowel signs of Indian scripts and Thai are no letters.
LETTER = r"[^\s\d!-/:-@\[-`{-~\u00a0-\u00bf×÷–—’“”„…、。，；：！？（）「」・।≈€₹\ufffc]"
MARKS = r"[\s*_`\"”»」)>$]*"  # emphasis, quotes, brackets and mathematics that may stand before a number
QUALIFIERS = rf"(?:[ \t]+{LETTER}+){{0,3}}?"  # "réponse finale est"
COPULAS = r"(?:is|was|would be|should be|will be|lautet|ist|es|est|ni)\b|হলো|হল|হবে|คือ|は|是|为|為|[:：ঃ=—–→]"
ANNOUNCEMENT = rf"(?:{QUALIFIERS}{MARKS}(?:{COPULAS})|(?={MARKS}[€£¥₹]?\d))"
LM_EVAL_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
DECIMAL_COMMA = ("de", "es", "fr", "ru")  # languages that write 1.234,5
# A run of digits with marks in it, or a decimal without its zero; a number with its sign and currency.
DIGITS = r"\d+(?:[.,\u00a0\u2009\u202f' ]\d+)*|(?<![^\s$€£¥₹(])\.\d+"
# "- 5" is a list item. Atomic, and never begun within a run: long lists of numbers would take time in square.
NUMBER = rf"(?=[-+$€£¥₹.\d])[-+]?(?:[$€£¥₹]\s?)?(?<!\d)(?<!\d[.,\u00a0\u2009\u202f' ])(?>{DIGITS})"
GROUPED = {  # what may stand between groups of digits -> 1,234,567 or 12,34,567
    mark: re.compile(r"[1-9]\d{0,2}(?:M\d{3})+|[1-9]\d?(?:M\d\d)*M\d{3}".replace("M", re.escape(mark)))
    for mark in ",. '\u00a0\u2009\u202f"
}
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
SHORT_UNIT = rf"\s?(?:[a-zа-яäöüßéèêçñáíóú]*|{LETTER}{{0,4}}(?<![后後内內中でに间間]))[ \t)$€£¥₹%°]*"
HAS_NUMBER = re.compile(rf"[\d{NO_NUMBER}]")
IS_NO_NUMBER = re.compile(rf"\W*{NO_NUMBER}{UNIT}(?:[,.;，]|$)|[^\d]*{NO_NUMBER}[^\d]*$")
BARE_NUMBER = re.compile(rf"\W*?{NUMBER}{SHORT_UNIT}\W*?(?=[,，、;]|\.?\s*$)")
# "3 or 4", "from 240 to 300 dollars", "3 and 4": which of them is not said.
BETWEEN = rf"\s?(?:{any_word('or')}(?:\s{LETTER}+(?:\s?=)?)?|{any_word('and')}|[—…~～〜]|\.\.\.)\s?"
ALTERNATIVES = (
    rf"(?<!\d,\s){NUMBER}{BETWEEN}{NUMBER}|{NUMBER}\s?(?P<unit>{LETTER}{{1,20}}?|[€$%]){BETWEEN}{NUMBER}\s?(?P=unit)"
)
# All that is announced is several numbers: "5 boys and 6 girls", "x = 5, y = 6", "Tom has 5 and Ann has 6".
ITEM = rf"(?:{LETTER}+\s?[:=]\s?)?{NUMBER}\s?(?:[€$%]|{LETTER}{{0,20}})"
LIST = re.compile(
    rf"^\W*{ITEM}(?:\s?(?:[,;，、]|[,，]?\s?{any_word('and')})\s?{ITEM})+\W*$|"
    rf"^\W*(?:{LETTER}+\s)?(?P<verb>{LETTER}+)\s{ITEM},?\s{any_word('and')}\s{LETTER}+\s(?P=verb)\s{ITEM}\W*$"
)
# A number that tells which or how large, not how many: "30-minute", "6th", "第6", "6回目", "the 24 liters", "42 + 4".
MODIFIER = re.compile(
    rf"(?<!\d)\d+(?:-{LETTER}|\s?[-+*/×÷]\s?(?=\d)|(?:st|nd|rd|th|º|ª|er|ère|ème|ম|য়|র্থ|ঠ|వ)\b|\s?{any_word('when')}|"
    r"\s?(?:つ|回|番|日|か所|個|人|年)?目|[^\W\d]{1,3}(?:あたり|当たり|につき|ごと)|\s?(?:分钟|小时|英寸|厘米)的|"
    r"\s?(?:分間?|時間|日間?|年間?|円|ドル|インチ|センチ|メートル|マイル|グラム)の)|第\s?\d+|ที่\s?\d+|"
    rf"{any_word('which')}\s?[$€£¥₹]?\d[\d.,]*",
)  # fmt: skip
# What is left out of a sentence, as long as a number is left: "since 60 minutes are an hour, ...", "after 4 hours, ",
# "..., because 3 + 4 = 7", and what stands before the same in another unit ("180 minutes, that is ...").
ASIDES = compile_rules(
    (IN_BRACKETS.pattern, ""), (ALTERNATIVES, NO_NUMBER),
    (rf"^.{{0,12}}?{any_word('reason', 'premise', 'condition')}(?:[^,，、]|,(?=\d))*(?:[，、]|,(?!\d))", " "),
    (rf"^\W*{any_word('condition')}\s(?:{LETTER}+\s)?{NUMBER}{UNIT}", " "),
    (r"^[^,，、\d]*\d[^,，、\d]*(?:[后後内內中で間间]|には?)[,，、]", " "), ("^.*?(?:ので|ため)、", " "),
    (rf"(?<=\d)[^\d]*?(?:{any_word('reason')}|,\s?{any_word('premise')}).*", " "),
    (rf"(?<=\d)(?:[^\d]*?[^\d\s])?,\s{any_word('condition')}\s(?:{LETTER}+\s)?{NUMBER}[^\d]*$", " "),
    (rf"(?<=\d){UNIT}(?:{LETTER}+\s)?,?\s?{any_word('or')}\s[^\d]*?{NUMBER}{UNIT}", " "),
    (rf"^.*{any_word('that_is')}", " "), (rf"^.*{NUMBER}\s?{LETTER}*\s?{any_word('equals')}\s?(?={NUMBER})", " "),
)  # fmt: skip
# Characters, LaTeX, and all else of which one spelling is left: (pattern, text).
CHARACTERS = str.maketrans("－−＋＝＄⋅·⁄", "--+=$××/", "\u200b\u2060\ufeff")
LATEX = compile_rules(
    (r"\\!", ""), (r"\{,\}", ","), (r"(?<=\d)\\[,;: ](?=\d{3})", "\u2009"), (r"\\([$%#&_])", r"\1"),
    (r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s?\{([^{}]*)\}", r"\1"),
    (r"\\[dtc]?frac\s?(?:\{([^{}]*)\}|(\d))\s?(?:\{([^{}]*)\}|(\d))", r" \1\2/\3\4"),
    (r"\\sqrt\s?\{[^{}]*\}|\d[\d.,]*\s?\\pi\b", NO_NUMBER),
    (r"\^\s?\{?\\circ\}?", "°"), (rf"(?<={LETTER})\s?\^\s?(?:\{{[^{{}}]*\}}|\w)", ""),
    (r"\\times\b|\\cdot\b", "×"), (r"\\div\b", "÷"), (r"\\approx\b", "≈"),
    (r"\\(?:left|right|quad|qquad)\b|\\[()\[\],;:! ]", " "), (" {2,}", " "),
)  # fmt: skip
# Clock times, ratios, amounts in two units, fractions and dates, powers, algebra, ranges, roots.
OF = r"(?:\s(?:of|von|de|des|из|от|ya)\s(?:[a-zа-я]+\s)?\d[\d.,]*)?"  # after a fraction: "1/3 of 18"
NOT_ONE_NUMBER = (
    rf"(?<![\d.,])(?=[\d¼½¾⅐-⅞√])(?:{any_word('clock')}|\d{{1,2}}[:：]\d{{2}}(?::\d{{2}})?|\d+:\d+|\d+ ?h ?\d\d\b|"
    rf"\d+'\s?\d+\"|\d[\d.,]*\s?{any_word('unit')}[.,]?\s?(?:{any_word('and')}\s?)?\d+\s?{any_word('subunit')}|"
    rf"(?:\d+ (?:{any_word('and')} )?)?\d[\d.,]*\s?/\s?\d+(?![\d.,]*\d)(?:/\d+)?{OF}|(?:\d+\s?)?[¼½¾⅐-⅞]{OF}|√\s?\d+|"
    r"\d[\d.,]*(?:\s?\^\s?\{?-?\d+\}?|[²³¹⁰⁴-⁹]|e[-+]?\d+|\*?[xyznπ](?!\w)|\([xyzn]\b|\s?[~～〜]\s?\d+))"
)
SPELLINGS = compile_rules(
    (r"~~[^~\n]+~~", ""), (r"(?<=\d)\uff0e(?=\d)", "."), (r"(?<=\d)[\uff0c_](?=\d)", ","),
    (r"(?<=\d)\u2019(?=\d)", "'"),
    (r"(?<![\d\s])\s*–(?=\d)", " -"), (r"(?<=[:：={])([ \t*]*)[-–] (?=[$€£¥₹]?\d)", r"\1-"),
    (rf"(?<![\d)]\s)(?<![\d)]){any_word('minus')}\s?(?=\d)", "-"),
    (NOT_ONE_NUMBER, NO_NUMBER),
    # Letters before digits are a currency, or digits are no number there: "Rs500", "CO2", "18 m2".
    (r"(?<![a-z])(?:rs|[ktu]?sh|us|usd|eur|gbp|chf|rmb|cny|jpy|inr|thb|kes|tzs|bdt|rub|r)(?=\d)", "$"),
    (r"(?<=[a-zа-яё])\d+(?![\d.,]*\d)", ""),
)  # fmt: skip
# Words for large numbers after a number: "70 thousand". 11万4200 and 3万5千 in Chinese and Japanese.
POWERS_OF_TEN = "|".join(  # the larger ones first: "mil millones"
    f"(?P<e{power}>{'|'.join(words['powers'][power] for words in LANGUAGES.values() if power in words['powers'])})"
    for power in "9765432"
)
POWER_OF_TEN = re.compile(rf"({NUMBER})\s?(?:{POWERS_OF_TEN})(?![a-zа-яéธ])")
AMOUNT = re.compile(r"\d[\d,]*(?:\.\d+)?(?:\s?(?:[亿億万萬百]|千(?![克米瓦卡]))\s?\d*)+")  # 11万4200, 3万5千
MYRIADS = {"亿": 10**8, "億": 10**8, "万": 10**4, "萬": 10**4}
STEP_NUMBER = re.compile(
    rf"(?im)^[ \t]*(?:\d{{1,2}}[.)][ \t]+(?=\S)|[^\w\n]{{0,9}}{any_word('step')}\s?\d+步?\W)"
)  # "2. " before a step
FIRST_STEP = re.compile(rf"(?m)^[ \t]*1[.)][ \t]|^[^\w\n]{{0,9}}{any_word('step')}\s?1步?\W")
SENTENCE = re.compile(r"[^\n]+?(?:[。।？]|[.!?](?=\s)|$)", re.MULTILINE)
# The end of a text that was not cut off: of a sentence, or a line that is a label with a number.
COMPLETE = re.compile(r"(?:[.。।!?*$}\]-]|^[^:：\n]{0,40}[:：][^\n]*\d[^\n]{0,20})\s*\Z", re.MULTILINE)
# A check of the solution, to the end; a remark, a line.
REMARK = re.compile(
    rf"^[^\w\n]{{0,9}}(?:{any_word('check')}[^\d\n:：]{{0,30}}(?:[:：]|$)(?s:.*)|{any_word('remark')}.*)", re.MULTILINE
)
# At the beginning of a sentence, or after "Wait, ".
MISTAKE = re.compile(
    rf"(?:^|[.!?…。！？])[^\w\n]{{0,9}}(?:[^\n.!?。,，、]{{1,20}}(?:[,，、…]\s*|(?<=[ก-๛])\s))?{any_word('mistake')}",
    re.MULTILINE,
)
REFUSAL = re.compile(rf"{any_word('refusal')}[^\d]*$")
CONFIRMATION = re.compile(any_word("confirmation"))
# Thinking as models mark it: <think>, [THINK], ◁think▷, <|begin_of_thought|>, <|channel|>analysis ...
THOUGHT = r"(?:think(?:ing)?|thought|reasoning)\s?\|?[>\]▷]"
THINKING = re.compile(
    rf"(?i)[<\[◁]\s?(?:\|begin_of_|seed:)?{THOUGHT}|<\|im_start\|>think|<\|channel\|>analysis|\Aanalysis(?=[A-Z])"
)
THINKING_END = re.compile(
    rf"(?i)[<\[◁](?:\s?/\s?|\|end_of_)(?:seed:)?{THOUGHT}|<\|im_start\|>answer|<\|channel\|>final<\|message\|>|assistantfinal"
)


@cache
def language_identifier() -> "LanguageIdentifier":
    """py3langid's model, confined to MGSM's languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    with as_user_error("py3langid's model, which tells an answer's language, cannot be loaded"):
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(HEADERS))
    return identifier


def identify_language(text: str) -> str | None:
    """The MGSM language that a text is in (py3langid), or None for one of fewer than 20 letters."""
    return language_identifier().classify(text)[0] if sum(c.isalpha() for c in text) >= 20 else None


@lru_cache(maxsize=10_000)
def to_number(text: str, language: str) -> Decimal | None:
    """The number that a text means, or None: digits of any script, groups only where they are well formed.

    Args:
        text: such as "1,234.5", "-$5" or "౧౮".
        language: says whether a comma or a point is the decimal mark.
    """
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
    text = re.sub(r"[^\d.,'\-\u00a0\u2009\u202f ]", "", text).strip(" ,'").rstrip(".")
    sign, body = (-1, text.lstrip("-+ ")) if text.startswith("-") else (1, text)
    for group_mark, grouped in GROUPED.items():
        point = "," if group_mark == "." or group_mark != "," and language in DECIMAL_COMMA else "."
        whole, _, fraction = body.partition(point)
        well_formed = grouped.fullmatch(whole)
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
    text = re.sub(r"[^\D0-9]", lambda match: str(unicodedata.decimal(match[0])), text.lower()).translate(CHARACTERS)
    for pattern, replacement in [*(LATEX if "\\" in text or "^" in text else ()), *SPELLINGS]:
        text = pattern.sub(replacement, text)
    if language in ("ja", "zh"):
        text = AMOUNT.sub(expand_amount, text)
    text = re.sub(rf"\b(mia|elfu|laki|milioni|bilioni) ({NUMBER})", r"\2 \1", text)  # as Swahili has it
    text = POWER_OF_TEN.sub(partial(expand_power, language), text)
    for code in (language, "en"):
        text = text.replace(HEADERS[code][1].lower().rstrip(" :："), "")
    return STEP_NUMBER.sub("", text) if FIRST_STEP.search(text) else text


def expand_power(language: str, match: re.Match[str]) -> str:
    """The number that ``POWER_OF_TEN`` matches, in digits."""
    value = to_number(match[1], language)
    return match[0] if value is None else f"{value.scaleb(int((match.lastgroup or '')[1:])):f}"


def expand_amount(match: re.Match[str]) -> str:
    """The number that ``AMOUNT`` matches, in digits: each of its parts times its unit, and all before 万 times it."""
    total = section = Decimal(0)
    for digits, unit in re.findall(r"([\d.]*)([亿億万萬千百]?)", re.sub(r"[,\s]", "", match[0])):
        section += Decimal(digits or 0) * {"千": 1000, "百": 100}.get(unit, 1)
        if unit in MYRIADS:
            total, section = total + section * MYRIADS[unit], Decimal(0)
    return f"{(total + section).normalize():f}"


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
    "3 or 4", a calculation without its result, words), there is no answer. What stands before "I made a mistake" does
    not count. ``stated_number`` says which of several numbers does.

    Args:
        text: the answer.
        language: of the question; one of ``HEADERS``.
        stop: strings that end an answer; text after one does not count.
    """
    answer = strip_thinking(cut_at(text, stop))
    if answer is None:
        return Extraction(None, "truncated")
    answer = normalize(answer[-LONGEST_ANSWER:], language)
    if HAS_NUMBER.search(correction := MISTAKE.split(answer)[-1]):
        answer = correction
    results = [abs(value) for match in RESULT.finditer(answer) if (value := to_number(match[1], language)) is not None]

    def is_new(value: Decimal) -> bool:
        return [abs(number.value) for number in find_numbers(answer, language)].count(abs(value)) == 1

    announced = sorted(announcements(answer, language), reverse=True)
    ending = max(announced, key=lambda statement: statement.start, default=None)
    is_in_words = ending and not (HAS_NUMBER.search(answer, ending.start) or CONFIRMATION.search(ending.text))
    for statement in [*announced, *(() if is_in_words else last_sentences(answer))]:
        if not HAS_NUMBER.search(statement.text):
            continue
        is_last = statement.rule == "last number"
        sentence = strip_asides(statement.text, is_last)
        if IS_NO_NUMBER.match(sentence):
            break
        numbers = list(find_numbers(sentence, language))
        if not is_last and numbers and to_number(numbers[0].raw, language) is None:
            break
        if numbers:
            return Extraction(stated_number(sentence, numbers, is_last, results, is_new), statement.rule)
    return Extraction(None, "none")


def announcements(text: str, language: str) -> Iterator[Statement]:
    """The statements that a text marks or announces as its answer.

    A heading of the answer that the whole solution follows is none.
    """
    for mark in (BOX, GSM8K_MARK):
        for match in mark.finditer(text):
            yield Statement(True, match.start(), "mark", LIST.sub(NO_NUMBER, match[1]))
    last_result = max((match.start() for match in RESULT.finditer(text)), default=-1)
    for word in {LANGUAGES[language]["answer"], LANGUAGES["en"]["answer"]}:
        pattern = rf"(?P<line>^[^\w\n]*(?:{LETTER}+[ \t]+){{0,3}})?(?:{word}){ANNOUNCEMENT}(?=(?P<marks>{MARKS}))"
        for match in re.finditer(pattern, text, re.MULTILINE):
            following = SENTENCE.match(text, match.end("marks"))
            end = following.end() if following else len(text)
            sentence = LIST.sub(NO_NUMBER, text[match.end("marks") : end])
            alone = BARE_NUMBER.match(IN_BRACKETS.sub("", sentence))
            is_heading = match["line"] is not None and match.group()[-1] in ":："
            is_heading = is_heading and (match["line"] != "" or match.start() > 1)
            if alone or is_heading or last_result < end:
                announced = alone.group() if alone else sentence
                yield Statement(bool(alone or is_heading), match.start(), "phrase", announced)


def last_sentences(text: str) -> Iterator[Statement]:
    """The sentences of a text that say something, the last one first; none if the last one says that none can be said.

    Remarks do not count, nor does a question, unless it calculates.
    """
    solution = REMARK.sub("", text)
    sentences = SENTENCE.findall(solution if HAS_NUMBER.search(solution) else text)
    if not (sentences and REFUSAL.search(sentences[-1])):
        yield from (Statement(False, 0, "last number", sentence) for sentence in reversed(sentences)
                    if "=" in sentence or sentence[-1] not in "?？")  # fmt: skip


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
    sentence: str, numbers: Sequence[Number], is_last: bool, results: Sequence[Decimal],
    is_new: Callable[[Decimal], bool],
) -> Decimal:  # fmt: skip
    """Which of its numbers a sentence states.

    One in bold type, or the one that was calculated last; but a number that stands nowhere else, after two others, is
    what they were calculated to in words. Else the only amount of money; else the first number of an announcement, the
    last of another sentence. Numbers that tell which or how large count only if there are no others.

    Args:
        sentence: as ``strip_asides`` leaves it.
        numbers: those in it, one or more.
        is_last: whether it is the last sentence, not an announcement.
        results: what the whole text calculated, in order, without signs.
        is_new: whether a number stands nowhere else in the whole text.
    """
    modifiers = [match.span() for match in MODIFIER.finditer(sentence)]
    numbers = [
        number for number in numbers if not any(start < number.end <= end for start, end in modifiers)
    ] or numbers
    bold = "\n".join(BOLD.findall(sentence))
    numbers = [number for number in numbers if number.raw in bold] or numbers
    default = numbers[-1 if is_last else 0]
    by_size = {abs(number.value): number.value for number in numbers}
    if is_last and len(by_size) > 2 and is_new(default.value):
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
    before, after = LANGUAGES.get("en" if style == "en_cot" else language, LANGUAGES["en"])["lm_eval"]
    announced = re.findall(rf"{before}(-?[0-9.,]+){after}", text)[:1]
    strict = text.strip() if style == "direct" else "".join(announced)
    flexible = "".join(LM_EVAL_FLEXIBLE.findall(text)[-1:])
    marks = str.maketrans("", "", string.punctuation)
    expected = str(number).translate(marks)
    return strict.translate(marks) == expected, flexible.translate(marks) == expected
