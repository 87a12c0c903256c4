"""What the problem browser holds; that its filter works is tested in a browser (test_pages_in_browser.py)."""

import json
import re

from test_error_analysis import CORRECT, PROBLEMS, TwoLanguages, results

from layerswap.analysis.browser import problem_browser
from layerswap.analysis.error_analysis import ERROR_CLASSES


def browser_data(frame, methods=("layer swap", "math expert")):
    page = problem_browser(frame, PROBLEMS, TwoLanguages(), methods, 2)
    return json.loads(re.search('<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_browser_holds_every_answer_of_all_languages_and_pairs():
    frame = results(CORRECT)
    data = browser_data(frame)
    assert data["languages"] == ["sw", "te"] and data["pairs"] == ["seeds 0 and 7", "seeds 1 and 7"]
    assert len(data["problems"]) == 12 and data["texts"] == ["1 + 1 = 2"]
    for problem in data["problems"]:
        for pair, answers in enumerate(problem["answers"]):
            for method, (error_class, text) in zip(data["methods"], answers, strict=True):
                is_right = bool(CORRECT[method](problem["language"], pair, int(problem["id"])))
                assert (ERROR_CLASSES[error_class] == "correct") == is_right and text == 0


def test_words_that_the_base_never_met_are_named():
    unknown = {
        (problem["language"], problem["id"]): problem["unknown"]
        for problem in browser_data(results(CORRECT))["problems"]
    }
    task = TwoLanguages()
    assert unknown == {key: sorted(task.unknown_words(problem)) for key, problem in PROBLEMS.items()}
    assert any(unknown.values()) and not all(unknown.values())


def test_no_text_ends_the_script():
    frame = results(CORRECT)
    frame["text"] = "</script><script>alert(1)</script>"
    assert browser_data(frame)["texts"] == ["</script><script>alert(1)</script>"]
    page = problem_browser(frame, PROBLEMS, TwoLanguages(), ["layer swap"], 2)
    assert page.count("</script>") == 2


def test_equal_answers_give_equal_pages():
    pages = {problem_browser(results(CORRECT), PROBLEMS, TwoLanguages(), ["layer swap"], 2) for _ in range(2)}
    assert len(pages) == 1
