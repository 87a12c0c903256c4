"""Merges in memory: the same bits as merges on disk, and experts that no plan can damage."""

import random

import pytest
import torch
from conftest import WORDS, same_bits, word_tokenizer
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

from layerswap import checkpoint, merge
from layerswap import resident as resident_module
from layerswap.paths import UserError
from layerswap.plan import Plan, layer_swap, uniform
from layerswap.resident import Resident
from layerswap.vectors import TaskVectors

PLANS = [
    layer_swap(4, 1, 1, outside=0),
    layer_swap(4, 1, 0, 1, 1, weight=0.3, outside=1),
    uniform(4, 0.5, "soup"),
    uniform(4, 1, "language expert"),
]
VECTORS = [TaskVectors("added", "task arithmetic", 0.5, 0.5), TaskVectors("ties", "ties", density=0.3)]
PROMPTS = torch.randint(3, len(WORDS), (3, 11), generator=torch.Generator().manual_seed(0))  # [batch, tokens]


def assert_routes_agree(math, language, out, dtype, base=None, static=False):
    """Logits and parameters of every plan in memory equal those of its merged folder."""
    resident = Resident(math, language, base, dtype=dtype, static=static)
    for i, plan in enumerate(PLANS + VECTORS if base else PLANS):
        merge.merge(math, language, plan, out / str(i), base=base if plan in VECTORS else None)
        from_file = AutoModelForCausalLM.from_pretrained(out / str(i), dtype=dtype).eval()
        in_memory = resident.apply(plan)
        expected, found = dict(from_file.named_parameters()), dict(in_memory.named_parameters())
        assert expected.keys() == found.keys()
        assert all(same_bits(expected[name], found[name]) for name in expected)
        with torch.inference_mode():
            assert same_bits(from_file(PROMPTS).logits, in_memory(PROMPTS).logits)


@pytest.mark.parametrize("static", [False, True])
def test_task_vectors_in_memory_are_those_on_disk(checkpoint_factory, tmp_path, static):
    folders = [checkpoint_factory(name, seed, tied=False) for seed, name in enumerate(("math", "language", "base"))]
    assert_routes_agree(*folders[:2], tmp_path, torch.float32, base=folders[2], static=static)


def test_static_parameters_never_move(experts):
    resident, rng = Resident(*experts, static=True), random.Random(1)
    places = {name: p.data_ptr() for name, p in resident.apply(PLANS[0]).named_parameters()}
    aliasing = Resident(*experts)
    for i in range(6):
        weights = rng.choices([0, 1, 0.5], k=5)
        plan = Plan(f"plan {i}", tuple(weights[:4]), weights[4])
        found, expected = (dict(each.apply(plan).named_parameters()) for each in (resident, aliasing))
        assert all(same_bits(found[name], expected[name]) for name in expected)
        assert {name: p.data_ptr() for name, p in found.items()} == places


def test_static_copies_only_the_layers_that_change(experts):
    resident = Resident(*experts, static=True)
    model = resident.apply(layer_swap(4, 1, 1, outside=0))
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    resident.apply(layer_swap(4, 2, 1, outside=0))
    moved = {name for name, parameter in model.named_parameters() if parameter._version != versions[name]}
    assert moved == {name for name in versions if name.startswith("model.layers.1.")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_and_file_give_the_same_bits(checkpoint_factory, tmp_path, tied, stored, dtype):
    math = checkpoint_factory("math", 1, dtype=stored, tied=tied)
    language = checkpoint_factory("language", 2, dtype=stored, tied=tied, shard="20KB")
    assert_routes_agree(math, language, tmp_path, dtype)


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
    model, stored = (
        Resident(math, language).apply(uniform(4, 1, "language")),
        load_file(language / "model.safetensors"),
    )
    assert all(same_bits(stored[name], parameter) for name, parameter in model.named_parameters())


def test_ten_plans_leave_the_experts_as_they_are(experts):
    resident, rng = Resident(*experts), random.Random(0)
    for i in range(10):
        weights = rng.choices([0, 1, 0.5, 0.25], k=5)
        with torch.inference_mode():
            resident.apply(Plan(f"plan {i}", tuple(weights[:4]), weights[4]))(PROMPTS)
    for folder, weight in zip(experts, (0, 1), strict=True):
        stored = load_file(folder / "model.safetensors")
        model = resident.apply(uniform(4, weight, "expert"))
        assert all(same_bits(stored[name], parameter) for name, parameter in model.named_parameters())


def test_aliases_and_ties(experts):
    resident = Resident(*experts)
    model = resident.apply(uniform(4, 0, "math"))
    math = dict(model.named_parameters())
    swapped = dict(resident.apply(PLANS[0]).named_parameters())
    for name in math:  # no copy of what comes from the math expert
        assert (swapped[name] is math[name]) == (not name.startswith(("model.layers.0.", "model.layers.3.")))
    for plan in PLANS:
        model = resident.apply(plan)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_mixed_tensors_are_computed_once(experts, monkeypatch):
    calls, blend = [], resident_module.blend
    monkeypatch.setattr(resident_module, "blend", lambda *a: calls.append(a) or blend(*a))
    resident, per_layer = Resident(*experts), 9
    for plan, layers in ((PLANS[0], 0), (PLANS[1], 2), (PLANS[0], 0), (PLANS[1], 0)):
        before = len(calls)
        resident.apply(plan)
        assert len(calls) - before == layers * per_layer


def test_one_folder_on_both_sides_is_that_model(experts):
    resident, math = Resident(experts[0], experts[0]), load_file(experts[0] / "model.safetensors")
    for plan in (PLANS[0], uniform(4, 0.5, "soup")):
        assert all(same_bits(math[name], p) for name, p in resident.apply(plan).named_parameters())
        assert resident.key(plan) == Resident(*experts).key(uniform(4, 0, "math"))


def test_keys_name_the_weights_and_nothing_else(experts, checkpoint_factory):
    math, language = experts
    resident, other = Resident(math, language), Resident(math, checkpoint_factory("other", 3))
    keys = [resident.key(plan) for plan in (*PLANS, uniform(4, 0, "math"))]
    assert len(set(keys)) == len(keys)
    assert resident.key(uniform(4, 0.5, "another name")) == resident.key(PLANS[2])
    assert other.key(uniform(4, 0, "math")) == keys[-1]  # the math expert, whatever the language
    assert Resident(other.folders["language"], language).key(uniform(4, 1, "language")) == keys[3]
    assert Resident(language, math).key(uniform(4, 1, "roles reversed")) == keys[-1]
    assert not {other.key(plan) for plan in PLANS} & set(keys)
    assert not {Resident(math, language, dtype=torch.bfloat16).key(plan) for plan in PLANS} & set(keys)
    assert Resident(language, math).key(PLANS[2]) != keys[2]
    assert not {Resident(other.folders["language"], language).key(plan) for plan in PLANS[:3]} & set(keys)
    assert "model" not in vars(resident)  # no model is loaded for a key


def test_the_same_weights_used_otherwise_have_another_key(checkpoint_factory):
    pairs = []
    for theta in (1e4, 5e5):
        rope = {"rope_theta": theta, "rope_type": "default"}
        folders = [checkpoint_factory(f"{name}-{theta}", seed, rope_parameters=rope) for seed, name in enumerate("ml")]
        pairs.append(Resident(*folders))
    assert all(
        checkpoint.digest(a) == checkpoint.digest(b) for a, b in zip(*(p.folders.values() for p in pairs), strict=True)
    )
    assert not {pairs[0].key(plan) for plan in PLANS} & {pairs[1].key(plan) for plan in PLANS}


def test_bad_inputs_are_named(experts, checkpoint_factory):
    with pytest.raises(UserError, match="needs the base model, which was not given"):
        Resident(*experts).apply(VECTORS[0])
    with pytest.raises(UserError, match="'soup' has 5 layers, .*math has 4"):
        Resident(*experts).apply(uniform(5, 0.5, "soup"))
    with pytest.raises(UserError, match="num_hidden_layers"):
        Resident(experts[0], checkpoint_factory("deeper", layers=5))
    folder = checkpoint_factory("extra")
    save_file(load_file(folder / "model.safetensors") | {"extra": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="extra"):
        Resident(folder, folder).apply(PLANS[0])


def test_a_stored_tensor_that_is_no_parameter_is_refused(experts, monkeypatch):
    def with_buffer(folder, **arguments):
        model, info = from_pretrained(folder, **arguments)
        weight = model.model.norm.weight.data
        del model.model.norm.weight
        model.model.norm.register_buffer("weight", weight)
        return model, info

    from_pretrained = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", with_buffer)
    with pytest.raises(UserError, match="model.norm.weight"):
        Resident(*experts).apply(PLANS[0])
