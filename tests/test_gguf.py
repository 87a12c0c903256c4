"""GGUF files converted once."""

import json
import math

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, quants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from layerswap.checkpoints import gguf, loading
from layerswap.errors import UserError
from layerswap.files import file_digest


def write_gguf(path, architecture="llama", without=None, extra=None, write_fields=lambda writer: None):
    """A Llama of two layers in GGUF, matrices quantised to Q4_1; returns some of its values by their Llama names.

    without: a tensor that it lacks. extra: further tensors by name. write_fields: adds fields to the writer.
    """
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
    write_fields(writer)
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
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
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


# --- all of a file, or none -----------------------------------------------------------------------------------------


def rope_logits(folder, **rope):
    """Logits of a model whose config says how its rope is scaled."""
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"} | rope
    return AutoModelForCausalLM.from_pretrained(folder, config=config)(torch.arange(64)[None] % 8).logits


def llama3_factors(dimension, factor, low, high, context):
    """What llama.cpp's converter writes for the rope scaling of Llama 3.1."""
    factors = []
    for i in range(0, dimension, 2):
        wavelength = 2 * math.pi * 10000.0 ** (i / dimension)
        smooth = (context / wavelength - low) / (high - low)
        factors.append(1 / ((1 - smooth) / factor + smooth) if low < context / wavelength < high else None)
        factors[-1] = factors[-1] or (1.0 if context / wavelength >= high else factor)
    return np.array(factors, dtype=np.float32)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Files are below tmp_path, and what is made of them is written there."""
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(gguf, "BUILD", tmp_path / "build")
    return tmp_path


def test_a_conversion_without_network_is_the_same_model(project, monkeypatch):
    path = project / "tiny.gguf"
    write_gguf(path)
    online = gguf.load_gguf(path)
    monkeypatch.setattr(gguf, "BUILD", project / "offline")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = gguf.load_gguf(path)
    names = sorted(file.name for file in online.iterdir())
    assert names == sorted(file.name for file in offline.iterdir()) and "tokenizer_config.json" in names
    assert [name for name in names if (online / name).read_bytes() != (offline / name).read_bytes()] == []


@pytest.mark.parametrize(("factor", "context"), [(8.0, 32), (32.0, 128), (4.0, 8192)])
def test_the_scaled_rope_of_llama_31_is_kept(project, factor, context):
    write_gguf(project / "plain.gguf")
    write_gguf(project / "it.gguf", extra={"rope_freqs.weight": llama3_factors(16, factor, 1, 4, context)})
    scaled = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    expected = rope_logits(loading.resolve_model("plain.gguf"), **scaled, original_max_position_embeddings=context)
    ours = AutoModelForCausalLM.from_pretrained(loading.resolve_model("it.gguf"))(torch.arange(64)[None] % 8).logits
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_linear_rope_is_kept(project):
    def write_fields(writer):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    write_gguf(project / "it.gguf", write_fields=write_fields)
    out = loading.resolve_model("it.gguf")
    ours = AutoModelForCausalLM.from_pretrained(out)(torch.arange(64)[None] % 8).logits
    assert torch.equal(ours, rope_logits(out, rope_type="linear", factor=4.0))
    assert not torch.allclose(ours, rope_logits(out))


LOST = {
    "other factors": ({"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}, None, "rope_freqs.weight is"),
    "factors of another length": ({"rope_freqs.weight": np.ones(3, np.float32) * 2}, None, "tensor rope_freqs.weight"),
    "long factors": ({"rope_factors_long.weight": np.ones(8, np.float32)}, None, "tensor rope_factors_long.w"),
    "a bias": ({"blk.1.attn_q.bias": np.ones(64, np.float32)}, None, "does not know tensor blk.1.attn_q.bias"),
    "a layer of prediction": ({"blk.2.nextn.eh_proj.weight": np.ones((64, 64), np.float32)}, None, "blk.2.nextn"),
    "yarn": ({}, lambda w: w.add_rope_scaling_type(RopeScalingType.YARN), "llama.rope.scaling.type is 'yarn', which"),
    "a factor alone": ({}, lambda w: w.add_rope_scaling_factor(4.0), "llama.rope.scaling.factor is 4.0, which"),
    "half of a head turned": ({}, lambda w: w.add_rope_dimension_count(8), "cannot load it|attention.key_length"),
    "soft caps": ({}, lambda w: w.add_final_logit_softcapping(30.0), "final_logit_softcapping is 30.0, .* has None"),
    "a window": ({}, lambda w: w.add_sliding_window(16), "llama.attention.sliding_window is 16, which"),
    "a field of tomorrow": ({}, lambda w: w.add_float32("llama.novelty", 0.5), "llama.novelty is 0.5, which"),
    "experts": ({}, lambda w: w.add_expert_count(8), "llama.expert_count is 8, which"),
    "a part": (
        {}, lambda w: (w.add_uint16("split.no", 1), w.add_uint16("split.count", 3)), "is part 2 of 3, expected one file"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("extra", "write_fields", "message"), LOST.values(), ids=LOST)
def test_what_would_be_lost_is_named(project, extra, write_fields, message):
    write_gguf(project / "it.gguf", extra=extra, write_fields=write_fields or (lambda writer: None))
    with pytest.raises(UserError, match=message) as error:
        loading.resolve_model("it.gguf")
    assert "\n" not in str(error.value) and not list(project.glob("build/models/it*"))


def test_fields_that_say_nothing_new_are_no_loss(project):
    def write_fields(writer):
        writer.add_key_length(16)
        writer.add_value_length(16)
        writer.add_rope_dimension_count(16)
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        writer.add_expert_count(0)
        writer.add_uint16("split.count", 1)

    write_gguf(project / "it.gguf", write_fields=write_fields)
    assert loading.resolve_model("it.gguf").is_dir()


def test_a_pointer_of_lfs_is_no_gguf_file(project):
    (project / "it.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="it.gguf: is a pointer of Git LFS"):
        loading.resolve_model("it.gguf")
