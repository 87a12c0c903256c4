"""The cache of answers: nothing is lost or doubled, whatever happens to the processes that write to it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
from test_scoring import evaluate_lab, finished_model, scored_model

from layerswap.errors import UserError
from layerswap.evaluation import AnswerCache, scoring
from layerswap.evaluation.answers import RECORD
from layerswap.files import ROOT


@pytest.mark.parametrize("damage", [b'{"key": "x", "te', b"\xff\n", b"[1]\n"])
def test_a_torn_line_is_skipped_and_closed(tmp_path, damage):
    path = tmp_path / "answers.jsonl"
    first = evaluate_lab(path, [scored_model("a", 0)], n=3)
    with open(path, "ab") as file:
        file.write(damage)
    longer = evaluate_lab(path, [scored_model("a", 0)])
    pd.testing.assert_frame_equal(longer[:3], first)
    pd.testing.assert_frame_equal(evaluate_lab(path, [finished_model("a", "weights-a")]), longer)


def kept_row(key, n):
    return {"key": key, **dict.fromkeys(RECORD), "n_tokens": n}


def test_two_processes_share_a_file(tmp_path):
    first, second = (AnswerCache(tmp_path / "answers.jsonl") for _ in range(2))
    for cache, rows in ((first, "a1 b1 b2"), (second, "b3 c3")):
        for key, n in rows.split():
            cache.add(kept_row(key, int(n)))
        assert not cache.rows  # within a second they wait for each other
    first.flush(), second.flush()
    first.read()
    assert first.rows == second.rows == {key: kept_row(key, n) for key, n in (("a", 1), ("b", 1), ("c", 3))}
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    with open(first.path, "ab") as file:  # torn, but complete as JSON
        file.write(json.dumps(kept_row("d", 4)).encode())
    second.add(kept_row("d", 5))
    second.flush()
    assert second.rows["d"]["n_tokens"] == 4 and len(first.path.read_text().splitlines()) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no memory")])
def test_answers_of_the_last_second_are_kept(tmp_path, monkeypatch, error):
    cache, finished = AnswerCache(tmp_path / "answers.jsonl"), []
    cache.last_flush = float("inf")  # the second never ends

    def count(bar, i, answer):
        if len(finished) == 2:
            raise error
        finished.append(f"p{i}")

    monkeypatch.setattr(scoring.AnswerProgress, "count", count)
    with pytest.raises(type(error)):
        evaluate_lab(cache, [scored_model("a", 0)])
    assert [json.loads(line)["id"] for line in cache.path.read_text().splitlines()] == finished
    assert len(finished) == 2


def test_a_full_disk_is_named_and_loses_nothing_that_was_written(tmp_path, monkeypatch):
    """Linux's /dev/full takes nothing; what was not written is, once there is room."""
    path = tmp_path / "answers.jsonl"
    answers = AnswerCache(path)
    answers.add(kept_row("a", 1))
    answers.flush()
    answers.add(kept_row("b", 2))
    answers.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"^/dev/full: answers cannot be written \(No space left on device\)"):
        answers.flush()
    answers.path = path
    answers.flush()
    assert list(AnswerCache(path).rows) == ["a", "b"]


def test_rows_of_something_else_than_their_key_are_dropped(tmp_path):
    cache = AnswerCache(tmp_path / "answers.jsonl")
    cache.add(kept_row("a", 1))
    cache.flush()

    def refuse():
        raise UserError("model.safetensors: was changed")

    cache.check_source = refuse
    cache.flush()  # nothing waits
    cache.add(kept_row("b", 2))
    with pytest.raises(UserError, match="was changed"):
        cache.flush()
    cache.flush()
    assert not cache.pending and len(cache.path.read_text().splitlines()) == 1


@pytest.mark.parametrize("field", ["key", "answer_nll"])
def test_a_file_of_something_else_is_refused(tmp_path, field):
    row = {name: value for name, value in kept_row("a", 1).items() if name != field}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl: a line has no field '{field}', expected a file of answers"):
        AnswerCache(tmp_path / "rows.jsonl")


def test_a_file_that_cannot_be_written_is_refused_before_the_model_loads(tmp_path):
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(UserError, match="answers.jsonl: answers cannot be written there"):
        evaluate_lab(tmp_path / "answers.jsonl", [finished_model("a", "weights-a")])


def test_kill_loses_and_doubles_nothing(tmp_path):
    """30 kills, at any moment of an evaluation of many batches by two processes on one file."""
    path, settings = tmp_path / "answers.jsonl", {"n": 150, "batch_tokens": 40}
    expected = evaluate_lab(tmp_path / "expected.jsonl", [scored_model("a", 0), scored_model("b", 1)], **settings)
    script = textwrap.dedent(f"""
        import os, pathlib, random, signal, sys, time
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import torch
        from test_scoring import evaluate_lab, scored_model
        from layerswap.evaluation import AnswerCache
        from layerswap.tasks import extraction
        torch.set_num_threads(1)
        extraction.language_identifier()
        def count_lines():
            return path.read_bytes().count(b"\\n") if path.exists() else 0
        path, rng, flush = pathlib.Path({str(path)!r}), random.Random(0), AnswerCache.flush
        def slow_flush(*arguments):
            time.sleep(0.05)
            flush(*arguments)
        AnswerCache.flush = slow_flush
        for _ in range(15):
            processes = []
            for _ in range(2):
                processes.append(os.fork())
                if processes[-1] == 0:
                    evaluate_lab(path, [scored_model("a", 0), scored_model("b", 1)], **{settings!r})
                    os._exit(0)
            for process in processes:
                n_expected = count_lines() + rng.randint(0, 8)
                while count_lines() < n_expected and os.waitpid(process, os.WNOHANG) == (0, 0):
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.05))
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            print(count_lines(), flush=True)
    """)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(set(result.stdout.split())) > 5  # each did some work, none all of it
    frame = evaluate_lab(path, [scored_model("a", 0), scored_model("b", 1)], **settings)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines() if is_json(line)]
    assert len(keys) == len(set(keys)) == 300


def is_json(line):
    try:
        return bool(json.loads(line))
    except ValueError:
        return False
