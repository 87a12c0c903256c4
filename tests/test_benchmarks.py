"""The benchmark of a GPU, on a model of a few thousand weights and the CPU: that it runs, and compares what it says."""

import importlib.util
import subprocess
import sys

import pytest

from layerswap.files import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def test_the_gpus_benchmark_runs_on_a_tiny_model(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--tiny", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.glob("gpu-*.txt")
    text = results.read_text()
    assert "FAILED" not in text
    for expected in (
        "x 4 dtypes x 5 weights, any bits or close: bits equal", "12 of 12 answers of 32 tokens are those of generate",
        "decode step of 8 rows", "shared attention of this model in torch.float32: used", "12 of 12 texts are as ours",
        "LoRA of rank 16", "all weights",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.fast
def test_a_section_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)

    def broken(*arguments):
        yield "a first line"
        raise ValueError("no such kernel")

    def fine(*arguments):
        yield "fine"

    for name in ("exact_lines", "decode_lines", "answer_lines", "training_lines"):
        monkeypatch.setattr(gpu, name, fine)
    monkeypatch.setattr(gpu, "merge_lines", broken)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="failed: broken"):
        gpu.main()
    lines = next(tmp_path.glob("gpu-*.txt")).read_text().splitlines()
    assert "a first line" in lines and "broken FAILED: no such kernel" in lines and lines.count("fine") == 4
