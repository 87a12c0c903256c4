"""Scores of answers: nothing is computed twice or handed to another model, and rows say what the answers say."""

import io
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap.analysis.statistics import summarize
from layerswap.errors import UserError
from layerswap.evaluation import AnswerCache, ScoredModel, engine, evaluate, scoring
from layerswap.files import ROOT
from layerswap.lab.task import LabTask
from layerswap.tasks import MGSM, Problem, Task

LAB, LOCAL = LabTask(), MGSM("local")


def make_model(seed):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    vocab_size = len(word_tokenizer())
    config = LlamaConfig(
        vocab_size=vocab_size, max_position_embeddings=64, eos_token_id=None, bos_token_id=None, **sizes
    )
    return LlamaForCausalLM(config).eval()


def make_problems(n=6):
    words = [word for word in sorted(word_tokenizer().get_vocab()) if word.isalpha()]
    questions = [f"{first} {second} {first}" for first in words for second in words]
    return [Problem(f"p{i}", "sw", question, "one two", i) for i, question in enumerate(questions[:n])]


def scored_model(name, seed, digest=None):
    """A random model; its weights are loaded (made) only when an answer is missing."""
    return ScoredModel(name, digest or f"weights-{name}", lambda: (make_model(seed), word_tokenizer()))


def finished_model(name, digest):
    """A model all of whose answers must be in the cache."""

    def load():
        raise AssertionError("a kept answer was computed again")

    return ScoredModel(name, digest, load)


def evaluate_lab(cache, models, n=6, **settings):
    options = {"style": "lab", "max_new_tokens": 5} | settings
    return evaluate(models, LAB, make_problems(n), [], cache, **options)


def test_models_with_a_chat_template_are_not_stopped_by_a_blank_line(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(engine, "stream", lambda *arguments, **options: calls.append(arguments[4]) or [])
    problem, exemplar = Problem("p0", "sw", "?", None, 18), Problem("exemplar-0", "sw", "?", "Jibu ni 11.", 11)
    for has_chat_template, exemplars, style, stops in (
        (False, [exemplar], "native_cot", ("\n\n", "Swali:")), (True, [exemplar], "native_cot", ("Swali:",)),
        (False, [], "direct", ("Swali:",)), (True, [], "direct", ("Swali:",)), (True, [], "chat", ()),
    ):  # fmt: skip
        tokenizer = word_tokenizer()
        tokenizer.chat_template = "{{ messages[0].content }}"
        load = lambda tokenizer=tokenizer: (make_model(0), tokenizer)  # noqa: E731
        model = ScoredModel("a", "weights-a", load, has_chat_template=has_chat_template)
        with pytest.raises(KeyError):  # nothing is answered here
            evaluate([model], LOCAL, [problem], exemplars, tmp_path / "a.jsonl", style=style, max_new_tokens=5)
        assert calls.pop() == stops


def test_rows_say_what_may_end_an_answer(tmp_path):
    answers = evaluate([scored_model("a", 0)], Echo(), Echo().problems("en"), [], tmp_path / "a.jsonl",
                       style="plain", max_new_tokens=4)  # fmt: skip
    assert set(answers.stops) == {"."} and list(summarize(answers).stops) == ["."]
    assert "stops" not in summarize(evaluate_lab(tmp_path / "a.jsonl", [scored_model("a", 0)]))


def test_unfinished_thinking_counts_as_truncated(tmp_path):
    frame = evaluate_lab(tmp_path / "answers.jsonl", [scored_model("a", 0)])
    frame.loc[:2, "rule"], frame["stop"] = "truncated", "eos"
    assert list(summarize(frame).truncated) == [3]


def test_a_second_run_computes_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = evaluate_lab(path, [scored_model("a", 0)])
    assert len(first) == 6 and list(first.columns) == scoring.COLUMNS
    pd.testing.assert_frame_equal(evaluate_lab(path, [finished_model("a", "weights-a")]), first)
    renamed = evaluate_lab(path, [finished_model("b", "weights-a")])
    pd.testing.assert_frame_equal(renamed.assign(condition="a"), first)
    with pytest.raises(UserError, match="problems is empty, expected one or more"):
        evaluate_lab(path, [finished_model("a", "weights-a")], n=0)
    longer = evaluate_lab(AnswerCache(path), [scored_model("a", 0)], n=8)
    assert len(longer) == 8 and len(path.read_text().splitlines()) == 8


def test_models_never_share_answers(tmp_path):
    together = evaluate_lab(tmp_path / "answers.jsonl", [scored_model("a", 0), scored_model("b", 1)])
    alone = evaluate_lab(tmp_path / "other.jsonl", [scored_model("b", 1)])
    pd.testing.assert_frame_equal(together[together.condition == "b"].reset_index(drop=True), alone)
    assert list(together.text[:6]) != list(together.text[6:])


@pytest.mark.parametrize(
    ("task", "style", "key"),  # as version 0.1.0 made them: answers that users have kept must stay valid
    [
        (LAB, "lab", "83f044ad9db8f16ab0021b3b6048822e7ee2f0d3ed37e3fc208dc8695d45edc7"),  # since its world is fair
        (LOCAL, "native_cot", "359746f2c9c38b3efd77f7fdd57c77eea73a1842c1aa817d398dd47c1b5cdf59"),
        (LOCAL, "chat", "e3e53f8f46a6ffbc71eaef3f1fbee40afd3d5b5ad15ab4c8436dea0181ce9c72"),
    ],
)
def test_the_key_of_a_kept_answer_stays(tmp_path, task, style, key):
    problem, exemplars = Problem("p0", "sw", "Bata wa Janet wanataga mayai 16 kila siku.", None, 18), []
    if style == "lab":
        problem = Problem("p0", "sw", "#### Asha ####", "one two", 0)
    if style == "native_cot":
        worked = "Roger alianza na mipira 5. Jibu ni 11."
        exemplars = [Problem("exemplar-0", "sw", "Roger ana mipira 5.", worked, 11)]
    record = {"text": "#### 18", "stop": "eos", "n_tokens": 3, "answer_language": None}
    record |= {"answer_nll": 1.0, "answer_tokens": 1, "answer_bytes": 3}
    cache = AnswerCache(tmp_path / "answers.jsonl")
    cache.rows[key] = {"key": key, "id": "p0", **record}
    settings = {"style": style, "max_new_tokens": 5 if style == "lab" else 400}
    frame = evaluate([finished_model("a", "weights-a")], task, [problem], exemplars, cache, **settings)
    assert list(frame.value) == ["18"] and list(frame.answer_nll) == [1.0]


def test_rows_say_what_the_answer_says():
    record = {"text": "5 + 3 = 8 . #### 8", "stop": "eos", "n_tokens": 9, "answer_nll": 1.0, "answer_tokens": 3}
    record |= {"answer_bytes": 4, "answer_language": "en"}
    eight, nine = (Problem("p", "sw", "?", None, number) for number in (8, 9))
    right, wrong = (scoring.score_answer("a", LOCAL, problem, record, "native_cot") for problem in (eight, nine))
    assert right["correct"] and not wrong["correct"] and right["value"] == "8" and right["rule"] == "mark"
    assert right["lm_eval_flexible"] and not right["lm_eval_strict"] and not wrong["lm_eval_flexible"]
    assert scoring.score_answer("a", LAB, nine, record | {"text": ""}, "lab")["value"] is None
    assert right["wrong_language"]
    assert not scoring.score_answer("a", LOCAL, eight, record, "en_cot")["wrong_language"]
    assert scoring.score_answer("a", LAB, eight, record, "lab")["wrong_language"]  # its solutions are Swahili too
    unknown = record | {"answer_language": None}
    assert not scoring.score_answer("a", LOCAL, eight, unknown, "native_cot")["wrong_language"]


def test_summaries_count_the_rows(tmp_path):
    frame = evaluate_lab(tmp_path / "answers.jsonl", [scored_model("a", 0), scored_model("b", 1)])
    frame["wrong_language"] = False
    frame.loc[:2, "stop"], frame.loc[3, "stop"], frame.loc[4, "wrong_language"] = "eos", "stop string", True
    frame["value"] = [None, "1", "2", "3", "4", "5"] * 2
    table = summarize(frame).set_index("condition")
    assert list(table.n) == [6, 6] and (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()
    first = table.loc["a"]
    assert (first.truncated, first.eos, first.stop_string, first.no_answer, first.wrong_language) == (2, 3, 1, 1, 1)
    assert first.nll_token == pytest.approx(frame.answer_nll[:6].sum() / frame.answer_tokens[:6].sum())
    assert first.nll_byte == pytest.approx(frame.answer_nll[:6].sum() / frame.answer_bytes[:6].sum())


def test_the_answer_loss_is_that_of_nll(tmp_path):
    frame = evaluate_lab(tmp_path / "answers.jsonl", [scored_model("a", 0)])
    prompts = [LAB.prompt(problem, []) for problem in make_problems()]
    references = [LAB.reference_text(problem) for problem in make_problems()]
    losses = engine.nll(make_model(0), word_tokenizer(), prompts, references)
    assert list(frame.answer_nll) == pytest.approx([loss.nats for loss in losses], rel=1e-4)
    assert list(frame.answer_bytes) == [len(" one two")] * 6


def test_a_chat_goes_through_the_template(tmp_path, monkeypatch):
    tokenizer, calls = word_tokenizer(), []

    def stream(model, tokenizer, prompts, *arguments, **options):
        calls.append((prompts, options))
        return []

    monkeypatch.setattr(engine, "stream", stream)
    model = ScoredModel("a", "weights-a", lambda: (make_model(0), tokenizer))
    chat = partial(evaluate, [model], LOCAL, make_problems(2), [], tmp_path / "a.jsonl", style="chat", max_new_tokens=5)
    with pytest.raises(UserError, match="has no chat template, which style chat needs"):
        chat()
    tokenizer.chat_template = "{{ raise_exception('no roles') }}"
    with pytest.raises(UserError, match="the chat template fails .no roles."):
        chat()
    clock = "{{ date_string }} {{ strftime_now('%d %b %Y') }}"
    tokenizer.chat_template = clock + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    with pytest.raises(KeyError):  # nothing is answered here
        chat()
    prompts, options = calls.pop()
    assert prompts == [
        f"26 Jul 2024 26 Jul 2024<user>{LOCAL.prompt(problem, [], 'chat')}<assistant>" for problem in make_problems(2)
    ]
    assert options["templated"]


def test_progress_shows_speed_and_accuracy(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = scoring.AnswerProgress("a", LAB, make_problems(3), {0, 2})
    for i, text in ((0, "0"), (1, "1"), (2, "9"), (2, "9")):
        bar.count(i, engine.Generation(text, 4, "eos", None))
    assert (bar.n, bar.n_correct, bar.n_tokens) == (2, 1, 8) and bar.postfix.endswith("tok/s, 50% right")
    bar.close()


class Echo(Task):
    """A new benchmark, all of it: to repeat a number."""

    name, languages, styles = "Echo", ("en",), ("plain",)

    def problems(self, language, split="test", limit=None):
        return [Problem(f"echo-{i}", language, f"{word} is", None, i) for i, word in enumerate(["zero", "one"])][:limit]

    def exemplars(self, language, n, style="plain"):
        return self.problems(language)[:n]

    def prompt(self, problem, exemplars, style="plain"):
        return " . ".join([*(f"{exemplar.question} {exemplar.number}" for exemplar in exemplars), problem.question])

    def stops(self, language, style="plain", has_exemplars=True):
        return (".",)

    def reference_text(self, problem, style="plain"):
        return ("zero", "one")[problem.number]

    def reply_language(self, language, style="plain"):
        return language


def test_a_new_benchmark_is_one_class(tmp_path):
    task = Echo()
    problems, exemplars = task.problems("en"), task.exemplars("en", 1)
    answers = evaluate([scored_model("a", 0)], task, problems, exemplars, tmp_path / "a.jsonl",
                       style="plain", max_new_tokens=4)  # fmt: skip
    assert list(answers.id) == ["echo-0", "echo-1"] and list(answers.gold) == [0, 1]
    assert list(answers.answer_bytes) == [4, 3] and (answers.answer_nll > 0).all()
    assert not answers.text.str.contains(".", regex=False).any()
    assert set(task.worked_solutions(problems).values()) == {None} and task.training_rows("math", 5, 0) is None
    with pytest.raises(UserError, match="language 'sw' is not in Echo, expected one of en"):
        task.check("sw")
    with pytest.raises(UserError, match="style is 'chat', expected one that Echo has: plain"):
        task.check("en", "chat")


def test_the_faces_import_no_torch():
    modules = (
        "evaluation evaluation.scoring evaluation.answers tasks tasks.base tasks.mgsm tasks.msvamp tasks.extraction"
    )
    imports = "; ".join(f"import layerswap.{module}" for module in modules.split())
    faces = "from layerswap.evaluation import AnswerCache, evaluate; from layerswap.tasks import *"
    code = f"{imports}; {faces}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
