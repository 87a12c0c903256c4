"""What a profile has to fine-tune, and the index of what was trained."""

import json
import sys

import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file

from layerswap.checkpoints.compatibility import check_compatible
from layerswap.errors import UserError
from layerswap.experts import jobs as jobs_module
from layerswap.experts.jobs import held_out_rows, plan_jobs, train_experts
from layerswap.experts.training_data import training_rows
from layerswap.lab.task import LabTask
from layerswap.tasks.mgsm import MGSM

LAB = LabTask()
FINE_TUNING = {
    "math_data": [], "language_data": [], "math_samples": 0, "language_samples": 7, "math_steps": 2,
    "math_learning_rate": 1e-3, "language_steps": 3, "language_learning_rate": 2e-3, "batch_size": 4,
    "max_length": 100, "micro_batch": 0, "packing": False, "lora_rank": 0, "lora_alpha": 16.0, "launch": "",
    "dtype": "float32", "frozen_embeddings": False, "softmax": "all",
}  # fmt: skip


def test_jobs_of_experts_and_baselines(tmp_path):
    resolved = {"math": [None, tmp_path], "sw": [None, None]}
    jobs = plan_jobs(LAB, resolved, [5, 7], FINE_TUNING, baselines=["joint", "frozen"], frozen_for_math=[0, 3],
                     frozen_for_language=[1, 2])  # fmt: skip
    expected = ["math-5", "sw-5", "sw-7", "frozen-math-5", "frozen-math-7", "frozen-sw-5", "frozen-sw-7", "joint-sw-5",
                "joint-sw-7"]  # fmt: skip
    assert [job.label for job in jobs] == expected
    math, _, language, frozen_math, _, frozen_language, *_, joint = jobs
    assert math.rows == frozen_math.rows == training_rows([], LAB, "math", 2 * 4, 5)
    assert language.rows == training_rows([], LAB, "sw", 7, 7)
    assert (math.frozen, frozen_math.frozen, frozen_language.frozen, joint.frozen) == ([], [0, 3], [1, 2], [])
    assert joint.rows == training_rows([], LAB, "math", 8, 7) + language.rows
    assert [(job.steps, job.learning_rate) for job in (math, language, joint)] == [(2, 1e-3), (3, 2e-3), (5, 2e-3)]
    kept = plan_jobs(LAB, resolved, [5, 7], FINE_TUNING | {"frozen_embeddings": True}, baselines=["frozen"],
                     frozen_for_math=[0, 3])  # fmt: skip
    assert [job.frozen for job in kept[:4]] == [[-1], [-1], [-1], [-1, 0, 3]]
    assert str(frozen_math) == "frozen  math  seed 5:       8 rows, layers [0, 3] frozen"


def test_nothing_is_planned_for_experts_that_are_there(tmp_path):
    assert plan_jobs(LAB, {"math": [tmp_path], "sw": [tmp_path]}, [1], FINE_TUNING) == []


def test_experts_that_are_given_need_no_text(monkeypatch, tmp_path):
    """With nothing but problems in LAYERSWAP_DATA, and in a language without any training text here."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    mgsm, experts = MGSM(), ["math", "de"]
    assert held_out_rows(mgsm, experts, 6, 1, FINE_TUNING, optional=experts) == {}
    assert plan_jobs(mgsm, {"math": [tmp_path], "de": [tmp_path]}, [1], FINE_TUNING) == []
    for missing in experts:
        with pytest.raises(UserError, match="gsm8k" if missing == "math" else "no training text for language 'de'"):
            held_out_rows(mgsm, experts, 6, 1, FINE_TUNING, optional={*experts} - {missing})


def test_held_out_rows_are_no_training_rows():
    rows = held_out_rows(LAB, ["math", "sw"], 6, 1, FINE_TUNING)
    expected = {name: training_rows([], LAB, name, 6, 1, held_out=True) for name in ("math", "sw")}
    assert rows == expected


def fail_here(*arguments):
    pytest.fail("trained here")


def test_workers_train_the_same_experts(tmp_path, monkeypatch):
    base, weights = write_checkpoint(tmp_path / "base"), []
    jobs = plan_jobs(LAB, {"math": [None], "sw": [None]}, [5], FINE_TUNING)
    for workers in (1, 2):
        monkeypatch.setattr(jobs_module, "BUILD", tmp_path / f"build-{workers}")
        settings = {"profile": "p", "source": "lab", "base": base, "seeds": [5], "fine_tuning": FINE_TUNING}
        if workers == 2:
            monkeypatch.setattr(sys.modules["layerswap.experts.finetune"], "train", fail_here)
        index = train_experts(jobs, {"math": [None], "sw": [None]}, **settings, workers=workers)
        folders = [index.experts["math"][0], index.experts["sw"][0]]
        assert all(folder.is_relative_to(tmp_path / f"build-{workers}") for folder in folders)
        weights.append([(folder / "model.safetensors").read_bytes() for folder in folders])
    assert weights[0] == weights[1]


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2}])
def test_trained_experts_are_indexed(tmp_path, monkeypatch, changed):
    """One math expert exists, in bfloat16: everything becomes float32, and adapters whole models."""
    monkeypatch.setattr(jobs_module, "BUILD", tmp_path / "build")
    monkeypatch.setattr("layerswap.checkpoints.loading.BUILD", tmp_path / "build")
    monkeypatch.setattr("layerswap.checkpoints.adapters.BUILD", tmp_path / "build")
    base, fine_tuning = write_checkpoint(tmp_path / "base"), FINE_TUNING | changed
    finished = write_checkpoint(tmp_path / "finished", 1, dtype=torch.bfloat16)
    resolved = {"math": [None, finished], "sw": [None, None]}
    jobs = plan_jobs(LAB, resolved, [5, 7], fine_tuning, baselines=["joint"])
    index = train_experts(jobs, resolved, profile="p", source="lab", base=base, seeds=[5, 7], fine_tuning=fine_tuning)
    assert (index.source, index.seeds, index.base, index.frozen) == ("lab", [5, 7], base, {})
    assert index.experts["math"][1].name.startswith("finished-float32-") and list(index.joint) == ["sw"]
    folder = tmp_path / "build" / "p" / "experts"
    if not changed:
        assert index.experts["sw"] == [folder / "sw-5", folder / "sw-7"]
    assert {path.name for path in folder.iterdir()} == {"math-5", "sw-5", "sw-7", "joint-sw-5", "joint-sw-7"}
    losses = json.loads((folder / "joint-sw-7" / "training.json").read_text())["losses"]
    assert len(losses) == 5
    for path in (*index.experts["math"], *index.experts["sw"], *index.joint["sw"]):
        check_compatible(base, path)
    expert = load_file(index.experts["sw"][0] / "model.safetensors")
    assert any((tensor != load_file(base / "model.safetensors")[name]).any() for name, tensor in expert.items())
