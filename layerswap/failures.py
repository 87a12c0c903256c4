"""Where an answer goes wrong: its equations, its operations, its language, or words that its base had never met."""

import operator
import re
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

from layerswap import mgsm, sources
from layerswap.paths import UserError, data_folder

# What an answer is, the first that holds (``kind``).
KINDS = ("correct", "cut off", "no answer", "wrong language", "arithmetic", "unknown word", "wrong operation", "other")
OPERATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
SIGNS = {"×": "*", "x": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"}
GAP = r"[^\S\n]"  # a list's "- " on the next line is no sign
NUMBER = r"(?:\d++(?:,\d++)*+(?:\.\d++)?+|\.\d++)"
MARKS = r"\u0900-\u0e7f\u200c\u200d"  # vowel signs are no letters to re
UNIT = rf"(?:{GAP}?[%$€£¥]|{GAP}[^\W\d](?:(?!\d)[\w{MARKS}])*)?"  # "5 apples + 3 apples"
PERCENT = rf"({NUMBER})(?:{GAP}?(%))?"
SIGN = rf"{GAP}*[-+*/{''.join(SIGNS)}]{GAP}*"
# Neither the end of a longer left side, as "8 = 3" in "-5 + 8 = 3", nor a start of the right one, as in "2 = 1 + 1".
EQUATION = re.compile(
    rf"(?<![\d.,])[$€£¥]?{NUMBER}{UNIT}(?:{SIGN}[$€£¥]?{NUMBER}{UNIT})+{GAP}*={GAP}*"
    rf"[$€£¥]?{NUMBER}(?:{GAP}?%)?+(?!{UNIT}{SIGN}[$€£¥(]?{NUMBER})"
)
BEFORE = re.compile(rf"(?:(?:[\d)%]|\b[^\W\d]){SIGN}|[-−])$")


def equations(text):
    """[(operands, signs, result)] of the equations in a text, in order: "2 + 3 x 4 = 14" -> ([2, 3, 4], "+*", 14).

    A percentage counts as hundredths, a result's only if an operand is one ("1 / 4 * 100 = 25%").
    """
    found = []
    for equation in EQUATION.finditer(text):
        if BEFORE.search(text[max(equation.start() - 9, 0) : equation.start()]):
            continue
        left, _, right = equation.group().rpartition("=")
        numbers = [Decimal(n.replace(",", "")).scaleb(-2 * bool(p)) for n, p in re.findall(PERCENT, left)]
        between = re.split(NUMBER, left)[1:-1]
        signs = [next(c for c in map(lambda c: SIGNS.get(c, c), reversed(part)) if c in OPERATE) for part in between]
        number, percent = re.search(PERCENT, right).groups()
        result = Decimal(number.replace(",", "")).scaleb(-2 * bool(percent and "%" in left))
        found.append((numbers, "".join(signs), result))
    return found


def holds(numbers, signs, result):
    """Whether an equation is true, products before sums, to the digits that its result is written with."""
    terms = [[numbers[0]]]
    try:
        for sign, number in zip(signs, numbers[1:], strict=True):
            if sign in "*/":
                terms[-1][0] = OPERATE[sign](terms[-1][0], number)
            else:
                terms.append([number if sign == "+" else -number])
        return sum(term[0] for term in terms).quantize(result, ROUND_HALF_UP) == result
    except ArithmeticError:  # such as a division by zero
        return False


def operations(source, problems):
    """id -> the signs of the operations that solve each problem, in order ("*+"), or None where that is not known.

    The lab's problems have worked answers; MGSM's are the first 250 of GSM8K's test set, whose English solutions mark
    each calculation, and are looked up in LAYERSWAP_DATA/gsm8k/test.jsonl if it is there.
    """
    solutions = {p.id: p.answer for p in problems} if source == "lab" else gsm8k_solutions(problems)
    return {id: found and "".join(signs for _, signs, _ in equations(found)) or None for id, found in solutions.items()}


def gsm8k_solutions(problems):
    """id -> the English solution of MGSM's problem, None where there is none with the same number."""
    solved = gsm8k_test()
    found = {}
    for problem in problems:
        i = int(problem.id.rpartition("-")[2])
        solution, _, number = solved[i].rpartition("#### ") if i < len(solved) else ("", "", "")
        same = mgsm.to_number(number, "en") == problem.number
        marked = " ".join(f"{each} ." for each in re.findall(r"<<([^>]*)>>", solution))
        found[problem.id] = re.sub(r"([-+*/=])", r" \1 ", re.sub(r"[()]", "", marked)) if same else None
    return found


@cache
def gsm8k_test():
    """The solutions of GSM8K's test set; none without its file."""
    try:
        return [row["answer"] for row in sources.read(data_folder() / "gsm8k" / "test.jsonl")]
    except (UserError, KeyError):
        return []


def unknown(source, problem):
    """Whether a problem has a word that the base has never met in its language (the lab alone knows)."""
    if source != "lab":
        return False
    from layerswap import lab

    return lab.has_unknown(problem.question, problem.language)


def kind(answer, problem, signs, source):
    """The first of KINDS that holds of an answer (a row of ``evaluate.evaluate``), as a rule and not a judgement.

    arithmetic: an equation in it is false. unknown word: the question has one. wrong operation: its equations have
    other signs than the solution's, ``signs`` (None: unknown). other: say, wrong numbers in true equations, or no
    equation at all.
    """
    written = equations(answer.text)
    for name, is_so in (
        ("correct", answer.correct),
        ("cut off", answer.stop == "length"),
        ("no answer", answer.value is None or answer.value != answer.value),
        ("wrong language", answer.wrong_language),
        ("arithmetic", not all(holds(*each) for each in written)),
        ("unknown word", unknown(source, problem)),
        ("wrong operation", bool(signs and written) and sorted("".join(s for _, s, _ in written)) != sorted(signs)),
    ):
        if is_so:
            return name
    return "other"
