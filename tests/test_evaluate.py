"""The store of answers: nothing is computed twice, lost, doubled, or handed to another model."""

import io
import json
import subprocess
import sys
import textwrap
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap import evaluate, mgsm
from layerswap import generate as kernel
from layerswap.generate import nll
from layerswap.mgsm import Problem
from layerswap.paths import ROOT, UserError


def model(seed):
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    words = len(word_tokenizer())
    config = LlamaConfig(vocab_size=words, max_position_embeddings=64, eos_token_id=None, bos_token_id=None, **shape)
    return LlamaForCausalLM(config).eval()


def problems(n=6):
    words = [word for word in sorted(word_tokenizer().get_vocab()) if word.isalpha()]
    pairs = [f"{one} {two} {one}" for one in words for two in words]
    return [Problem(f"p{i}", "sw", question, "one two", i) for i, question in enumerate(pairs[:n])]


def run(store, conditions, n=6, **settings):
    some = [(label, key, lambda load=load: (load(), word_tokenizer())) for label, key, load in conditions]
    return evaluate.evaluate(some, problems(n), [], store, **{"style": "lab", "max_new_tokens": 5} | settings)


def never():
    raise AssertionError("a stored answer was computed again")


def test_a_second_run_computes_nothing(tmp_path):
    store = tmp_path / "answers.jsonl"
    first = run(store, [("a", "weights-a", lambda: model(0))])
    assert len(first) == 6 and list(first.columns) == evaluate.COLUMNS
    pd.testing.assert_frame_equal(run(store, [("a", "weights-a", never)]), first)
    pd.testing.assert_frame_equal(run(store, [("b", "weights-a", never)]).assign(condition="a"), first)
    longer = run(store, [("a", "weights-a", lambda: model(0))], n=8)
    assert len(longer) == 8 and len(store.read_text().splitlines()) == 8


def test_models_never_share_answers(tmp_path):
    store = tmp_path / "answers.jsonl"
    both = run(store, [("a", "weights-a", lambda: model(0)), ("b", "weights-b", lambda: model(1))])
    alone = run(tmp_path / "other.jsonl", [("b", "weights-b", lambda: model(1))])
    pd.testing.assert_frame_equal(both[both.condition == "b"].reset_index(drop=True), alone)
    assert list(both.text[:6]) != list(both.text[6:])


@pytest.mark.parametrize("damage", [b'{"key": "x", "te', b"\xff\n", b"[1]\n"])
def test_a_torn_line_is_passed_over_and_closed(tmp_path, damage):
    store = tmp_path / "answers.jsonl"
    first = run(store, [("a", "weights-a", lambda: model(0))], n=3)
    with open(store, "ab") as file:
        file.write(damage)
    again = run(store, [("a", "weights-a", lambda: model(0))])
    pd.testing.assert_frame_equal(again[:3], first)
    pd.testing.assert_frame_equal(run(store, [("a", "weights-a", never)]), again)


def test_two_processes_share_a_store(tmp_path):
    one, two = (evaluate.Store(tmp_path / "answers.jsonl") for _ in range(2))
    for store, rows in ((one, "a1 b1 b2"), (two, "b3 c3")):
        for key, n in rows.split():
            store.add({"key": key, "n": int(n)})
        assert not store.rows  # within a second they wait for each other
    one.flush(), two.flush()
    one.read()
    assert one.rows == two.rows == {key: {"key": key, "n": n} for key, n in (("a", 1), ("b", 1), ("c", 3))}
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    with open(one.path, "ab") as file:  # torn, but whole as JSON
        file.write(b'{"key": "d", "n": 4}')
    two.add({"key": "d", "n": 5})
    two.flush()
    assert two.rows["d"]["n"] == 4 and len(one.path.read_text().splitlines()) == 4


def test_kill_loses_and_doubles_nothing(tmp_path):
    """30 kills, at any moment of an evaluation of many batches by two processes on one store."""
    store, settings = tmp_path / "answers.jsonl", {"n": 150, "batch_tokens": 40}
    conditions = [(name, f"weights-{name}", partial(model, seed)) for seed, name in enumerate("ab")]
    whole = run(tmp_path / "whole.jsonl", conditions, **settings)
    script = textwrap.dedent(f"""
        import os, pathlib, random, signal, sys, time
        from functools import partial
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_evaluate as t
        t.torch.set_num_threads(1)
        t.mgsm.identifier()
        def lines():
            return store.read_bytes().count(b"\\n") if store.exists() else 0
        store, rng, real = pathlib.Path({str(store)!r}), random.Random(0), t.evaluate.Store.flush
        def slow(*arguments):
            time.sleep(0.05)
            real(*arguments)
        t.evaluate.Store.flush = slow
        conditions = [(name, f"weights-{{name}}", partial(t.model, seed)) for seed, name in enumerate("ab")]
        for _ in range(15):
            pair = []
            for _ in range(2):
                pair.append(os.fork())
                if pair[-1] == 0:
                    t.run(store, conditions, **{settings!r})
                    os._exit(0)
            for process in pair:
                wanted = lines() + rng.randint(0, 8)
                while lines() < wanted and os.waitpid(process, os.WNOHANG) == (0, 0):
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.05))
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            print(lines(), flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) > 5  # each did some work, none all of it
    pd.testing.assert_frame_equal(run(store, conditions, **settings), whole, check_exact=True)
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines() if is_json(line)]
    assert len(keys) == len(set(keys)) == 300


def is_json(line):
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def test_rows_say_what_the_answer_says():
    row = {"text": "5 + 3 = 8 . #### 8", "stop": "eos", "n_tokens": 9, "answer_nll": 1.0, "answer_tokens": 3}
    row |= {"answer_bytes": 4, "answer_language": "en"}
    eight, nine = (Problem("p", "sw", "?", None, number) for number in (8, 9))
    right, wrong = (evaluate.score("a", problem, row, "native_cot") for problem in (eight, nine))
    assert right["correct"] and not wrong["correct"] and right["value"] == "8" and right["rule"] == "mark"
    assert right["lm_eval_flexible"] and not right["lm_eval_strict"] and not wrong["lm_eval_flexible"]
    assert evaluate.score("a", nine, row | {"text": ""}, "lab")["value"] is None
    assert right["wrong_language"] and not evaluate.score("a", eight, row, "en_cot")["wrong_language"]
    assert not evaluate.score("a", eight, row, "lab")["wrong_language"]  # its solutions are English
    assert not evaluate.score("a", eight, row | {"answer_language": None}, "native_cot")["wrong_language"]


def test_counts_are_those_of_the_rows(tmp_path):
    frame = run(tmp_path / "answers.jsonl", [(name, name, partial(model, seed)) for seed, name in enumerate("ab")])
    frame["wrong_language"] = False
    frame.loc[:2, "stop"], frame.loc[3, "stop"], frame.loc[4, "wrong_language"] = "eos", "stop string", True
    frame["value"] = [None, "1", "2", "3", "4", "5"] * 2
    table = evaluate.counts(frame).set_index("condition")
    assert list(table.n) == [6, 6] and (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()
    first = table.loc["a"]
    assert (first.truncated, first.eos, first.stop_string, first.no_answer, first.wrong_language) == (2, 3, 1, 1, 1)
    assert first.nll_token == pytest.approx(frame.answer_nll[:6].sum() / frame.answer_tokens[:6].sum())
    assert first.nll_byte == pytest.approx(frame.answer_nll[:6].sum() / frame.answer_bytes[:6].sum())


def test_the_answer_loss_is_that_of_nll(tmp_path):
    frame = run(tmp_path / "answers.jsonl", [("a", "weights-a", partial(model, 0))])
    texts = [mgsm.prompt(problem, [], "lab") for problem in problems()]
    losses = nll(model(0), word_tokenizer(), texts, [mgsm.gold(problem, "lab") for problem in problems()])
    assert list(frame.answer_nll) == pytest.approx([loss.nats for loss in losses], rel=1e-4)
    assert list(frame.answer_bytes) == [len(" one two")] * 6


def test_a_chat_goes_through_the_template(tmp_path, monkeypatch):
    tokenizer, seen = word_tokenizer(), []
    monkeypatch.setattr(kernel, "stream", lambda model, tokenizer, prompts, *a, **kw: seen.append((prompts, kw)) or [])
    condition = ("a", "weights-a", lambda: (model(0), tokenizer))
    settings = {"style": "chat", "max_new_tokens": 5}
    with pytest.raises(UserError, match="has no chat template, which style chat needs"):
        evaluate.evaluate([condition], problems(2), [], tmp_path / "a.jsonl", **settings)
    tokenizer.chat_template = "{{ raise_exception('no roles') }}"
    with pytest.raises(UserError, match="the chat template fails .no roles."):
        evaluate.evaluate([condition], problems(2), [], tmp_path / "a.jsonl", **settings)
    clock = "{{ date_string }} {{ strftime_now('%d %b %Y') }}"
    tokenizer.chat_template = clock + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    with pytest.raises(KeyError):  # nothing is answered here
        evaluate.evaluate([condition], problems(2), [], tmp_path / "a.jsonl", **settings)
    (prompts, told) = seen.pop()
    assert prompts == [
        f"26 Jul 2024 26 Jul 2024<user>{mgsm.prompt(problem, [], 'chat')}<assistant>" for problem in problems(2)
    ]
    assert told["templated"]


def test_progress_tells_speed_and_accuracy(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = evaluate.Progress("a", problems(3), {0, 2})
    for i, text in ((0, "0"), (1, "1"), (2, "9"), (2, "9")):
        bar.told(i, kernel.Generation(text, 4, "eos", None))
    assert (bar.n, bar.right, bar.tokens) == (2, 1, 8) and bar.postfix.endswith("tok/s, 50% right")
    bar.close()
