"""Merges in memory: the same bits as merges on disk, and experts that no plan can damage."""

import random

import pytest
import torch
from conftest import DEVICES, WORDS, same_bits, word_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.merging import in_memory
from layerswap.merging.in_memory import ExpertPair
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import Plan, layer_swap, uniform
from layerswap.merging.task_vectors import TaskVectors

PLANS = [
    layer_swap(4, 1, 1, non_layer_weight=0),
    layer_swap(4, 1, 0, 1, 1, weight=0.3, non_layer_weight=1),
    uniform(4, 0.5, "soup"),
    uniform(4, 1, "language expert"),
]
VECTORS = [TaskVectors("added", "task arithmetic", 0.5, 0.5), TaskVectors("ties", "ties", density=0.3)]
PROMPTS = torch.randint(3, len(WORDS), (3, 11), generator=torch.Generator().manual_seed(0))  # [batch, tokens]


def assert_routes_agree(math, language, out, dtype, base=None, static=False, device="cpu"):
    """Logits and parameters of every plan in memory equal those of its merged folder."""
    pair = ExpertPair(math, language, base, dtype=dtype, static=static, device=device)
    for i, plan in enumerate(PLANS + VECTORS if base else PLANS):
        merge(math, language, plan, out / str(i), base=base if plan in VECTORS else None)
        from_file = AutoModelForCausalLM.from_pretrained(out / str(i), dtype=dtype).eval().to(device)
        merged = pair.apply(plan)
        expected, parameters = dict(from_file.named_parameters()), dict(merged.named_parameters())
        assert expected.keys() == parameters.keys()
        assert all(same_bits(expected[name], parameters[name]) for name in expected)
        with torch.inference_mode():
            prompts = PROMPTS.to(device)
            assert same_bits(from_file(prompts).logits, merged(prompts).logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("static", [False, True])
def test_task_vectors_in_memory_are_those_on_disk(checkpoint_factory, tmp_path, static, device):
    folders = [checkpoint_factory(name, seed, tied=False) for seed, name in enumerate(("math", "language", "base"))]
    assert_routes_agree(*folders[:2], tmp_path, torch.float32, base=folders[2], static=static, device=device)


def test_static_parameters_never_move(experts):
    static, rng = ExpertPair(*experts, static=True), random.Random(1)
    addresses = {name: p.data_ptr() for name, p in static.apply(PLANS[0]).named_parameters()}
    aliasing = ExpertPair(*experts)
    for i in range(6):
        weights = rng.choices([0, 1, 0.5], k=5)
        plan = Plan(f"plan {i}", tuple(weights[:4]), weights[4])
        parameters, expected = (dict(pair.apply(plan).named_parameters()) for pair in (static, aliasing))
        assert all(same_bits(parameters[name], expected[name]) for name in expected)
        assert {name: p.data_ptr() for name, p in parameters.items()} == addresses


def test_static_copies_only_the_layers_that_change(experts):
    pair = ExpertPair(*experts, static=True)
    model = pair.apply(layer_swap(4, 1, 1, non_layer_weight=0))
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    pair.apply(layer_swap(4, 2, 1, non_layer_weight=0))
    changed = {name for name, parameter in model.named_parameters() if parameter._version != versions[name]}
    assert changed == {name for name in versions if name.startswith("model.layers.1.")}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_and_file_give_the_same_bits(checkpoint_factory, tmp_path, tied, file_dtype, dtype, device):
    math = checkpoint_factory("math", 1, dtype=file_dtype, tied=tied)
    language = checkpoint_factory("language", 2, dtype=file_dtype, tied=tied, shard="20KB")
    assert_routes_agree(math, language, tmp_path, dtype, device=device)


FAMILIES = [MistralConfig, Qwen2Config, Qwen3Config, Gemma2Config, Gemma3TextConfig, Phi3Config, Olmo2Config]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(tmp_path, family):
    config = family(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    for seed, name in enumerate(("math", "language")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        word_tokenizer().save_pretrained(tmp_path / name)
    assert_routes_agree(tmp_path / "math", tmp_path / "language", tmp_path, torch.float32)


def test_special_bits_survive(checkpoint_factory):
    math = checkpoint_factory("math", 1, special=True)
    language = checkpoint_factory("language", 2, special=True)
    model = ExpertPair(math, language).apply(uniform(4, 1, "language"))
    expected = load_file(language / "model.safetensors")
    assert all(same_bits(expected[name], parameter) for name, parameter in model.named_parameters())


def test_ten_plans_leave_the_experts_as_they_are(experts):
    pair, rng = ExpertPair(*experts), random.Random(0)
    for i in range(10):
        weights = rng.choices([0, 1, 0.5, 0.25], k=5)
        with torch.inference_mode():
            pair.apply(Plan(f"plan {i}", tuple(weights[:4]), weights[4]))(PROMPTS)
    for folder, weight in zip(experts, (0, 1), strict=True):
        expected = load_file(folder / "model.safetensors")
        model = pair.apply(uniform(4, weight, "expert"))
        assert all(same_bits(expected[name], parameter) for name, parameter in model.named_parameters())


def test_aliases_and_ties(experts):
    pair = ExpertPair(*experts)
    model = pair.apply(uniform(4, 0, "math"))
    math = dict(model.named_parameters())
    swapped = dict(pair.apply(PLANS[0]).named_parameters())
    for name in math:  # no copy of what comes from the math expert
        assert (swapped[name] is math[name]) == (not name.startswith(("model.layers.0.", "model.layers.3.")))
    for plan in PLANS:
        model = pair.apply(plan)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_mixed_tensors_are_computed_once(experts, monkeypatch):
    calls, mean = [], in_memory.weighted_mean_in_memory
    monkeypatch.setattr(in_memory, "weighted_mean_in_memory", lambda *a: calls.append(a) or mean(*a))
    pair, per_layer = ExpertPair(*experts), 9
    for plan, layers in ((PLANS[0], 0), (PLANS[1], 2), (PLANS[0], 0), (PLANS[1], 0)):
        before = len(calls)
        pair.apply(plan)
        assert len(calls) - before == layers * per_layer


def test_one_folder_in_both_roles_is_that_model(experts):
    pair, math = ExpertPair(experts[0], experts[0]), load_file(experts[0] / "model.safetensors")
    for plan in (PLANS[0], uniform(4, 0.5, "soup")):
        assert all(same_bits(math[name], p) for name, p in pair.apply(plan).named_parameters())
        assert pair.merge_digest(plan) == ExpertPair(*experts).merge_digest(uniform(4, 0, "math"))


def test_digests_name_the_weights_and_nothing_else(experts, checkpoint_factory):
    math, language = experts
    pair, other = ExpertPair(math, language), ExpertPair(math, checkpoint_factory("other", 3))
    digests = [pair.merge_digest(plan) for plan in (*PLANS, uniform(4, 0, "math"))]
    assert len(set(digests)) == len(digests)
    assert pair.merge_digest(uniform(4, 0.5, "another name")) == pair.merge_digest(PLANS[2])
    assert other.merge_digest(uniform(4, 0, "math")) == digests[-1]  # the math expert, whatever the language
    assert ExpertPair(other.folders["language"], language).merge_digest(uniform(4, 1, "language")) == digests[3]
    assert ExpertPair(language, math).merge_digest(uniform(4, 1, "roles reversed")) == digests[-1]
    assert not {other.merge_digest(plan) for plan in PLANS} & set(digests)
    assert not {ExpertPair(math, language, dtype=torch.bfloat16).merge_digest(plan) for plan in PLANS} & set(digests)
    assert ExpertPair(language, math).merge_digest(PLANS[2]) != digests[2]
    assert not {ExpertPair(other.folders["language"], language).merge_digest(plan) for plan in PLANS[:3]} & set(digests)
    assert "model_and_slots" not in vars(pair)  # no model is loaded for a digest


def test_the_same_weights_used_otherwise_have_another_digest(checkpoint_factory):
    pairs = []
    for theta in (1e4, 5e5):
        rope = {"rope_theta": theta, "rope_type": "default"}
        folders = [checkpoint_factory(f"{name}-{theta}", seed, rope_parameters=rope) for seed, name in enumerate("ml")]
        pairs.append(ExpertPair(*folders))
    for a, b in zip(*(pair.folders.values() for pair in pairs), strict=True):
        assert weights_digest(a) == weights_digest(b)
    assert not {pairs[0].merge_digest(plan) for plan in PLANS} & {pairs[1].merge_digest(plan) for plan in PLANS}


def test_bad_inputs_are_named(experts, checkpoint_factory):
    with pytest.raises(UserError, match="needs the base model, which was not given"):
        ExpertPair(*experts).apply(VECTORS[0])
    with pytest.raises(UserError, match="'soup' has 5 layers, .*math has 4"):
        ExpertPair(*experts).apply(uniform(5, 0.5, "soup"))
    with pytest.raises(UserError, match="num_hidden_layers"):
        ExpertPair(experts[0], checkpoint_factory("deeper", layers=5))
    folder = checkpoint_factory("extra")
    save_file(load_file(folder / "model.safetensors") | {"extra": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="extra"):
        ExpertPair(folder, folder).apply(PLANS[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mixed_tensors_lie_as_in_the_file(checkpoint_factory, tmp_path, dtype):
    """transformers uses a tensor where it lies in its file, and kernels may round by how far that is from 64 bytes."""
    folders = [checkpoint_factory(name, i, dtype=dtype) for i, name in enumerate(("m", "l"))]
    plan = uniform(4, 0.5, "soup")
    merge(*folders, plan, tmp_path / "out")
    from_file = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    merged = dict(ExpertPair(*folders, dtype=dtype).apply(plan).named_parameters())
    assert {tensor.data_ptr() % 64 for tensor in merged.values()} != {0}
    for name, tensor in from_file.named_parameters():
        assert same_bits(tensor, merged[name]) and tensor.data_ptr() % 64 == merged[name].data_ptr() % 64


def test_a_difference_that_is_meant_is_allowed(experts, checkpoint_factory):
    other = checkpoint_factory("other", 2, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(UserError, match="rope_parameters.rope_theta is .* expected the same"):
        ExpertPair(experts[0], other)
    model = ExpertPair(experts[0], other, allow=["rope_theta"]).apply(uniform(4, 1, "language"))
    assert model.config.rope_parameters["rope_theta"] == 1e4  # the math expert's


def test_stored_buffers_are_mixed_too(experts, monkeypatch):
    def with_buffer(folder, **arguments):
        model, info = from_pretrained(folder, **arguments)
        weight = model.model.norm.weight.data
        del model.model.norm.weight
        model.model.norm.register_buffer("weight", weight)
        return model, info

    expected = ExpertPair(*experts).apply(PLANS[2]).model.norm.weight
    from_pretrained = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", with_buffer)
    assert same_bits(ExpertPair(*experts).apply(PLANS[2]).model.norm.weight, expected)
