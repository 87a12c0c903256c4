"""The store of answers: nothing is computed twice, lost, doubled, or handed to another model."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap import evaluate
from layerswap.mgsm import Problem
from layerswap.paths import ROOT


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


def run(store, conditions, n=6):
    return evaluate.evaluate(conditions, word_tokenizer(), problems(n), [], store, style="lab", max_new_tokens=5)


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


def test_kill_loses_and_doubles_nothing(tmp_path):
    store = tmp_path / "answers.jsonl"
    whole = run(tmp_path / "whole.jsonl", [("a", "weights-a", lambda: model(0))], n=40)
    script = textwrap.dedent(f"""
        import pathlib, sys, time
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_evaluate as t
        t.evaluate.CHUNK = 2
        real = t.evaluate.append
        def slow(*arguments):
            real(*arguments)
            time.sleep(0.05)
        t.evaluate.append = slow
        t.run(pathlib.Path({str(store)!r}), [("a", "weights-a", lambda: t.model(0))], n=40)
    """)
    for kill in (3, 7, 12):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        while process.poll() is None and (not store.exists() or store.read_bytes().count(b"\n") < kill):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    pd.testing.assert_frame_equal(run(store, [("a", "weights-a", lambda: model(0))], n=40), whole)
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 40


def test_rows_say_what_the_answer_says():
    row = {"text": "5 + 3 = 8 . #### 8", "stop": "eos", "n_tokens": 9, "answer_nll": 1.0, "answer_tokens": 3}
    right = evaluate.score("a", Problem("p", "sw", "?", None, 8), row)
    wrong = evaluate.score("a", Problem("p", "sw", "?", None, 9), row)
    assert right["correct"] and not wrong["correct"] and right["value"] == "8" and right["rule"] == "mark"
    assert evaluate.score("a", Problem("p", "sw", "?", None, 9), row | {"text": ""})["value"] is None
