"""The number that an answer gives, case by case, the language it is in, and lm-eval's scores."""

from decimal import Decimal

import pytest
from hypothesis import given, strategies

from layerswap.tasks import MGSM, Extraction, extract, extraction
from layerswap.tasks.extraction import HEADERS, LANGUAGES, LONGEST_ANSWER, identify_language, lm_eval_scores

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
    "bold": [
        ("en", "**18**", 18), ("en", "*18*", 18), ("en", "**Final Answer: 18 kg**", 18),
        ("en", "She pays $18 for the **3** tickets? No: **$18**", 18), ("es", "Le quedan **18 manzanas** para los 4 días.", 18),
        ("ja", "したがって、**18個**を4日間で食べます。", 18), ("bn", "তাই ৪ দিনের জন্য **১৮**টি আপেল লাগবে।", 18),
    ],
    "more boxes": [
        ("en", "\\boxed{18\\%}", 18), ("fr", "\\boxed{1\\,234}", 1234), ("en", "\\boxed{3, 4}", None), ("en", "$$\\boxed{18}$$", 18),
        ("en", "\\boxed{2 \\times 9 = 18}", 18), ("en", "\\boxed{5\\frac12}", None), ("en", "\\boxed{18~\\text{km}}", 18),
        ("en", "\\boxed{2^5}", None), ("en", "\\boxed{18\\ \\text{hours}}", 18), ("en", "\\fbox{18}", 18), ("en", "\\boxed{\\text{\\$}18}", 18),
        ("en", "\\boxed{18\\text{ km/h}}", 18), ("en", "\\boxed{1 \\text{ hour } 30 \\text{ minutes}}", None), ("en", "\\boxed{x}", None),
        ("en", "$$\\text{Total} = 5 \\times 3 + 3 = 18 \\text{ dollars}$$", 18), ("en", "\\(\\therefore x = 18\\)", 18),
        ("en", "The area is $18 \\text{ cm}^{2}$.", 18), ("zh", "\\boxed{18\\text{个}}", 18), ("en", "\\boxed{1.234}", "1.234"),
        ("en", "\\boxed{\\frac{36}{2} = 18}", 18), ("en", "\\boxed{\\mathrm{18\\ m/s}}", 18),
    ],
    "fractions in one character": [
        ("en", "Answer: ½", None), ("en", "Answer: 2½", None), ("en", "Answer: 2 ½ hours", None), ("en", "It takes 2½ hours.", None),
        ("de", "Antwort: 1¼ Stunden", None), ("en", "Answer: 3 1/2", None), ("en", "Answer: 3⅓", None), ("en", "The answer is 3⁄4", None),
        ("en", "Answer: ¾ of the 12 apples", None), ("en", "Answer: 1 and 1/2", None), ("en", "Answer: 2-1/2", None),
        ("en", "The answer is 3 / 4.", None), ("en", "Answer: three quarters (3/4)", None),
    ],
    "powers, and names with digits in them": [
        ("en", "Answer: 10²", None), ("en", "Answer: 2³ = 8", 8), ("en", "So the area is 18 m2.", 18), ("en", "The area is 18 m².", 18),
        ("en", "So the volume is 18 cm3.", 18), ("en", "So the volume is 18 cm³.", 18), ("de", "Die Fläche ist 18 m2.", 18),
        ("fr", "L'aire est de 18 m2.", 18), ("ru", "Площадь 18 м2.", 18), ("en", "It emits 18 kg of CO2.", 18),
        ("en", "So there are 18 km2 left.", 18), ("en", "Answer: 1.2e3", None), ("en", "Answer: 1.2 × 10³", None), ("en", "Answer: 1.2 x 10^3", None),
        ("en", "She needs 18 A4 sheets", 18), ("es", "El área es 18 cm2", 18), ("en", "The volume is 18 ft^3", 18),
        ("en", "So that is 18 ft3 of sand", 18), ("zh", "面积是18平方米", 18), ("zh", "面积是18m2。", 18), ("ja", "面積は18m2です。", 18), ("ja", "面積は18㎡です。", 18),
    ],
    "times of day": [
        ("en", "Answer: 17:30", None), ("fr", "Réponse : 17h30", None), ("fr", "Il arrive à 17h.", None), ("de", "Antwort: 17 Uhr", None),
        ("de", "Antwort: 17.30 Uhr", None), ("es", "Respuesta: 5:30 p. m.", None), ("es", "Respuesta: las 5 de la tarde", None),
        ("ru", "Ответ: в 17:30", None), ("ru", "Ответ: 5 часов вечера", None), ("ja", "答え：15時30分", None), ("zh", "答案：15点30分", None),
        ("zh", "答案：15时30分", None), ("th", "คำตอบ: 17.30 น.", None), ("th", "คำตอบ: 15:30 น.", None), ("th", "คำตอบ: 5 โมงเย็น", None),
        ("bn", "উত্তর: বিকেল ৫টা", None), ("te", "సమాధానం: సాయంత్రం 5 గంటలకు", None), ("sw", "Jibu: saa 11 jioni", None),
        ("sw", "Jibu: saa 5 na nusu", None), ("en", "Answer: 5 o'clock", None), ("en", "Answer: 5 P.M.", None), ("en", "Answer: 9 am to 5 pm", None),
        ("en", "Answer: 1h 30m", None), ("en", "Answer: 1h30", None), ("en", "Answer: 90 seconds (1:30)", 90), ("en", "Answer: 12:00 noon", None),
        ("zh", "答案：上午10点", None), ("ja", "答え：午前10時", None), ("bn", "উত্তর: সকাল ১০টা", None), ("th", "คำตอบ: 10 โมง", None),
    ],
    "amounts in two units, and lists": [
        ("en", "Answer: 1 week and 3 days", None), ("en", "Answer: 2 years and 6 months", None), ("en", "Answer: 3 feet 6 inches", None),
        ("en", "Answer: 5 dollars and 50 cents", None), ("en", "Answer: 1 minute 30 seconds", None), ("en", "Answer: 1 m 50 cm", None),
        ("en", "Answer: 2 kg 500 g", None), ("en", "Answer: 1 hour and 30 minutes", None), ("en", "So he needs 1 day and 6 hours.", None),
        ("de", "Antwort: 5 Euro und 50 Cent", None), ("de", "Antwort: 1 Woche und 3 Tage", None), ("fr", "Réponse : 5 euros et 50 centimes", None),
        ("fr", "Réponse : 1 an et 6 mois", None), ("es", "Respuesta: 2 semanas y 3 días", None), ("ru", "Ответ: 5 рублей 50 копеек", None),
        ("ru", "Ответ: 2 недели и 3 дня", None), ("zh", "答案：5元5角", None), ("zh", "答案：2天6小时", None), ("ja", "答え：2日と6時間", None),
        ("th", "คำตอบ: 2 วัน 6 ชั่วโมง", None), ("te", "సమాధానం: 2 రోజులు 6 గంటలు", None), ("bn", "উত্তর: ২ দিন ৬ ঘণ্টা", None),
        ("sw", "Jibu: siku 2 na saa 6", None), ("en", "Answer: 5 apples and 6 oranges", None), ("en", "Answer: 5 boys, 6 girls", None),
        ("zh", "答案：5个苹果和6个橘子", None), ("de", "Antwort: 5 Jungen und 6 Mädchen", None), ("en", "Answer: Tom has 5 and Ann has 6", None),
        ("en", "Answer: Tom: 5, Ann: 6", None), ("en", "Answer: 1 h 20 min", None), ("en", "The answer is 4 hours 15 minutes.", None),
        ("en", 'The answer is 6\'2"', None), ("en", "Answer: 18 apples for 3 boxes", 18), ("en", "Answer: 18 dollars per 2 hours", 18),
    ],
    "ranges": [
        ("en", "Answer: 5 to 6", None), ("en", "Answer: between 5 and 6 apples", None), ("en", "Answer: 5~6", None), ("en", "Answer: 5 – 6", None),
        ("en", "Answer: 5—6", None), ("es", "Respuesta: de 5 a 6", None), ("de", "Antwort: von 5 bis 6 Euro", None), ("ru", "Ответ: от 5 до 6", None),
        ("ja", "答え：5〜6個", None), ("zh", "答案：5至6个", None), ("sw", "Jibu: 5 hadi 6", None), ("te", "సమాధానం: 5 నుండి 6 వరకు", None),
        ("bn", "উত্তর: ৫ থেকে ৬", None), ("th", "คำตอบ: 5 ถึง 6", None), ("th", "คำตอบ: 5-6 ลูก", None), ("en", "Answer: $5-$6", None),
        ("en", "Answer: $5 to $6", None), ("en", "Answer: 5%-6%", None), ("de", "Antwort: 5 € bis 6 €", None), ("en", "Answer: 5 kg to 6 kg", None),
        ("fr", "Réponse : entre 5 et 6", None), ("fr", "Réponse : 5 à 6 euros", None), ("fr", "Réponse : 5 ou 6", None), ("zh", "答案：5-6个", None),
        ("zh", "答案：5~6", None), ("ja", "答え：5〜6", None), ("ja", "答え：5から6", None), ("bn", "উত্তর: ৫-৬", None), ("te", "సమాధానం: 5-6", None),
        ("ru", "Ответ: 5–6", None), ("en", "Answer: 5/6", None), ("en", "Answer: either 5 or 6", None), ("en", "So it is 5 or 6 apples.", None),
        ("de", "Es sind also 5 oder 6.", None), ("ja", "5個または6個です。", None), ("zh", "所以是5个或者6个。", None), ("en", "Answer: 5 … 6", None),
        ("en", "Answer: 5...6", None), ("en", "Answer: 5 apples or 6 apples", None), ("en", "Answer: 18 or more", 18),
        ("en", "Answer: at least 18", 18), ("en", "Answer: about 18", 18), ("en", "Answer: ~18", 18), ("en", "Answer: ≈18", 18),
    ],
    "currencies": [
        ("en", "Answer: US$18", 18), ("en", "Answer: USD18", 18), ("te", "సమాధానం: రూ. 1,20,000", 120000), ("te", "సమాధానం: Rs. 500/-", 500),
        ("te", "సమాధానం: Rs500", 500), ("sw", "Jibu: Tsh 5,000/=", 5000), ("sw", "Jibu: shilingi 1,200", 1200), ("sw", "Jibu ni $18", 18),
        ("bn", "উত্তর: ৳১৮", 18), ("bn", "উত্তর: ১৮৳", 18), ("th", "คำตอบ: 18 บาท", 18), ("ja", "答え：1,800円", 1800), ("zh", "答案：￥18", 18),
        ("zh", "答案：18元", 18), ("de", "Antwort: 1.234,- Euro", 1234), ("de", "Antwort: EUR 18", 18), ("de", "Antwort: 18€", 18),
        ("fr", "Réponse : 1 234,50 €", "1234.5"), ("es", "Respuesta: $1.234", 1234), ("es", "Respuesta: US$ 18", 18), ("ru", "Ответ: 18 ₽", 18),
        ("ru", "Ответ: $18", 18), ("en", "Answer: £18", 18), ("en", "Answer: A$18", 18), ("en", "Answer: -$18", -18), ("en", "Answer: 18 cents", 18),
        ("en", "Answer: $18/hr", 18), ("en", "Answer: $0.18", "0.18"), ("en", "Answer: $1.5 million", 1500000),
    ],
    "marks in numbers": [
        ("en", "Answer: 1,234", 1234), ("en", "Answer: 1 234", 1234), ("en", "Answer: 12,500", 12500), ("de", "Antwort: 12,5", "12.5"),
        ("de", "Antwort: 1.234.567", 1234567), ("de", "Antwort: 0,75", "0.75"), ("fr", "Réponse : 1 234 567", 1234567),
        ("fr", "Réponse : 1.234", 1234), ("es", "Respuesta: 1 234 567", 1234567), ("es", "Respuesta: 12,5", "12.5"), ("ru", "Ответ: 12.5", "12.5"),
        ("zh", "答案：1，234", 1234), ("zh", "答案：1234", 1234), ("ja", "答え：1,234", 1234), ("te", "సమాధానం: 12,34,567", 1234567),
        ("bn", "উত্তর: ১২,৩৪,৫৬৭", 1234567), ("th", "คำตอบ: 1,234", 1234), ("sw", "Jibu: 1,234", 1234), ("en", "Answer: 1_234", 1234),
        ("en", "Answer: 018", 18), ("en", "Answer: 18.000", 18), ("en", "Answer: 0", 0), ("en", "Answer: -0", 0),
        ("en", "Answer: 10,00,000.50", "1000000.5"),
    ],
    "digits of other scripts": [
        ("bn", "উত্তর: ১৮", 18), ("bn", "উত্তরঃ ১৮", 18), ("te", "సమాధానం: ౧౮", 18), ("th", "ตอบ: ๑๘", 18), ("th", "ตอบ ๑๘ บาท", 18),
        ("te", "తుది సమాధానం: 18", 18), ("te", "జవాబు = 18", 18), ("te", "సమాధానం: १८", 18), ("en", "Answer: ١٨", 18), ("zh", "答案：１８", 18),
        ("ja", "答え：１８", 18), ("bn", "−১৮", -18), ("bn", "উত্তর: ১৮%", 18), ("bn", "১৮।", 18), ("th", "๑๘", 18), ("bn", "উত্তর: ১৮.৫", "18.5"),
        ("te", "సమాధానం: ౧౮.౫", "18.5"), ("th", "คำตอบ: ๑๘.๕", "18.5"), ("bn", "\\boxed{১৮}", 18), ("te", "\\boxed{౧౮}", 18),
        ("th", "\\boxed{๑๘}", 18), ("bn", "**১৮**", 18), ("bn", "#### ১৮", 18),
    ],
    "words are not guessed": [
        ("en", "The answer is eighteen.", None), ("en", "He has 12 and gets 6. The answer is eighteen.", None), ("zh", "答案是十八。", None),
        ("ja", "答えは十八です。", None), ("de", "Die Antwort lautet achtzehn.", None), ("es", "La respuesta es dieciocho.", None),
        ("fr", "La réponse est dix-huit.", None), ("ru", "Ответ: восемнадцать.", None), ("sw", "Jibu ni kumi na nane.", None),
        ("te", "సమాధానం పద్దెనిమిది.", None), ("bn", "উত্তর: আঠারো", None), ("th", "คำตอบคือ สิบแปด", None),
        ("en", "12 + 6 is what we add.\nAnswer: eighteen", None), ("zh", "小明有12个，又得6个。答案是十八个。", None),
        ("de", "Er hat 12 und bekommt 6.\nAntwort: achtzehn", None), ("ru", "У него 12, он получил 6.\nОтвет: восемнадцать", None),
        ("en", "eighteen", None), ("en", "Answer: eighteen (18)", 18), ("en", "Answer: 18 (eighteen)", 18), ("en", "Answer: none", None),
        ("en", "He has 12 apples. Answer: none of them", None), ("en", "He has 12 apples.\nAnswer: zero", None),
        ("en", "She had 5.\n**Answer:** unknown", None),
    ],
    "no answer is said to be one": [
        ("en", "I'm sorry, I can't help with that.", None), ("en", "There is not enough information to answer.", None),
        ("en", "Tom has 5 apples. The answer cannot be determined.", None),
        ("en", "We know that there are 30 students, but not how many girls. It is impossible to determine the answer.", None),
        ("zh", "题目中只给出了5个苹果，无法确定答案。", None), ("de", "Es gibt 5 Äpfel, aber die Frage kann nicht beantwortet werden.", None),
        ("ja", "問題文に5個とありますが、答えを求めることはできません。", None), ("fr", "Il y a 5 pommes, mais on ne peut pas répondre.", None),
        ("es", "Hay 5 manzanas, pero no es posible determinar la respuesta.", None), ("ru", "Дано 5 яблок, но невозможно определить ответ.", None),
    ],
    "a question says nothing": [
        ("en", "How many apples does Tom have after 3 days?", None), ("en", "5 + 13 = 18\nHow many are left after 3 days?", 18),
        ("en", "Answer: 18\n\nHow many do 3 friends have?", 18), ("en", "So he has 18. Do you want to know how many he has after 3 days?", 18),
        ("zh", "他有18个苹果。3天后呢？", 18), ("ja", "合計は18です。3日後は何個でしょうか？", 18), ("de", "Es sind 18. Wie viele sind es nach 3 Tagen?", 18),
        ("es", "Son 18. ¿Cuántas hay después de 3 días?", 18), ("ru", "Всего 18. Сколько будет через 3 дня?", 18),
        ("fr", "Il y en a 18. Combien après 3 jours ?", 18), ("sw", "Jumla ni 18. Je, ni ngapi baada ya siku 3?", 18),
        ("bn", "মোট ১৮টি। ৩ দিন পরে কত?", 18), ("te", "మొత్తం 18. 3 రోజుల తర్వాత ఎన్ని?", 18),
    ],
    "corrections": [
        ("en", "The answer is 18. Wait, no. The answer is 20.", 20), ("en", "Answer: 18\n\nWait, I made a mistake: 5 * 4 = 20, so it is 20.", 20),
        ("en", "**Answer: 18**\n\nActually, that is wrong. She has 20 apples.", 20),
        ("en", "\\boxed{18}\n\nWait, that's not right. 5*4 = 20.\n\n\\boxed{20}", 20),
        ("en", "\\boxed{18}\nLet me recheck. I made an error. It should be 20.", 20),
        ("de", "Antwort: 18\n\nMoment, das ist falsch. 5 * 4 = 20. Es sind also 20.", 20),
        ("es", "Respuesta: 18\n\nEspera, me equivoqué. 5 * 4 = 20. Son 20.", 20),
        ("fr", "Réponse : 18\n\nAttendez, c'est une erreur. 5 * 4 = 20. Il y en a 20.", 20),
        ("ru", "Ответ: 18\n\nПодождите, я ошибся. 5 * 4 = 20. Всего 20.", 20), ("zh", "答案：18\n\n等等，我算错了。5 × 4 = 20，所以是20个。", 20),
        ("ja", "答え：18\n\n待ってください、間違えました。5 × 4 = 20 なので20個です。", 20), ("sw", "Jibu: 18\n\nSubiri, nilikosea. 5 * 4 = 20. Ni 20.", 20),
        ("th", "คำตอบ: 18\n\nเดี๋ยวก่อน ผมคำนวณผิด 5 × 4 = 20 ดังนั้นเป็น 20 ลูก", 20),
        ("te", "సమాధానం: 18\n\nఆగండి, నేను తప్పు చేశాను. 5 × 4 = 20. మొత్తం 20.", 20),
        ("bn", "উত্তর: ১৮\n\nদাঁড়ান, আমি ভুল করেছি। ৫ × ৪ = ২০। মোট ২০টি।", 20),
        ("en", "Answer: 18\n\nWait, let me double-check: 5 + 13 = 18. Yes, that is correct.", 18),
        ("en", "Correction: the answer is 20, not 18.", 20), ("en", "The answer is not 18 but 20.", 20), ("en", "It is 20, not 18.", 20),
        ("zh", "答案是20，不是18。", 20), ("de", "Es sind 20, nicht 18.", 20),
    ],
    "checks of the solution": [
        ("en", "So she has **18** apples.\n\nCheck: 18 - 12 = 6 ✓", 18), ("en", "So she has 18 apples.\n\nCheck: 18 - 12 = 6. Correct.", 18),
        ("en", "So she has 18 apples.\n\n**Verification:**\n18 - 12 = 6\n6 + 12 = 18", 18), ("en", "Answer: 18\n\nCheck: 18 - 12 = 6", 18),
        ("de", "Es sind **18** Äpfel.\n\nProbe: 18 - 12 = 6", 18), ("ru", "Итого 18 яблок.\n\nПроверка: 18 - 12 = 6", 18),
        ("zh", "所以有**18**个。\n\n验算：18 - 12 = 6", 18), ("ja", "したがって18個です。\n\n検算：18 - 12 = 6", 18),
        ("fr", "Il y a donc 18 pommes.\n\nVérification : 18 - 12 = 6", 18), ("es", "Hay 18 manzanas.\n\nComprobación: 18 - 12 = 6", 18),
        ("en", "\\boxed{18}\n\nCheck: 18 - 12 = 6", 18),
    ],
    "more marks of thinking": [
        ("en", "<think>It is 12.</think>\n\n18", 18), ("en", "<think>\n</think>\n\nThe answer is 18.", 18), ("en", "<Think>It is 12.", None),
        ("en", "<thinking>It is 12.</thinking><answer>18</answer>", 18), ("en", "<think>It is 12.</think><answer>18</answer>", 18),
        ("en", "<answer>18</answer>", 18), ("en", "<answer> $18 </answer>\n<confidence>90</confidence>", 18),
        ("en", "[THINK]It is 12.[/THINK]18", 18), ("en", "[THINK]Is it 12?", None), ("en", "<|begin_of_thought|>Is it 12?", None),
        ("en", "<|begin_of_thought|>Is it 12?<|end_of_thought|>\n\n<|begin_of_solution|>18<|end_of_solution|>", 18),
        ("en", "<reasoning>5+6=11</reasoning>\n<answer>11</answer>", 11), ("en", "<reasoning>Is it 12?", None), ("en", "<thought>Is it 12?", None),
        ("en", "◁think▷Is it 12?◁/think▷18", 18), ("en", "◁think▷Is it 12?", None),
        ("en", "<|channel|>analysis<|message|>Is it 12?<|end|><|start|>assistant<|channel|>final<|message|>18", 18),
        ("en", "<|channel|>analysis<|message|>Is it 12?", None), ("en", "<seed:think>Is it 12?", None), ("en", "<think>12</think>", None),
        ("en", "<think>It is 12</think>I do not know.", None), ("zh", "<think>是12吗？</think>答案是18。", 18), ("en", "<THINK>Is it 12?", None),
        ("en", "< think >Is it 12?", None),
    ],
    "tables": [
        ("en", "| Item | Cost |\n|---|---|\n| Apples | $5 |\n| Pears | $13 |\n| **Total** | **$18** |", 18),
        ("en", "| Day | Eggs |\n|:--|--:|\n| 1 | 5 |\n| 2 | 13 |\n| Total | 18 |", 18), ("en", "| Step | Result |\n|---|---|\n| 1 | 18 |", 18),
        ("zh", "| 项目 | 金额 |\n|---|---|\n| 合计 | 18元 |", 18), ("en", "| Answer | 18 |", 18), ("en", "| 5 | 13 | **18** |", 18),
    ],
    "data and code": [
        ("en", '{"answer": 18}', 18), ("en", '{"answer": "18", "steps": 3}', 18), ("en", '{"final_answer": 18, "confidence": 0.9}', 18),
        ("en", '```json\n{\n  "answer": 18,\n  "confidence": 95\n}\n```', 18), ("en", "final_answer = 18", 18),
        ("en", "<final_answer>18</final_answer><steps>3</steps>", 18), ("en", "print(18)", 18),
        ("en", "```python\nx = 5 + 13\nprint(x)\n```\nOutput: 18", 18), ("en", "answer = 5 + 13", None), ("en", "The answer is `18`.", 18),
        ("en", 'The answer is "18".', 18), ("en", "Answer: '18'", 18), ("en", "answer: [18]", 18), ("en", "answer: (18)", 18),
        ("en", "Answer: {18}", 18),
    ],
    "more labels": [
        ("en", "Answer = 18", 18), ("en", "Ans. 18", 18), ("en", "Final Answer\n18", 18), ("en", "The final answer is: $18$", 18),
        ("en", "So the answer would be 18 apples.", 18), ("en", "The answer should be 18", 18), ("en", "The answer is therefore 18.", 18),
        ("en", "Answer:18", 18), ("en", "Answer – 18", 18), ("en", "Total = 18", 18), ("en", "∴ 18", 18), ("en", "Answer: x=18, y=3", None),
        ("en", "Answer: 18 - the number of apples", 18), ("de", "Ergebnis: 18", 18), ("de", "Die endgültige Antwort lautet **18**.", 18),
        ("de", "Die Antwort beträgt 18.", 18), ("de", "Die Antwort ist 18, weil 3 * 6 = 18.", 18), ("es", "Resultado: 18", 18),
        ("es", "Respuesta: 18.", 18), ("fr", "La réponse finale est : 18", 18), ("fr", "La réponse est donc 18 pommes.", 18),
        ("fr", "La réponse est: $18$.", 18), ("ru", "Ответ: 18 яблок.", 18), ("ru", "Ответ - 18", 18), ("ru", "Ответ будет 18.", 18),
        ("zh", "结果：18", 18), ("zh", "所以答案为：18", 18), ("zh", "**答案：18**", 18), ("zh", "答案 18", 18), ("zh", "故答案為：18", 18), ("ja", "正解は18です。", 18),
        ("ja", "答えは、3日で18個です。", 18), ("ja", "答：18円", 18), ("ja", "【答え】18個", 18), ("zh", "【解答】5+13=18\n【答案】18", 18), ("th", "ตอบ: 18", 18),
        ("th", "คำตอบ = 18", 18), ("te", "చివరి సమాధానం: 18", 18), ("te", "**సమాధానం: 18**", 18), ("te", "తుది జవాబు: 18", 18),
        ("bn", "সঠিক উত্তর হলো ১৮।", 18), ("bn", "সুতরাং, উত্তর হল $18।", 18), ("bn", "উত্তর: ৩ দিনে ১৮টি", 18), ("sw", "Kwa hiyo, jibu ni 18", 18),
        ("sw", "Jibu: Ana matofaa 18 baada ya siku 3.", 18),
    ],
    "minus in words": [
        ("en", "The answer is minus 5.", -5), ("en", "The temperature is minus 5 degrees.", -5), ("de", "Die Antwort lautet minus 5.", -5),
        ("fr", "La réponse est moins 5.", -5), ("es", "La respuesta es menos 5.", -5), ("ru", "Ответ: минус 5", -5), ("zh", "答案是负5。", -5),
        ("ja", "答えはマイナス5です。", -5), ("en", "10 minus 5 is 5.", 5), ("en", "Answer: negative 5", -5), ("bn", "উত্তর: মাইনাস ৫", -5),
        ("te", "సమాధానం: మైనస్ 5", -5),
    ],
    "and more": [
        ("en", "Step 3: The total is 18.", 18), ("en", "Step 1: 5 + 13 = 18\nStep 2: Done.", 18), ("en", "1) 5 + 13 = 18\n2) Done", 18),
        ("en", "18\n\n---\n\nLet me know if you have any questions!", 18), ("en", "The total is 18 [1].", 18), ("en", "The answer is 18!", 18),
        ("en", "Answer: 18!", 18), ("en", "(18)", 18), ("en", '"18"', 18), ("en", "18🙂", 18), ("en", "Answer: 🎉 18 🎉", 18),
        ("en", "Answer: 18 :)", 18), ("en", "18 </s>", 18), ("en", "The answer is 18<|im_end|>", 18), ("en", "The answer is 18<|eot_id|>", 18),
        ("en", "Answer: 18️", 18), ("en", "Answer: \u200b18", 18), ("en", "Answer: 1\u200b8", 18), ("en", "Answer:\xa018", 18),
        ("en", "\ufeffAnswer: 18", 18), ("en", "Answer: 18\r\nDone in 3 steps.\r\n", 18), ("en", "COVID-19 cost 18 jobs.", 18),
        ("en", "By 2030 there are 18 of them.", 18), ("en", "Answer: 5 + 13", None), ("en", "x + 5 = 18, so x = 13", 13),
        ("en", "Answer: 5, 6, 7", None), ("en", "Answer: 5 6", None), ("en", "Answer: 5; 6", None), ("en", "Answer: 5*x", None),
        ("en", "Answer: √18", None), ("en", "Answer: 18π", None), ("en", "Answer: 5!", 5),
    ],
    "whole solutions": [
        ("en", "A robe takes 2 bolts of blue fiber and half that much white, i.e. 2/2 = 1. In total 2 + 1 = 3 bolts.", 3),
        ("en", "He runs 3*3=9 sprints a week, so 9*60=540 meters.\n\n540 meters a week.", 540),
        ("en", "Total = $64 for the 16 glasses.\n#### 64", 64), ("en", "Answer: Eliza earned $460 for working 45 hours.", 460),
        ("en", "The total distance is 45 miles. So after 4 hours he is 45 miles from home.", 45),
        ("en", "In conclusion, Marissa must walk at **6 mph** for the remaining 6 miles.", 6), ("en", "Answer: 18 + 2 = 20", 20),
        ("en", "So the final price is $1,200 - $200 = **$1,000**.", 1000),
        ("en", "Answer: Wendi needs to give 20 cups of feed in the final meal of the day.", 20),
        ("en", "Each child gets 54 / 3 = 18 pieces, which is 6 more than before.", 18),
        ("de", "Janet verkauft 16 - 3 - 4 = 9 Eier. Sie verdient 9 * 2 = 18 Dollar pro Tag.", 18),
        ("de", "Insgesamt läuft er also 540 Meter pro Woche, bei 3 Läufen am Tag.", 540), ("de", "Er ist in 3 Jahren 18 Jahre alt.", 18),
        ("de", "Also sind es **18,5 kg**.", "18.5"), ("de", "Die Antwort lautet: **1.234,50 €**", "1234.5"),
        ("es", "Janet vende 16 - 3 - 4 = 9 huevos. Gana 9 * 2 = $18 al día.", 18), ("es", "Por lo tanto, en 4 semanas gasta 18 dólares.", 18),
        ("es", "Entonces le quedan 1.234 pesos.", 1234), ("es", "Respuesta: 18 (dieciocho) manzanas.", 18),
        ("fr", "Elle vend 16 - 3 - 4 = 9 œufs et gagne 9 × 2 = 18 $ par jour.", 18), ("fr", "Donc, après 3 ans, il aura 18 ans.", 18),
        ("fr", "Chacun des 3 enfants reçoit donc 18 bonbons.", 18), ("fr", "Il reste 1 234,5 €.", "1234.5"),
        ("ru", "Она продаёт 16 - 3 - 4 = 9 яиц и зарабатывает 9 * 2 = 18 долларов в день.", 18), ("ru", "Через 3 года ему будет 18 лет.", 18),
        ("ru", "Каждый из 3 детей получит 18 конфет.", 18), ("ru", "Таким образом, осталось 18 яблок.", 18), ("zh", "她每天卖16-3-4=9个鸡蛋，赚9*2=18美元。", 18),
        ("zh", "3年后他18岁。", 18), ("zh", "答案是：他需要走18公里。", 18), ("zh", "综上所述，小明还剩18元。", 18), ("zh", "所以利润是7万元。", 70000), ("zh", "一共有18个苹果。", 18),
        ("zh", "答：她每天赚18美元，卖9个蛋。", 18), ("ja", "利益は7万ドルです。", 70000), ("ja", "3年後に彼は18歳です。", 18), ("ja", "答えは、18ドルです。", 18),
        ("ja", "よって、一人あたり18個です。", 18), ("ja", "合計で 18 個（1日6個）になります。", 18), ("ja", "答え 18円", 18), ("th", "กำไร 70,000 ดอลลาร์", 70000),
        ("th", "คำตอบ: 18 ดอลลาร์ต่อวัน", 18), ("th", "คำตอบคือ **18** ดอลลาร์", 18), ("te", "లాభం $70,000.", 70000),
        ("te", "సమాధానం: రోజుకు $18", 18), ("bn", "সে 16 - 3 - 4 = 9টি ডিম বিক্রি করে 9 * 2 = $18 পায়।", 18),
        ("bn", "৩ বছর পরে তার বয়স ১৮ হবে।", 18), ("bn", "অতএব, প্রত্যেকে ১৮টি করে পাবে।", 18), ("sw", "Faida ni $70,000.", 70000),
        ("sw", "Jibu: dola 18 kwa siku", 18), ("sw", "Jibu ni 18, kwa sababu 3 * 6 = 18.", 18),
    ],
    "more that is no one number": [
        ("en", "Answer: 12~15", None), ("zh", "答案：15～20个", None), ("en", "Answer: 15-20 apples", None), ("en", "Answer: 15x", None),
        ("en", "Answer: 15x + 3", None), ("en", "Answer: 1/3 of 18", None), ("en", "The answer is 2:30.", None), ("en", "Answer: 10:15:30", None),
        ("en", "Answer: from 12 up to 15", None), ("en", "Answer: 5 or maybe 6", None),
        ("en", "The answer is either 12 or 15, depending on the day.", None), ("en", "The answer could be 12 or 15.", None),
        ("de", "Antwort: 12 bis 15 Äpfel", None), ("fr", "Réponse : 12 ou 15 selon le jour", None), ("es", "Respuesta: 12 o 15", None),
        ("ru", "Ответ: от 12 до 15 яблок", None), ("sw", "Jibu: kati ya 12 na 15", None), ("te", "సమాధానం: 12 లేదా 15", None),
        ("bn", "উত্তর: ১২ অথবা ১৫", None), ("th", "คำตอบ: 12 หรือ 15 ลูก", None), ("ja", "答え：12または15個", None), ("zh", "答案：12或15个", None),
        ("ja", "答え：12〜15個", None), ("en", "Answer: 3 hours, 20 minutes", None), ("en", "Answer: 3hrs 20mins", None), ("en", "Answer: 3h20m", None),
        ("en", "Answer: 200 minutes (3 hours 20 minutes)", 200), ("en", "200 minutes = 3 hours and 20 minutes.", None),
        ("de", "Antwort: 3 Std. 20 Min.", None), ("es", "Respuesta: 3 horas con 20 minutos", None), ("fr", "Réponse : 3 heures 20", None),
        ("ru", "Ответ: 3 ч 20 мин", None), ("ja", "答え：3時間20分", None), ("zh", "答案：3小时20分", None), ("bn", "উত্তর: ৩ ঘণ্টা ২০ মিনিট", None),
        ("te", "సమాధానం: 3 గంటల 20 నిమిషాలు", None), ("sw", "Jibu: saa 3 na dakika 20", None), ("th", "คำตอบ: 3 ชั่วโมง 20 นาที", None),
        ("en", "So he arrives at 3:45 PM.", None), ("en", "So he arrives at 3 PM.", None), ("fr", "Il arrive donc à 15 h 45.", None),
        ("de", "Er kommt um 15:45 Uhr an.", None), ("es", "Llega a las 15:45.", None), ("ru", "Он приедет в 15:45.", None),
        ("zh", "他下午3点45分到达。", None), ("ja", "彼は午後3時45分に着きます。", None), ("en", "\\boxed{\\frac{18}{5}}", None),
        ("en", "The answer is $\\frac{18}{5}$.", None), ("en", "The answer is 18/5 = 3.6.", "3.6"), ("en", "\\boxed{\\frac{18}{5} = 3.6}", "3.6"),
        ("en", "Answer: 3.6 (18/5)", "3.6"), ("en", "Answer: 18/5 ≈ 4", 4), ("en", "Answer: one half", None), ("en", "Answer: x = 5 or x = 6", None),
        ("en", "\\boxed{5 \\text{ or } 6}", None), ("en", "\\boxed{(5, 6)}", None), ("en", "\\boxed{5; 6}", None),
        ("en", "Answer: $5.50 and $6.50", None), ("en", "Answer: Tom gets $5 and Ann gets $6.", None),
        ("en", "Answer: Tom has 5 apples and Ann has 6 apples.", None), ("de", "Antwort: Tom hat 5 und Anna hat 6.", None),
    ],
    "markdown and LaTeX": [
        ("en", "### Final Answer: 18", 18), ("en", "**The final answer is: 18**", 18), ("en", "- **Total:** 18", 18),
        ("en", "Final answer: \\(18\\)", 18), ("en", "Final answer: $$18$$", 18), ("en", "\\[\n\\boxed{18}\n\\]", 18),
        ("en", "The answer is:\n\n18", 18), ("en", "Answer:\n\n```\n18\n```", 18), ("en", "Answer: <b>18</b>", 18), ("en", "Answer: ==18==", 18),
        ("en", "Answer — 18", 18), ("en", "Answer -> 18", 18), ("en", "Answer is 18", 18), ("en", "The answer equals 18.", 18),
        ("en", "The answer turns out to be 18.", 18), ("en", "Final Answer: The final answer is 18. I hope it is correct.", 18),
        ("en", "The answer is 18.00 dollars.", 18), ("en", "#### 18.00", 18), ("en", "####18", 18), ("en", "#### -18", -18),
        ("en", "#### **18**", 18), ("en", "#### The answer is 18", 18), ("en", "\\boxed{18}\\boxed{20}", 20), ("en", "\\boxed {18}", 18),
        ("en", "\\boxed{18 }", 18), ("en", "\\boxed{18\\,\\mathrm{cm}}", 18), ("en", "\\boxed{18^{\\circ}\\text{C}}", 18),
        ("en", "\\boxed{\\large 18}", 18), ("en", "\\boxed{\\textbf{(B) }18}", 18), ("en", "\\boxed{\\displaystyle 18}", 18),
        ("en", "\\boxed{\\{18\\}}", 18), ("en", "Answer: 1,234.00", 1234), ("en", "Answer: 1 234.5", "1234.5"),
        ("en", "Answer: 12.345.678", 12345678), ("en", "Answer: .5", "0.5"), ("en", "Answer: 1,50", "1.5"), ("de", "Antwort: 1.500", 1500),
        ("ja", "答え：１．５", "1.5"), ("zh", "答案：3万5千", 35000), ("ja", "答え：1万円", 10000), ("sw", "Jibu: milioni 2", 2000000),
        ("en", "Answer: 2 million", 2000000), ("de", "Antwort: 2 Milliarden", 2000000000), ("ja", "答え：2億円", 200000000),
        ("fr", "Réponse : 2 milliards", 2000000000), ("sw", "Jibu: mia 5", 500), ("te", "సమాధానం: 5 వందలు", 500), ("bn", "উত্তর: ৫ শত", 500),
        ("zh", "答案：3千5百", 3500), ("en", "Answer: 5 dozen eggs", 5),
    ],
    "what comes after the answer": [
        ("en", "The answer is 18.\n\nIf you have 3 more questions, feel free to ask!", 18),
        ("en", "**18**\n\nLet me know if you need help with 2 or more problems.", 18),
        ("en", "She has 18 eggs.\n\nNote: This assumes that she works 5 days a week.", 18), ("en", "Answer: 18\n\n---\nTime: 3 seconds", 18),
        ("en", "Answer: 18\n\nExplanation: 3 boxes of 6 are 18, minus 0 is 18, plus 2 is 20.", 18), ("en", "Final answer: 18\nConfidence: 95%", 18),
        ("en", "18\n\nExplanation: 3 * 6 = 18", 18), ("en", "Answer: 18\nAnswer: 18\nAnswer: 18", 18), ("en", "Answer: 18\nAnswer: 20", 20),
        ("en", "The answer is 18.\nThe answer is 20.", 20), ("en", "**Answer:** 18\n\n**Alternative:** 20", 18),
        ("en", "I get 18. Is that right?", 18), ("en", "Let's check: 18 / 3 = 6. So the answer is 18.", 18),
        ("en", "First answer: 15. Wait, that's wrong. Second answer: 18.", 18), ("en", "I think it's 15... no, wait. 3*6 = 18.", 18),
        ("en", "Oops, that should be 18, not 15.", 18),
        ("en", "The answer is 15.\n\nHold on. I forgot the 3 eggs. 15 + 3 = 18.\n\nThe answer is 18.", 18),
        ("en", "\\boxed{15}\n\nHmm, wait. I forgot 3 eggs. So 15 + 3 = 18.\n\n\\boxed{18}", 18),
        ("en", "Answer: 15\n\nSorry, I made a mistake. The correct answer is 18.", 18),
        ("en", "Answer: 15\n\nApologies for the error. It is 18.", 18), ("zh", "答案是15。不对，应该是18。", 18), ("zh", "答案：15\n抱歉，我之前算错了，正确答案是18。", 18),
        ("de", "Antwort: 15\n\nEntschuldigung, ich habe mich verrechnet. Es sind 18.", 18), ("ja", "答えは15です。すみません、間違えました。正しくは18です。", 18),
        ("ru", "Ответ: 15. Нет, это неверно. Ответ: 18.", 18), ("fr", "Réponse : 15\n\nPardon, je me suis trompé : c'est 18.", 18),
        ("es", "Respuesta: 15. Perdón, me equivoqué. Es 18.", 18), ("sw", "Jibu: 15. Samahani, nimekosea. Ni 18.", 18),
        ("en", "He made 3 mistakes. Was that wrong? The answer is 18.", 18),
        ("en", "If that is wrong, she loses 3 points. She has 18 points left.", 18),
        ("en", "This is not correct for 3 of the 21 tests, so 18 pass.", 18), ("en", "Answer: 18\n\nSome think it is 20, but that is incorrect.", 18),
        ("en", "Answer: 18. It is not 20, that is wrong.", 18),
        ("en", "The common error is to add 3, which gives 21; that is wrong. The answer is 18.", 18),
    ],
    "what the rules must not take for something else": [
        ("en", "Since we cannot find half a bus, she needs 4 buses.", 4), ("en", "She cannot find 3 of them, so she has 18.", 18),
        ("en", "Tom could not answer 3 of the 21 questions, so he answered 18.", 18),
        ("en", "It is impossible to solve it in 3 hours, so he needs 18.", 18), ("zh", "他无法回答3道题，所以答对了18道。", 18),
        ("de", "3 Fragen wurden nicht beantwortet, also 18 richtig.", 18), ("en", "So she has 18 apples. The answer is correct.", 18),
        ("en", "5 + 13 = 18 apples. Therefore, the answer is as shown above.", 18), ("en", "5 + 13 = 18.\n\nThe answer is right.", 18),
        ("de", "Also sind es 18. Die Antwort ist richtig.", 18), ("es", "Son 18. La respuesta es correcta.", 18),
        ("fr", "Il y en a 18. La réponse est correcte.", 18), ("ru", "Всего 18. Ответ: верно.", 18), ("zh", "一共18个。答案是正确的。", 18),
        ("ja", "合計18個です。答えは正しいです。", 18), ("sw", "Jumla ni 18. Jibu ni sahihi.", 18),
        ("en", "5 apples and 13 apples.\nIf you have 5 apples and get 13, you have 18 in all.", 18),
        ("en", "5 boxes.\nTo check out she pays 18 dollars.", 18), ("zh", "一共20台机器。\n检查了18台。", 18),
        ("bn", "মোট ২০ জন।\nপরীক্ষায় ১৮ জন পাস করেছে।", 18),
        ("en", "5 + 13 = 18\n\nIf you have any other questions, or want 3 more examples, ask.", 18), ("zh", "答案：5千克", 5), ("zh", "一共18千米。", 18),
        ("zh", "答案：5千", 5000), ("ja", "答え：5千円", 5000), ("zh", "重18千克。", 18), ("zh", "答案：5千瓦时", 5), ("fr", "Il aura 18 ans.", 18),
        ("fr", "Âge : 18 ans.", 18), ("zh", "第1步：5+13=18\n第2步：完成。", 18), ("ja", "ステップ1：5 + 13 = 18\nステップ2：完了", 18),
        ("de", "Schritt 1: 5 + 13 = 18\nSchritt 2: fertig", 18), ("th", "ขั้นตอนที่ 1: 5 + 13 = 18\nขั้นตอนที่ 2: เสร็จ", 18),
        ("bn", "ধাপ ১: ৫ + ১৩ = ১৮\nধাপ ২: শেষ", 18), ("te", "దశ 1: 5 + 13 = 18\nదశ 2: పూర్తి", 18),
        ("sw", "Hatua ya 1: 5 + 13 = 18\nHatua ya 2: mwisho", 18), ("fr", "Étape 1 : 5 + 13 = 18\nÉtape 2 : fini", 18),
        ("es", "Paso 1: 5 + 13 = 18\nPaso 2: listo", 18), ("ru", "Шаг 1: 5 + 13 = 18\nШаг 2: готово", 18),
        ("en", "The answer is 18, not counting the 3 broken ones.", 18), ("en", "It takes 2 hours 3 times a week, so 6 hours.", 6),
        ("en", "He works 8 hours a day, 5 days a week, which is 40 hours.", 40), ("en", "Answer: 18 miles in 2 hours 30 minutes", 18),
        ("en", "In 2 hours and 30 minutes he walks 18 miles.", 18), ("de", "In 2 Stunden und 30 Minuten läuft er 18 km.", 18),
        ("zh", "2小时30分钟走了18公里。", 18), ("ja", "2時間30分で18キロ歩きます。", 18), ("en", "By 5:30 PM he has 18.", 18), ("fr", "À 17h30, il en a 18.", 18),
        ("en", "Half (1/2) of 36 is 18.", 18), ("en", "1/2 of 36 is 18.", 18), ("en", "3/4 of 24 = 18", 18),
        ("en", "He ate 1/3 of 27, so 18 are left.", 18), ("en", "Between 5 and 6 he sold 18.", 18), ("en", "He sold 5 or 6 a day, so 18.", 18),
        ("en", "Tom has 5 and Ann has 13, so 18 in total.", 18), ("en", "With 5 boys and 13 girls there are 18.", 18),
        ("en", "Answer: 5 boys + 13 girls = 18", 18), ("en", "Answer: 5 + 13 = 18 children", 18), ("en", "Answer: 18 (5 boys and 13 girls)", 18),
        ("en", "Answer: 18 children: 5 boys and 13 girls", 18), ("en", "Answer: Tom has 18 apples and Ann has none.", 18),
        ("zh", "答案：18个（5个苹果和13个橘子）", 18), ("de", "Antwort: 18 (5 Jungen und 13 Mädchen)", 18), ("en", "Room 101 has 18 seats.", 18),
        ("en", "The A4 sheets number 18.", 18), ("en", "On page 3 there are 18 words.", 18), ("en", "Iphone12 costs 18.", 18),
        ("en", "She scored 18/20, i.e. 18 points.", 18), ("en", "The ratio is 3:4, so 18.", 18), ("en", "Answer: 18 hours (1080 minutes)", 18),
        ("en", "Answer: 1080 minutes = 18 hours", 18), ("en", "Answer: 18 hours, which is 1080 minutes", 18),
        ("en", "Answer: 18 hours or 1080 minutes", 18), ("en", "Note: a dozen is 12.\nSo he has 18.", 18),
        ("en", "He has 18 in the end.\nI hope this helps you with 3 more.", 18), ("en", "10 - 5 = 5, minus 2 = 3", 3),
        ("en", "She earns 20 minus 2 for tax, which is 18.", 18), ("en", "Total minus 2 gives 18.", 18), ("es", "Tiene al menos 18.", 18),
        ("fr", "Il en a au moins 18.", 18), ("fr", "La réponse est au moins 18.", 18), ("es", "La respuesta es al menos 18.", 18),
        ("en", "<b>Answer:</b> 18", 18), ("en", "Answer&nbsp;: 18", 18), ("en", "Answer: 18&deg;", 18),
    ],
}  # fmt: skip


def test_the_cases_are_many():
    assert set(CASES) == set(HEADERS)
    assert sum(map(len, CASES.values())) >= 120 and min(map(len, CASES.values())) > 9


@pytest.mark.parametrize("name", [*CASES, *KINDS])
def test_extract(name):
    cases = KINDS[name] if name in KINDS else [(name, *case) for case in CASES[name]]
    values = [extract(text, language).value for language, text, _ in cases]
    expected = [None if value is None else Decimal(str(value)) for *_, value in cases]
    assert [case for case, value, right in zip(cases, values, expected, strict=True) if value != right] == []


# How an answer is put: (before it, after it), and units that may follow it.
STATEMENTS = {
    "bn": ("উত্তর হল {}।", "উত্তর: {}", "উত্তরঃ {}", "**উত্তর:** {}", "মোট {}।", "অতএব, {} বাকি আছে।"),
    "de": ("Die Antwort lautet {}.", "Antwort: {}", "Die Antwort ist **{}**.", "Also sind es {}.", "Ergebnis: **{}**"),
    "en": ("The answer is {}.", "**Answer:** {}", "### Final Answer\n{}", "So she has {} left.", "<answer>{}</answer>"),
    "es": ("La respuesta es {}.", "Respuesta: {}", "La respuesta final es **{}**.", "En total son {}."),
    "fr": ("La réponse est {}.", "Réponse : {}", "La réponse finale est **{}**.", "Il reste donc {}."),
    "ja": ("答えは{}です。", "答え：{}", "最終的な答えは**{}**です。", "合計は{}です。", "したがって、{}残ります。"),
    "ru": ("Ответ — {}.", "Ответ: {}", "Ответ: **{}**.", "Итого {}.", "Таким образом, осталось {}."),
    "sw": ("Jibu ni {}.", "Jibu: {}", "Jibu la mwisho ni **{}**.", "Jumla ni {}.", "Kwa hiyo amebaki na {}."),
    "te": ("సమాధానం {}.", "సమాధానం: {}", "తుది సమాధానం **{}**.", "మొత్తం {}.", "కాబట్టి {} మిగిలాయి."),
    "th": ("คำตอบคือ {}", "คำตอบ: {}", "คำตอบสุดท้ายคือ **{}**", "รวมทั้งหมด {}", "ดังนั้นเหลือ {}"),
    "zh": ("答案是{}。", "答案：{}", "最终答案是**{}**。", "一共{}。", "因此还剩{}。", "答：{}。"),
}
EVERYWHERE = ("#### {}", "\\boxed{{{}}}", "5 + 13 = {}", "$\\boxed{{{}}}$")
UNITS = {
    "bn": " টাকা|টি| ডলার", "de": " Äpfel| €| km/h| m²", "en": " apples| dollars| km/h| m2| minutes per day",
    "es": " manzanas| €| años", "fr": " pommes| €| heures", "ja": "個|円| 個|時間", "ru": " яблок| ₽| км/ч", "sw": " kwa siku",
    "te": " రూపాయలు| గంటలు", "th": " บาท| ลูก", "zh": "个|元|公里| 个",
}  # fmt: skip
NATIVE_DIGITS = {
    "bn": "০১২৩৪৫৬৭৮৯",
    "te": "౦౧౨౩౪౫౬౭౮౯",
    "th": "๐๑๒๓๔๕๖๗๘๙",
    "ja": "０１２３４５６７８９",
    "zh": "０１２３４５６７８９",
}
DECIMAL_COMMA = ("de", "es", "fr", "ru")


def as_written(value: Decimal, language: str, is_grouped: bool, is_native: bool) -> str:
    """A number as it is written where a language is spoken."""
    text = f"{value:,f}" if is_grouped else f"{value:f}"
    if language in DECIMAL_COMMA:
        group = "." if language in ("de", "es") else "\u202f"
        text = text.translate({ord(","): group, ord("."): ","})
    digits = NATIVE_DIGITS.get(language) if is_native else None
    return text.translate(str.maketrans("0123456789", digits)) if digits else text


@given(strategies.data())
def test_a_number_is_read_however_it_is_put(data):
    language = data.draw(strategies.sampled_from(sorted(STATEMENTS)))
    statement = data.draw(strategies.sampled_from(STATEMENTS[language] + EVERYWHERE))
    value = data.draw(strategies.decimals(-9999, 10**7, places=data.draw(strategies.sampled_from([0, 0, 1, 2]))))
    unit = data.draw(strategies.sampled_from(["", *UNITS[language].split("|")]))
    number = as_written(value, language, data.draw(strategies.booleans()), data.draw(strategies.booleans()))
    assert extract(statement.format(number + unit), language).value == value


def test_languages_have_the_same_fields():
    assert {tuple(words) for words in LANGUAGES.values()} == {tuple(LANGUAGES["en"])}
    assert list(LANGUAGES) == sorted(STATEMENTS)


# What took time in square of its length, or more, when a rule was written without care.
HOSTILE = [
    " + ".join(map(str, range(4000))), "-".join(map(str, range(4000))), "the 5 apples and " * 2000, "\\boxed{" * 3000,
    "the answer is " * 2000, "Answer: 5\n" * 2000, '"answer": 5, ' * 2000, "1" * 20000, "\n" * 20000, ". " * 10000, "(" * 20000,
    "ก" * 20000, "Check: 5\n" * 2000, "I made a mistake. " * 1000, "_" * 20000, "3万" * 10000, "- " * 10000,
]  # fmt: skip


@pytest.mark.slow
def test_of_a_long_answer_only_the_end_is_read(monkeypatch):
    """So no rule's time grows with the answer, whatever is in it."""
    lengths, normalize = [], extraction.normalize
    monkeypatch.setattr(
        extraction, "normalize", lambda text, language: lengths.append(len(text)) or normalize(text, language)
    )
    for text in HOSTILE:
        assert extract(text * 50 + "\n\nThe answer is 18.", "en").value == 18
    assert lengths == [LONGEST_ANSWER] * len(HOSTILE)
    assert extract(f"The answer is 4.{' ' * LONGEST_ANSWER}It is 5.", "en").value == 5


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
