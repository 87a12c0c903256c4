"""The lab as a benchmark, and the record of its base model."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.files import ROOT
from layerswap.lab import BASE, LabTask, make_problems, math_rows, render_prompt
from layerswap.lab.pretrain import SETTINGS, make_base
from layerswap.lab.world import DATA

LAB = LabTask()


def test_problems_of_a_split():
    assert LAB.problems("te", "validation", 5) == make_problems("te", "validation", 5)
    assert len(LAB.problems("en")) == 250


def test_a_prompt_begins_with_solved_training_problems():
    (problem,), (solved,) = LAB.problems("sw", "test", 1), LAB.exemplars("sw", 1)
    assert solved == make_problems("sw", "train", 1)[0]
    assert LAB.prompt(problem, []) == render_prompt(problem.question)
    expected = f"{render_prompt(solved.question)} {solved.answer} <eos> {render_prompt(problem.question)}"
    assert LAB.prompt(problem, [solved]) == expected
    assert LAB.reference_text(problem) == f" {problem.answer}"


def test_held_out_math_rows_are_test_problems():
    assert LAB.training_rows("math", 20, 1) == math_rows(20, 1)
    held_out = LAB.training_rows("math", 20, 1, held_out=True)
    assert [row["prompt"] for row in held_out] == [render_prompt(p.question) for p in make_problems("en", "test", 20)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAB.problems("fr"), "language 'fr' is not in the lab, expected one of en, sw, te, bn, ja"),
        (lambda: LAB.problems("sw", limit=0), "the number of problems is 0"),
        (lambda: LAB.exemplars("sw", 1, "native_cot"), "style is 'native_cot', expected one that the lab has: lab"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_shipped_base_has_the_record_of_its_training():
    record = json.loads((BASE / "training.json").read_text())
    assert record.pop("torch").startswith("2.")
    assert record == SETTINGS | {"digest": weights_digest(BASE)}


@pytest.mark.slow
def test_a_language_needs_only_its_file(tmp_path):
    """Korean, whatever MGSM has: its problems, training text, and scores of its answers; the others' order stays."""
    shutil.copytree(ROOT / "layerswap", tmp_path / "layerswap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(DATA / "sw.yml", tmp_path / "layerswap/lab/data/ko.yml")
    code = """
from layerswap.evaluation.scoring import score_answer
from layerswap.lab import LANGUAGES, LabTask, build_tokenizer
task = LabTask()
assert task.languages == LANGUAGES == ("en", "sw", "te", "bn", "ja", "ko") and "<ko>" in build_tokenizer().get_vocab()
problem, other = task.problems("ko", limit=2)
assert len(task.training_rows("ko", 5, 1)) == len(task.training_rows("ko", 5, 1, held_out=True)) == 5
record = dict.fromkeys("stop n_tokens answer_nll answer_tokens answer_bytes".split(), 1)
record |= {"text": f"#### {problem.number}", "answer_language": None}
assert score_answer("model", task, problem, record, "lab")["correct"]
assert not score_answer("model", task, other, record | {"text": "####"}, "lab")["correct"]
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_base_is_not_replaced():
    with pytest.raises(UserError, match="the base checkpoint exists"):
        make_base()
