"""The number that an answer gives, case by case, the language it is in, and lm-eval's scores."""

import time
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


# More kinds of answers: sentences with more numbers than the one asked for, and what is not one number.
KINDS = {
    "a conclusion repeats what was calculated": [
        ("en", "12 * 5 = 60\nTherefore, she needs 60 eggs for 12 cakes.", 60),
        ("en", "12*15 = 180\nSo 12 boxes hold 180 pencils.", 180), ("en", "7 + 5 = 12\nShe has **12** apples after 3 days.", 12),
        ("de", "9 * 30 = 270\nAlso braucht sie 270 Eier, um 30 Tage zu backen.", 270), ("de", "9 + 3 = 12\nSie hat nach 3 Tagen **12 Äpfel**.", 12),
        ("es", "9 + 9 = 18\nEntonces, en 2 días come 18 manzanas.", 18), ("fr", "80 * 3 = 240\nDonc il paiera 240 $ par mois pendant 3 mois.", 240),
        ("ru", "50 * 1,5 = 75\nИтак, за 50 дней он потратит 75 долларов.", 75), ("zh", "350 × 2 = 700。所以2个月需要700根香蕉。", 700),
        ("zh", "350 × 2 = 700\n因此他需要订购700根香蕉来维持2个月。", 700), ("ja", "6 × 1.5 = 9\nしたがって、6本のペンの値段は9ドルです。", 9),
        ("bn", "২৪ ÷ ১২ = ২\nতাই সে 4 সপ্তাহে ২ ডজন ডিম খাবে।", 2), ("te", "6 × 1.5 = 9\nకాబట్టి 6 పెన్నుల ధర 9 డాలర్లు.", 9),
        ("sw", "9 * 5 = 45\nHivyo katika wiki 5 anatumia saa 45.", 45), ("th", "6 × 1.5 = 9\nดังนั้น ปากกา 6 ด้ามราคา 9 ดอลลาร์", 9),
        ("en", r"\(8 - 2 = 6\)" "\nShe saves $6 by buying 18 flowers (2 for $1).", 6), ("en", "So he earns 20 - 4 = 16 dollars in 2 days.", 16),
    ],
    "but not every conclusion": [
        ("en", "20 / 4 = 5\n5 * 3 = 15\nShe needs 5 bags, so she pays $15.", 15), ("en", "It takes him 3 hours and her 5 hours, so 8 in all.", 8),
        ("en", "Since 120 minutes are 2 hours, he needs 2 hours.", 2), ("en", "60 * 2 = 120\n120 minutes is 2 hours.", 2),
        ("fr", "120 / 2 = 60\nComme 60 minutes font une heure, il faut 1 heure.", 1), ("ru", "120 / 2 = 60 минут, то есть 1 час.", 1),
        ("es", "60 * 2 = 120 minutos, es decir, 2 horas.", 2), ("zh", "60 × 2 = 120分钟，也就是2小时。", 2), ("ja", "60 × 2 = 120分、すなわち2時間です。", 2),
        ("en", "4 + 8 = 12\n12 * 2 = 24\nThere are 12 red ones among the 24 balls.", 12), ("en", "6 * 15 = 90\nThat is 90 minutes or 1.5 hours.", 90),
        ("ja", "犬は60 - 20 = 40匹です。犬40匹と猫30匹を合わせると、70匹です。", 70), ("en", "3 books cost 5 dollars each, so 5 * 3 = 15.", 15),
    ],
    "an answer that is told": [
        ("en", "180 - 135 = 45\n**Answer:** In 4 hours, he is 45 miles away.", 45), ("de", "**Antwort:** Nach 4 Stunden ist er 45 Meilen entfernt.", 45),
        ("es", "**Respuesta:** Después de 4 horas, está a 45 millas.", 45), ("fr", "8 * 3 = 24\n**Réponse :** Les 3 boîtes pèsent 24 kg.", 24),
        ("ru", "90 + 10 = 100\nОтвет: через 10 лет ему будет 100 лет.", 100), ("zh", "180 - 135 = 45\n**答案：** 4小时后，他离家45英里。", 45),
        ("ja", "180 - 135 = 45\n答え：4時間後、彼は家から45マイル離れています。", 45), ("th", "180 - 135 = 45\nคำตอบ: หลังจาก 4 ชั่วโมง เขาอยู่ห่าง 45 ไมล์", 45),
        ("te", "90 + 10 = 100\nసమాధానం: 10 సంవత్సరాల తర్వాత వయస్సు 100.", 100), ("bn", "৯০ + ১০ = ১০০\nউত্তর: ১০ বছর পরে তার বয়স ১০০ হবে।", 100),
        ("sw", "90 + 10 = 100\nJibu: Baada ya miaka 10 atakuwa na miaka 100.", 100), ("en", "Answer: The 3 friends pay $18 each.", 18),
        ("en", "9 - 6 = 3\nThe answer is 18, which leaves 3.", 18), ("en", "The answer is 18 dollars because 3 books cost 6 each.", 18),
        ("de", "Die richtige Antwort auf die Frage lautet 18.", 18), ("es", "La respuesta final es **18**.", 18), ("fr", "La bonne réponse est donc 18.", 18),
        ("sw", "Jibu sahihi ni 18.", 18), ("ru", "Окончательный ответ — 18.", 18), ("ja", "最終的な答えは18です。", 18), ("bn", "চূড়ান্ত উত্তর: ১৮", 18),
        ("en", "Answer: First count them.\n3 * 6 = 18\nHe has 18 of them in 2 days.", 18), ("fr", "Questions sans réponse : 4\n4 + 14 = 18", 18),
        ("en", "The answer for one: 5.\nFor all, 5 * 4 = 20.\n**Final answer:** 20 dollars", 20), ("ja", "答えは4時間です。\n4 × 2 = 8\nAnswer: 8", 8),
        ("es", "\\boxed{12}\nPero son 7 días: 12 * 7 = 84.\n**Respuesta: 84**", 84), ("en", "To answer 5 questions he needs 18 minutes.", 18),
    ],
    "boxes, headings and signs": [
        ("en", r"\boxed{18 \text{ in}^3}", 18), ("en", r"\boxed{\$1{,}234 \text{ a year}}", 1234), ("de", r"\boxed{3\,425,00\,\text{€}}", 3425),
        ("fr", r"\boxed{3\ 425}", 3425), ("en", r"\boxed{x = 18}", 18), ("en", r"\boxed{- 5}", -5), ("en", r"\boxed{18^\circ}", 18), ("en", r"\boxed{\text{He has } 18}", 18),
        ("en", "#### 18 apples", 18), ("en", "#### 4. Total\n5 + 6 = 11", 11), ("sw", "#### 2) Jumla\n7", 7), ("en", "Answer: - $5", -5), ("zh", "答案：–5", -5),
        ("en", "Answer:\n- 18 apples", 18), ("ja", "**解答：**\n3個で6gなので、4個で8gです。\n**答：** 8g", 8), ("en", "Step 1: 5\nStep 2: 16", 16),
    ],
    "other places' numbers": [
        ("en", "It costs 3,50 euros", "3.5"), ("ja", "合計は57,00ドルです", 57), ("en", "Answer: 1.234.567", 1234567), ("en", "Answer: 1.234,50", "1234.5"),
        ("de", "Antwort: 1,234.50", "1234.5"), ("en", "Answer: 3,500", 3500), ("en", "Answer: 70 thousand", 70000), ("es", "Respuesta: 70 mil dólares", 70000),
        ("ru", "Ответ: 70 тыс. рублей", 70000), ("sw", "Jibu: elfu 70", 70000), ("te", "సమాధానం: 70 వేలు", 70000), ("bn", "উত্তর: ৭০ হাজার", 70000),
        ("th", "คำตอบ: 70 พันบาท", 70000), ("de", "Antwort: 1,5 Millionen", 1500000), ("zh", "答案：5千", 5000),
    ],
    "no one number": [
        ("en", "Answer: 3/4", None), ("ru", "Ответ: 20/3", None), ("en", r"\boxed{\frac{3}{4}}", None), ("en", r"\boxed{6\frac{2}{3}}", None),
        ("en", "The answer is 6 2/3.", None), ("en", "Answer: 5 or 6", None), ("de", "Antwort: 100 oder 120 Seiten", None), ("ru", "Ответ: 100 или 120.", None),
        ("fr", "Réponse : 5 et 6.", None), ("es", "Respuesta: entre 5 y 6", None), ("sw", "Jibu: 5 au 6", None), ("te", "సమాధానం: 5 లేదా 6", None),
        ("bn", "উত্তর: ৫ বা ৬", None), ("th", "คำตอบ: 5 หรือ 6", None), ("ja", "答え：5か6", None), ("zh", "答案：5或6", None), ("zh", "答案：5到6个", None), ("en", "Answer: 5-6", None),
        ("en", "Answer: 5 (if it rains) or 6 (if not)", None), ("en", "Answer: 5:30 PM", None), ("ja", "答え：午後5時", None), ("zh", "答案：下午5点", None),
        ("en", "Answer: 2 hours and 20 minutes", None), ("de", "Antwort: 2 Stunden 20 Minuten", None), ("fr", "Réponse : 2 h 20", None), ("ru", "Ответ: 2 часа 20 минут", None),
        ("zh", "答案：2小时20分钟", None), ("th", "คำตอบ: 2 ชั่วโมง 20 นาที", None), ("en", "The answer is 5x.", None), ("en", "x = 5y", None), ("en", "Answer: 2x + 3", None),
        ("en", "The answer is 3:4.", None), ("en", "Answer: 5 + 6", None), ("ja", "Answer: [全部 × 3 ÷ 2]", None), ("en", "The answer is 10^3.", None),
    ],
    "thinking": [
        ("en", "<think>5 + 6 = 11</think>\nAnswer: 12", 12), ("en", "5 is wrong.</think>12", 12), ("en", "<think>a</think>5<think>7</think>8", 8),
        ("en", "<think>So it is \\boxed{12}. But", None), ("en", "<think>The answer is 11.", None), ("en", "<think>18</think>", None),
        ("sw", "<think>\nNitafikiri kwa Kiswahili.\n\n5 + 6 = 11\n\nJibu: 11", 11), ("sw", "<think>\nNitafikiri kwa Kiswahili.\n\n5 + 6 = 11. Kwa", None),
    ],
}  # fmt: skip


def test_the_cases_are_many():
    assert set(CASES) == set(HEADERS)
    assert sum(map(len, CASES.values())) >= 120 and min(map(len, CASES.values())) > 9


@pytest.mark.parametrize(
    ("language", "text", "value"),
    [
        *[(language, *case) for language, cases in CASES.items() for case in cases],
        *[case for cases in KINDS.values() for case in cases],
    ],
)
def test_extract(language, text, value):
    expected = None if value is None else Decimal(str(value))
    assert extract(text, language).value == expected


@pytest.mark.slow
def test_long_answers_take_no_time_in_square():
    numbers = list(map(str, range(4000)))
    for text in (" ".join(numbers), ", ".join(numbers), " + ".join(numbers), "-".join(numbers), "the 5 apples and " * 2000,
                 "\\boxed{" * 2000, "the answer is " * 2000, "Answer: 5\n" * 2000, "ก" * 10000):  # fmt: skip
        started = time.process_time()
        extract(text, "en")
        assert time.process_time() - started < 10, text[:40]


def test_text_after_a_stop_string_does_not_count():
    assert extract("The answer is 4.\n\nQuestion: 7", "en", ("\n\n",)).value == 4
    assert extract("5\nSwali: 7\n\n#### 8", "sw", MGSM("local").stops("sw", "native_cot")).value == 5


def test_the_rule_is_named():
    texts = ("#### 1", r"\boxed{1}", "Jibu ni 1", "ni 1", "hakuna")
    assert [extract(text, "sw").rule for text in texts] == ["mark", "mark", "phrase", "last number", "none"]
    assert extract("hakuna", "sw") == Extraction(None, "none")
    assert extract("<think>Is it 12? Perhaps", "en") == Extraction(None, "truncated")


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


def test_lm_eval_scores_of_what_lm_eval_would_have_cut():
    assert lm_eval_scores("Jibu ni 18.\n\nSwali: 7", "sw", 18, "native_cot") == (True, True)
    assert lm_eval_scores("Jibu ni 18.<|im_end|>\n7", "sw", 18, "native_cot") == (True, True)


def test_lm_eval_scores_of_other_styles():
    assert lm_eval_scores("Jibu ni 18. The answer is 18.", "sw", 18, "en_cot") == (True, True)
    assert lm_eval_scores("Jibu ni 18.", "sw", 18, "en_cot") == (False, True)
    assert lm_eval_scores(" 18\n", "sw", 18, "direct") == (True, True)
    assert lm_eval_scores("18 apples", "sw", 18, "direct") == (False, True)
