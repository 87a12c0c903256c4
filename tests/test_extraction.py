"""The number that an answer gives, case by case, the language it is in, and lm-eval's scores."""

from decimal import Decimal

import pytest

from layerswap.tasks import MGSM, Extraction, extract
from layerswap.tasks.extraction import HEADERS, identify_language, lm_eval_scores

# What models write, by language: (text, the number it means or None).
CASES = {
    "en": [
        ("#### 2,125", 2125), ("x #### 4\n#### 5", 5), ("#### none", None), ("So \\boxed{18}.\nThat took 3 steps.", 18),
        (r"$\boxed{70{,}000}$", 70000), ("The answer is 18.0.", 18), ("The answer is 1.8.", "1.8"),
        ("The answer is -18.", -18), ("The answer is \u22125", -5), ("So it is 18 dollars...", 18),
        ("The answer is 18 dollars Q.E.D...", 18), ("The answer is 18, as 3 are left.", 18), ("The answer is $18.", 18),
        ("The answer is **18**", 18), (r"The answer is \boxed{18}", 18), ("The answer is 70 000.", 70000),
        ("Answer: 18 (see step 3)", 18), ("Answer: 18\n(5 apples left)", 18), ("**Answer:**\n\n18", 18),
        ("### Answer\n18", 18), ("Answer: -18", -18), ("The answer is 5 + 6 = 11.", 11),
        ("The answer is 18 (12 + 6 = 18, 3 more than 15)", 18), ("Answer: x = 18", 18), ("Final answer: 18%", 18),
        ("The answer is 18. I checked 3 times that the answer holds.", 18), ("He answered 5 questions. 18 remain", 18),
        ("It costs 18.50", "18.5"), ("$1,234.50", "1234.5"), ("-$5", -5), ("10-3=7", 7), ("50%", 50),
        ("€1,000,000", 1000000), ("3, 4 and 5", 5), ("3.000", 3), ("Total:\n- 18 apples", 18), ("no number", None),
        ("first 3\nthen nothing", 3), ("", None), ("...", None), ("The answer is unknown.", None), ("1'250", 1250),
    ],
    "sw": [
        ("5 + 3 = 8 . #### 8", 8), ("Jibu ni 39.", 39), ("Jibu ni 2,125.", 2125), ("Jibu: Sh. 1,000", 1000),
        ("5 + 6 = 11. Jibu ni 11.", 11), ("JIBU NI 11", 11), ("Kwa hivyo jibu ni **18**", 18), ("ana tufaha 18", 18),
        ("Jibu ni KSh 70,000 (baada ya siku 3)", 70000), ("The answer is 39.", 39), ("Jibu ni -4", -4),
        ("Majibu 3 ya awali. Jibu ni 4.", 4), ("hakuna", None), ("Jibu ni\n12", 12), ("Jibu ni Tsh.5,000.", 5000), ("Jibu la Hatua kwa Hatua: 3 + 4 = 7, 7 + 1 = 8", 8),
    ],
    "te": [
        ("#### -3", -3), ("సమాధానం: ౧౮", 18), ("సమాధానం 39.", 39), ("12,34,567", 1234567), ("సమాధానం ₹1,14,200", 114200),
        ("సమాధానం ౧,౧౪,౨౦౦.", 114200), ("జవాబు: 7", 7), ("5+6=11. సమాధానం 11.", 11), ("కంప్యూటర్\u200cలు సమాధానం 29.", 29),
        ("దశ 1: 3\nసమాధానం: **18**", 18), ("The answer is 5", 5), ("లేదు", None), ("సమాధానం రూ.200", 200),
    ],
    "bn": [
        ("উত্তর: ১৮", 18), ("উত্তর হল 11।", 11), ("উত্তর হলো ২,১২৫।", 2125), ("১,১৪,২০০ টাকা", 114200), ("১৮", 18),
        ("৫ + ৬ = ১১। উত্তর হল ১১।", 11), ("উত্তর হল 11। ধাপ 3 দেখুন।", 11), ("উত্তর: −৫", -5), ("উত্তর: ১.৫", "1.5"),
        ("অতএব ৭টি আছে", 7), ("উত্তর হল ৫ + ৬ = ১১।", 11), ("জানি না", None), ("উত্তর: টা.১৮", 18),
    ],
    "th": [
        ("คำตอบคือ 7", 7), ("คำตอบคือ ๗", 7), ("คำตอบคือ ๒,๑๒๕ บาท", 2125), ("คำตอบ: 18", 18), ("5 + 6 = 11 คำตอบคือ 11", 11),
        ("**คำตอบ:** ๗๐,๐๐๐", 70000), ("เหลือ 18 ลูก", 18), ("คำตอบคือ 1.5", "1.5"), ("The answer is 9", 9), ("ไม่ทราบ", None),
        ("คำตอบคือ -3", -3), ("คำตอบคือ 18 เพราะ 9 x 2 = 18 และ 3 + 4 = 7", 18),
    ],
    "ja": [
        ("答えは18個です。", 18), ("答えは１，０００円です。", 1000), ("答え：１８", 18), ("答えは、合計で39個です。", 39),
        ("5+6=11です。答えは11です。", 11), ("答えは５＋６＝１１です。", 11), ("18が答えです。", 18), ("答えは11万4200円です。", 114200),
        ("答えは２７．６万円です", 276000), ("解答：**42**", 42), ("答えは18です。理由は3つあります。", 18), ("わかりません", None),
        ("答えは－５度です", -5),
    ],
    "zh": [
        ("答案是18。", 18), ("答案是 18 美元。", 18), ("答案：１８", 18), ("答案是 2,125。", 2125), ("答案是27.6万元", 276000),
        ("答：18个", 18), ("因此，18个鸡蛋", 18), ("小明有5个苹果，18个橘子", 18), ("逐步解答：\n1. 16-3=13\n2. 13+5=18", 18), ("答案是18，因为3+4=7。", 18), ("5+6=11。答案是 11。", 11), ("答案是 5 + 6 = 11。", 11), ("答案是18。所以她还有3个。", 18),
        ("答案为－５。", -5), ("所以有11萬人", 110000), ("答案是（大约）18", 18), ("不知道", None), ("**答案**：18", 18),
    ],
    "de": [
        ("Die Antwort lautet 18,00.", 18), ("Antwort: 70.000", 70000), ("Die Antwort ist 18 Euro.", 18), ("1,23", "1.23"),
        ("3.000", 3000), ("1.234.567,5", "1234567.5"), ("Die Antwort lautet 114'200.", 114200), ("12.5", "12.5"),
        ("Die Antwort lautet 5 + 6 = 11.", 11), ("Antwort: −5 °C", -5), ("9 + 20 =29 Computer", 29), ("12 000 €", 12000),
        ("keine", None),
    ],
    "es": [
        ("La respuesta es 1.234,5.", "1234.5"), ("La respuesta es 18.", 18), ("Respuesta: $2,125", 2125),
        ("La respuesta correcta es 276.000 euros.", 276000), ("La respuesta es 114 200.", 114200), ("0,5", "0.5"),
        ("Quedan 18 manzanas", 18), ("Respuesta: -3", -3), ("RESPUESTA: 7", 7), ("no sé", None),
        ("La respuesta es 3 × 6 = 18.", 18), ("La respuesta es 18, ya que 9 * 2 = 18 y 3 + 4 = 7.", 18), ("0.125", "0.125"),
    ],
    "fr": [
        ("Réponse: 70 000", 70000), ("La réponse est 70\u202f000.", 70000), ("Réponse : 18", 18), ("18,5 km", "18.5"),
        ("La réponse est 2\u00a0125 €.", 2125), ("La réponse est 114\u2009200", 114200), ("Il reste 18 pommes", 18),
        ("La réponse est **18**.", 18), ("la réponse est 5 + 6 = 11", 11), ("Réponse : −4", -4), ("La réponse est 1 200,50 €", "1200.5"), ("Réponse étape par étape : 5 + 6 = 11. 11 * 2 = 22.", 22), ("rien", None),
    ],
    "ru": [
        ("Ответ — 18.", 18), ("Ответ: 18", 18), ("Ответ: 70 000 рублей", 70000), ("ответ — 2\u00a0125.", 2125),
        ("Ответ: 18,5", "18.5"), ("Осталось 18 яблок", 18), ("Ответ — 5 + 6 = 11.", 11), ("Ответ: -7", -7), ("Ответ: 60 : 2 = 30", 30), ("Ответ: 11 – 3 = 8", 8), ("1 250,75 руб", "1250.75"), ("0,125", "0.125"), ("9·2=18", 18),
        ("**Ответ:** 276.000", 276000), ("Ответ — 18. Проверка: 3 раза.", 18), ("не знаю", None),
    ],
}  # fmt: skip


def test_the_cases_are_many():
    assert set(CASES) == set(HEADERS)
    assert sum(map(len, CASES.values())) >= 120 and min(map(len, CASES.values())) > 9


@pytest.mark.parametrize(
    ("language", "text", "value"), [(language, *case) for language, cases in CASES.items() for case in cases]
)
def test_extract(language, text, value):
    expected = None if value is None else Decimal(str(value))
    assert extract(text, language).value == expected


def test_text_after_a_stop_string_does_not_count():
    assert extract("The answer is 4.\n\nQuestion: 7", "en", ("\n\n",)).value == 4
    assert extract("5\nSwali: 7\n\n#### 8", "sw", MGSM("local").stops("sw", "native_cot")).value == 5


def test_the_rule_is_named():
    texts = ("#### 1", r"\boxed{1}", "Jibu ni 1", "ni 1", "hakuna")
    assert [extract(text, "sw").rule for text in texts] == ["mark", "mark", "phrase", "last number", "none"]
    assert extract("hakuna", "sw") == Extraction(None, "none")


@pytest.mark.parametrize(
    ("text", "language"),
    [("Kwanza tunahesabu 5 + 6 = 11. Jibu ni 11.", "sw"), ("So she has 5 apples left of the 12.", "en"),
     ("మొదట 5 కంప్యూటర్లు ఉన్నాయి, తర్వాత 4 జోడించారు", "te"), ("最初に9台のコンピューターがあったので、今は29台です。", "ja"), ("18", None),
     ("5 + 3 = 8 . #### 8", None), ("", None)],
)  # fmt: skip
def test_the_language_of_a_text(text, language):
    assert identify_language(text) == language


@pytest.mark.parametrize(
    ("text", "language", "scores"),  # as peers' tables and lm-eval itself say; benchmarks/extraction.py compares
    [
        ("The answer is 18.", "en", (True, True)),
        ("The answer is 18.0.", "en", (False, False)),
        ("The answer is 1.8.", "en", (True, True)),
        ("The answer is -18.", "en", (True, True)),
        ("The answer is 18 dollars...", "en", (True, False)),
        ("The answer is 18, as 3 are left.", "en", (True, False)),
        ("The answer is $18.", "en", (False, True)),
        ("উত্তর হল 18।", "bn", (False, True)),
        ("答えは18個です。", "ja", (False, True)),
        ("答えは18です。", "ja", (True, True)),
        ("Jibu ni 18.", "sw", (True, True)),
        ("১৮", "bn", (False, False)),
        ("", "te", (False, False)),
    ],
)
def test_lm_eval_scores(text, language, scores):
    assert lm_eval_scores(text, language, 18, "native_cot") == scores


def test_lm_eval_scores_of_other_styles():
    assert lm_eval_scores("Jibu ni 18. The answer is 18.", "sw", 18, "en_cot") == (True, True)
    assert lm_eval_scores("Jibu ni 18.", "sw", 18, "en_cot") == (False, True)
    assert lm_eval_scores(" 18\n", "sw", 18, "direct") == (True, True)
    assert lm_eval_scores("18 apples", "sw", 18, "direct") == (False, True)
