"""LoRA adapters: merged as PEFT merges them in memory, made once, and refused where the result would be wrong."""

import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import SPECIAL, WORDS, bits, same_bits, tensors, word_tokenizer, write_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from layerswap.checkpoints import adapters, loading
from layerswap.errors import UserError
from layerswap.merging import on_disk
from layerswap.merging.plans import Plan

WEIGHTS = "adapter_model.safetensors"
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
QUERY = "model.layers.1.self_attn.q_proj"
A, B = (f"base_model.model.{QUERY}.lora_{matrix}.weight" for matrix in "AB")
HEAD_A, HEAD_B, HEAD = (name.replace(QUERY, "lm_head") for name in (A, B, f"base_model.model.{QUERY}.weight"))
EMBEDDING_A = "base_model.model.model.embed_tokens.lora_embedding_A"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Names of models are below tmp_path, and merged adapters are written there."""
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(adapters, "BUILD", tmp_path / "build")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that no test writes to."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", layers=2)


def write_adapter(base, folder, *, seed=5, dtype=None, **settings):
    """An adapter by PEFT with random weights, stored as ``dtype`` if given; returns ``folder``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if dtype:
        file = folder / WEIGHTS
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    return folder


def small_adapter(folder, weights=None, **settings):
    """An adapter of one matrix, without PEFT; returns ``folder``. weights: its tensors; settings: None leaves out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [QUERY]} | settings
    text = json.dumps({field: value for field, value in settings.items() if value is not None})
    (folder / "adapter_config.json").write_text(text)
    save_file({A: torch.ones(2, 32), B: torch.ones(32, 2)} if weights is None else weights, folder / WEIGHTS)
    return folder


def load_adapted(base, adapter):
    """The base with the adapter beside it, as PEFT loads both."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)


def merge_in_memory(base, adapter):
    """The base with the adapter merged by PEFT."""
    return load_adapted(base, adapter).merge_and_unload()


def built(tmp_path):
    """All that lies under build."""
    return sorted(path for path in (tmp_path / "build").rglob("*") if path != tmp_path / "build" / "models")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(len(WORDS))[None]).logits  # [1, words, words]


# --- what is merged -------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SETTINGS = [
    {}, {"use_rslora": True}, {"target_modules": "all-linear"}, {"layers_to_transform": [1]},
    {"rank_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 2}, "alpha_pattern": {"1.self_attn.v_proj": 3}},
    {"rank_pattern": {r"model\.layers\.\d+\.mlp.*": 5}, "alpha_pattern": {"down_proj": 7.5}, "use_rslora": True},
]  # fmt: skip
FURTHER_SETTINGS = [
    {"use_dora": True}, {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    {"modules_to_save": ["up_proj", "input_layernorm"]}, {"trainable_token_indices": [3, 4]},
    {"fan_in_fan_out": True}, {"init_lora_weights": "gaussian"}, {"exclude_modules": ["v_proj"]},
    {"target_parameters": ["mlp.up_proj.weight"]},
]  # fmt: skip
MERGES = [(dtype, settings, None) for settings in SETTINGS for dtype in DTYPES]
MERGES += [(dtype, settings, None) for settings in FURTHER_SETTINGS for dtype in (torch.float32, torch.bfloat16)]
MERGES += [(dtype, {}, adapter_dtype) for adapter_dtype in DTYPES[1:] for dtype in DTYPES]


def check_merge(tmp_path, base, adapter):
    """The adapter's merge has the names of the base, and the bits and the function that PEFT gives it."""
    weights, merged = tensors(base), tensors(loading.resolve_model(adapter, base))
    expected = merge_in_memory(base, adapter).state_dict()
    assert merged.keys() == weights.keys()
    assert all(same_bits(merged[name], expected[name]) for name in merged)
    assert any(not same_bits(merged[name], tensor) for name, tensor in weights.items())
    if all(tensor.dtype == torch.float32 for tensor in weights.values()):
        model = AutoModelForCausalLM.from_pretrained(loading.resolve_model(adapter, base))
        torch.testing.assert_close(logits(model), logits(load_adapted(base, adapter)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "settings", "adapter_dtype"), MERGES)
def test_a_merged_adapter_is_that_of_peft(tmp_path, dtype, settings, adapter_dtype):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=dtype, tied="use_rslora" in settings, shard=30_000)
    check_merge(tmp_path, base, write_adapter(base, tmp_path / "adapter", dtype=adapter_dtype, **settings))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_merged_biases_are_those_of_peft(tmp_path, dtype, settings):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=dtype, attention_bias=True, mlp_bias=True)
    check_merge(tmp_path, base, write_adapter(base, tmp_path / "adapter", **settings))
    name = f"{QUERY}.bias"
    assert not same_bits(tensors(base)[name], tensors(loading.resolve_model("adapter", base))[name])


@pytest.mark.parametrize("settings", [
    {"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": {"lm_head": [5]}},
])  # fmt: skip
def test_embeddings_and_head_are_merged_where_they_are_not_tied(tmp_path, settings):
    base = write_checkpoint(tmp_path / "base", layers=2, tied=False)
    check_merge(tmp_path, base, write_adapter(base, tmp_path / "adapter", **settings))


@pytest.mark.parametrize("settings", [
    {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, {"trainable_token_indices": [3, 4]},
])  # fmt: skip
def test_tied_embeddings_stay_tied(tmp_path, base, settings):
    adapter = write_adapter(base, tmp_path / "adapter", **settings)
    check_merge(tmp_path, base, adapter)
    merged = tensors(loading.resolve_model(adapter, base))
    assert "lm_head.weight" not in merged
    assert not same_bits(merged["model.embed_tokens.weight"], tensors(base)["model.embed_tokens.weight"])


def store_tied_head(base):
    """Let a base with tied embeddings store its head too."""
    weights = tensors(base)
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, base / "model.safetensors", {"format": "pt"})
    return base


def test_a_tied_head_that_is_stored_stays_stored(tmp_path):
    base = store_tied_head(write_checkpoint(tmp_path / "base", layers=2))
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    check_merge(tmp_path, base, adapter)
    merged = tensors(loading.resolve_model(adapter, base))
    assert same_bits(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def test_a_base_of_several_dtypes_keeps_them(tmp_path):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=torch.bfloat16, tied=False)
    weights = tensors(base)
    for name, dtype in {"model.norm.weight": torch.float32, "lm_head.weight": torch.float16}.items():
        weights[name] = weights[name].to(dtype) + torch.tensor(2.0**-9, dtype=dtype)  # too fine for bfloat16
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    adapter = write_adapter(base, tmp_path / "adapter")
    merged = tensors(loading.resolve_model(adapter, base))
    assert {name: tensor.dtype for name, tensor in merged.items()} == {
        name: tensor.dtype for name, tensor in weights.items()
    }
    expected = merge_in_memory(write_checkpoint(tmp_path / "low", layers=2, dtype=torch.bfloat16, tied=False), adapter)
    for name, tensor in expected.state_dict().items():
        assert same_bits(merged[name], weights[name] if weights[name].dtype != torch.bfloat16 else tensor)


@pytest.mark.parametrize("shard", [None, 20_000])
def test_what_no_adapter_touches_stays_and_the_files_are_those_of_the_base(tmp_path, shard):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=torch.bfloat16, special=True, shard=shard)
    for file in base.glob("*.safetensors"):  # NaN only where nothing is merged
        weights = load_file(file)
        weights |= {name: tensor.nan_to_num() for name, tensor in weights.items() if name == f"{QUERY}.weight"}
        save_file(weights, file, {"format": "pt"})
    if shard:
        (base / "generation_config.json").unlink()
    else:  # transformers would refuse to save it
        (base / "generation_config.json").write_text('{"temperature": 0.9}')
    before, adapter = tensors(base), small_adapter(tmp_path / "adapter")
    out = loading.resolve_model("adapter", "base")
    after = tensors(out)
    assert [name for name in before if not same_bits(before[name], after[name])] == [f"{QUERY}.weight"]
    assert bits(after["model.norm.weight"]).view("uint16")[5] == SPECIAL[torch.bfloat16][1]
    files = {path.name for path in out.iterdir() if ".safetensors" not in path.name}
    assert files == {path.name for path in base.iterdir() if ".safetensors" not in path.name} | {"adapter.json"}
    assert (len(list(out.glob("*.safetensors"))) > 1) == (out / "model.safetensors.index.json").exists() == bool(shard)
    for name in files - {"adapter.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    provenance = json.loads((out / "adapter.json").read_text())
    assert (provenance["base"], provenance["adapter"]) == (str(base), str(adapter))
    assert provenance["settings"] == {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [QUERY]}


def test_swapped_layers_of_merged_adapters_are_those_of_peft(tmp_path):
    base, folders = write_checkpoint(tmp_path / "base", dtype=torch.bfloat16), {}
    for seed, role in enumerate(["math", "language"]):
        adapter = write_adapter(base, tmp_path / role, seed=seed)
        merge_in_memory(base, adapter).save_pretrained(tmp_path / f"{role}-peft")
        for file in base.glob("tokenizer*"):
            shutil.copy(file, tmp_path / f"{role}-peft")
        folders[role] = loading.resolve_model(role, base), tmp_path / f"{role}-peft"
    plan = Plan("swap", (1, 0.25, 0, 1), 0.5)
    for i, out in enumerate(["ours", "peft"]):
        on_disk.merge(folders["math"][i], folders["language"][i], plan, tmp_path / out)
    merged, expected = tensors(tmp_path / "ours"), tensors(tmp_path / "peft")
    assert merged.keys() == expected.keys()
    assert all(same_bits(merged[name], expected[name]) for name in merged)


# --- what an adapter brings, and other bases --------------------------------------------------------------------------


def names_without_weights(folder):
    return {path.name for path in folder.iterdir() if ".safetensors" not in path.name}


def test_the_tokenizer_of_an_adapter_is_the_experts(tmp_path, base):
    adapter = small_adapter(tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("the base's")
    first = loading.resolve_model("adapter", "base")
    word_tokenizer([*WORDS[:-1], "<|im_end|>"]).save_pretrained(adapter)
    (adapter / "tokenizer.py").write_text("import os")
    out = loading.resolve_model("adapter", "base")
    assert out != first and AutoTokenizer.from_pretrained(out).get_vocab()["<|im_end|>"] == len(WORDS) - 1
    for file in base.glob("*config.json"):
        if "token" not in file.name:
            assert (out / file.name).read_bytes() == file.read_bytes()
    assert names_without_weights(out) == names_without_weights(base) | {"adapter.json"}  # no template, no code


def test_the_processors_of_an_adapter_are_the_experts(tmp_path, base):
    adapter, out = small_adapter(tmp_path / "adapter"), []
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"size": 1}')
    for size in (2, 3):
        (adapter / "preprocessor_config.json").write_text(f'{{"size": {size}}}')
        out.append(loading.resolve_model("adapter", "base"))
    assert [(folder / "preprocessor_config.json").read_text()[-2] for folder in out] == ["2", "3"]


def test_a_chat_template_alone_goes_over_the_bases(tmp_path, base):
    adapter = small_adapter(tmp_path / "adapter")
    (adapter / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (adapter / name).write_text("the adapter's")
    out = loading.resolve_model("adapter", base)
    assert (out / "chat_template.jinja").read_text() == "the adapter's"
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "the adapter's"
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


SMALL = {"vocab_size": 19, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
GEMMA3 = Gemma3Config(
    text_config=SMALL | {"head_dim": 8}, vision_config={"hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
)  # fmt: skip
BASES = {
    "gemma3": (Gemma3ForConditionalGeneration, GEMMA3, str),
    "gemma3 of another version": (Gemma3ForConditionalGeneration, GEMMA3,
                                  lambda name: name.replace("language_model.model.", "model.language_model.")),
    "qwen2-vl": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(text_config=SMALL | {"rope_parameters": MROPE}, vision_config={"depth": 1, "embed_dim": 16,
                      "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}), str,
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=2), str),
}  # fmt: skip


@pytest.mark.parametrize(("model_class", "config", "rename"), BASES.values(), ids=BASES)
def test_adapters_of_bases_with_other_names_in_memory(tmp_path, model_class, config, rename):
    torch.manual_seed(1)
    model_class(config).save_pretrained(tmp_path / "base")
    weights = {rename(name): tensor for name, tensor in tensors(tmp_path / "base").items()}
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    model = model_class.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=r".*layers.*\.q_proj", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    merged, info = model_class.from_pretrained(loading.resolve_model("adapter", "base"), output_loading_info=True)
    expected = adapted.merge_and_unload().state_dict()
    assert not any(info.values())
    assert all(same_bits(tensor, expected[name]) for name, tensor in merged.state_dict().items())


def test_constants_of_an_old_base_are_no_weights(tmp_path):
    base, name = write_checkpoint(tmp_path / "base", layers=2), "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights = tensors(base)
    save_file(weights | {name: torch.ones(4)}, base / "model.safetensors", {"format": "pt"})
    small_adapter(tmp_path / "adapter")
    assert tensors(loading.resolve_model("adapter", "base")).keys() == weights.keys()


# --- made once ------------------------------------------------------------------------------------------------------


def test_a_merge_is_made_once_for_the_same_content(tmp_path, base):
    small_adapter(tmp_path / "adapter", base_model_name_or_path="somewhere/else")
    first = loading.resolve_model("adapter", base)
    assert first.parent == tmp_path / "build" / "models" and first.name.startswith("adapter-")
    written = (first / "model.safetensors").stat().st_mtime_ns
    shutil.copytree(base, tmp_path / "copy")
    assert loading.resolve_model("adapter", "copy") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    others = set()
    for change in (
        lambda: small_adapter(tmp_path / "adapter", lora_alpha=5),
        lambda: small_adapter(tmp_path / "adapter", {A: torch.ones(2, 32), B: torch.zeros(32, 2)}),
        lambda: (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: write_checkpoint(tmp_path / "copy", 9, layers=2),
    ):
        change()
        others.add(loading.resolve_model("adapter", "copy"))
    assert len(others - {first}) == 4


def test_the_random_state_is_left_alone(tmp_path, base):
    small_adapter(tmp_path / "adapter")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    loading.resolve_model("adapter", base)
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupted_merge_leaves_nothing(tmp_path, base, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    small_adapter(tmp_path / "adapter")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapters, "check_merged", interrupt)  # the weights are written by then
        loading.resolve_model("adapter", base)
    assert built(tmp_path) == []
    assert tensors(loading.resolve_model("adapter", base)).keys() == tensors(base).keys()


MERGE_AND_WAIT = """
import sys, time
from pathlib import Path
from layerswap.checkpoints import adapters
adapters.BUILD = Path(sys.argv[3])
adapters.check_merged = lambda *args: (print("written", flush=True), time.sleep(600))
adapters.merge_adapter(Path(sys.argv[1]), Path(sys.argv[2]), "adapter")
"""


def test_what_a_killed_merge_left_is_no_model_and_goes(tmp_path, base):
    arguments = [base, small_adapter(tmp_path / "adapter"), tmp_path / "build"]
    merge = subprocess.Popen([sys.executable, "-c", MERGE_AND_WAIT, *arguments], stdout=subprocess.PIPE, text=True)
    assert merge.stdout.readline() == "written\n"
    merge.send_signal(signal.SIGKILL)
    merge.wait()
    (left,) = (tmp_path / "build" / "models").iterdir()
    assert left.name.endswith(".tmp") and (left / "model.safetensors").exists()
    out = loading.resolve_model("adapter", base)
    assert list((tmp_path / "build" / "models").iterdir()) == [out]
    assert tensors(out).keys() == tensors(base).keys()


def test_of_two_at_once_the_first_one_stays(tmp_path, base, monkeypatch):
    small_adapter(tmp_path / "adapter")
    merge, others = adapters.merge_with_peft, []

    def merge_late(*args):
        if not others:
            others.append(None)
            others.append(loading.resolve_model("adapter", base))
        return merge(*args)

    monkeypatch.setattr(adapters, "merge_with_peft", merge_late)
    out = loading.resolve_model("adapter", base)
    assert others[1:] == [out] == list((tmp_path / "build" / "models").iterdir())


# --- what is refused ------------------------------------------------------------------------------------------------

FITS_NO_MODULE = "fits no module of .* that its config adapts$"
ONES = {A: torch.ones(2, 32), B: torch.ones(32, 2)}
REFUSED = {
    "a loha": ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
    "no peft_type": ({"peft_type": None}, "peft_type is None"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication, which changes the base"),
    "kasa": ({"kasa_config": {"beta": 0.1}}, "has kasa_config, which changes the base"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which changes the base"),
    "corda": ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda', which changes the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq', which changes the base"),
    "a setting of a newer PEFT": ({"use_novelty": True}, r"has use_novelty, which PEFT [\d.]+ does not know"),
    "activated by tokens": (
        {"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"}, "PEFT cannot merge it into .*aLoRA does not",
    ),
    "arrow": ({"arrow_config": {"top_k": 2}}, "PEFT cannot load it for "),
    "a bias without one in the base": (
        {"lora_bias": True, "weights": ONES | {B.replace("weight", "bias"): torch.ones(32)}},
        "PEFT cannot merge it into .*the base layer has no bias",
    ),
    "no bias": ({"lora_bias": True}, f"has no tensor {B.replace('weight', 'bias')}, expected one for each module"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
    "alpha in words": ({"lora_alpha": "16"}, "lora_alpha is '16', expected a number"),
    "alpha is true": ({"lora_alpha": True}, "lora_alpha is True, expected a number"),
    "alpha is no number": ({"lora_alpha": math.nan}, "lora_alpha is nan, expected a number"),
    "alpha is too large": ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, expected a number"),
    "alpha by pattern": ({"alpha_pattern": {"q_proj": [1]}}, r"lora_alpha of 'q_proj' is \[1\], expected a number"),
    "no rank": ({"r": 2.0}, "r is 2.0, expected a whole number"),
    "rank 0": ({"r": 0}, "PEFT cannot load it .*`r` should be a positive integer value but the value passed is 0"),
    "another rank": ({"r": 8}, r"PEFT cannot load it .*q_proj.lora_A.*\[2, 32\].*\[8, 32\]"),
    "a broken pattern": ({"rank_pattern": {"(": 1}}, "PEFT cannot load it .*unterminated subpattern"),
    "patterns in a list": ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\], expected a table"),
    "nothing in it": (
        {"weights": {A: torch.zeros(0), B: torch.zeros(0)}}, rf"{A} is empty, F32 \[0\], expected weights; ZeRO-3",
    ),
    "a lone A": ({"weights": {A: torch.ones(2, 32)}}, f"has no tensor {B}, expected one for each module"),
    "a lone B": ({"weights": {B: torch.ones(32, 2)}}, f"has no tensor {A}, expected one for each module"),
    "nothing": ({"weights": {}}, f"has no tensor {A}"),
    "another shape": ({"weights": {A: torch.ones(2, 16), B: torch.ones(32, 2)}}, r"PEFT cannot load it .*\[2, 16\]"),
    "an unknown module": (
        {"weights": ONES | {A.replace("layers.1", "layers.7"): torch.ones(2, 32)}},
        f"tensor {A.replace('layers.1', 'layers.7')} {FITS_NO_MODULE}",
    ),
    "a module that is not there": ({"target_modules": ["model.layers.7"]}, "PEFT cannot load it .*not found"),
    "a module that its config leaves out": (
        {"weights": ONES | {A.replace("q_proj", "k_proj"): torch.ones(2, 32)}}, f"k_proj.lora_A.* {FITS_NO_MODULE}",
    ),
    "the tied head": (
        {"target_modules": ["lm_head"], "weights": {HEAD_A: torch.ones(2, 32), HEAD_B: torch.ones(19, 2)}},
        "module lm_head cannot be merged: the base's embeddings are tied to it",
    ),
    "an embedding": ({"weights": ONES | {EMBEDDING_A: torch.ones(2, 19)}}, f"lora_embedding_A {FITS_NO_MODULE}"),
    "a saved module": ({"weights": ONES | {HEAD: torch.ones(19, 32)}}, f"tensor {HEAD} {FITS_NO_MODULE}"),
    "no saved module": ({"modules_to_save": ["up_proj"]}, "PEFT cannot load it .*layers.0.mlp.up_proj.weight"),
    "a magnitude": (
        {"weights": ONES | {f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(32)}},
        f"lora_magnitude_vector {FITS_NO_MODULE}",
    ),
    "no magnitude": ({"use_dora": True}, f"has no tensor base_model.model.{QUERY}.lora_magnitude_vector, expected"),
    "whole numbers": (
        {"weights": {A: torch.ones(2, 32, dtype=torch.int32), B: torch.ones(32, 2)}},
        f"tensor {A} is I32, expected one of F64, ",
    ),
    "a norm": ({"target_modules": ["input_layernorm"]}, "PEFT cannot load it .*LlamaRMSNorm"),
    "not finite": (
        {"weights": {A: torch.full((2, 32), math.inf), B: torch.ones(32, 2)}}, f"NaN or infinity in tensor {QUERY}.w",
    ),
    "too large": ({"weights": {A: torch.full((2, 32), 1e30), B: torch.full((32, 2), 1e30)}}, "makes NaN or infinity"),
}  # fmt: skip


def check_refused(tmp_path, base, message):
    with pytest.raises(UserError, match=message) as error:
        loading.resolve_model("adapter", base)
    assert "\n" not in str(error.value) and str(tmp_path / "adapter") in str(error.value)
    assert built(tmp_path) == []


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path, base, settings, message):
    small_adapter(tmp_path / "adapter", **settings)
    check_refused(tmp_path, base, message)


@pytest.mark.parametrize(("settings", "message"), [
    ({"target_modules": ["embed_tokens"]}, "module model.embed_tokens cannot be merged: .* are tied to it$"),
    ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "module .* cannot be merged: .* are tied to"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save unties model.embed_tokens and lm_head, which are tied in "),
    ({"trainable_token_indices": {"lm_head": [5]}}, "module lm_head cannot be merged: .* are tied to it$"),
    ({"trainable_token_indices": {"embed_tokens": [5], "lm_head": [6]}}, "module lm_head cannot be merged"),
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save unties model.embed_tokens and lm_head"),
])  # fmt: skip
@pytest.mark.parametrize("is_stored", [False, True])
def test_what_peft_would_merge_wrong_into_tied_embeddings_is_refused(tmp_path, settings, message, is_stored):
    base = write_checkpoint(tmp_path / "base", layers=2)
    write_adapter(base, tmp_path / "adapter", **settings)
    check_refused(tmp_path, store_tied_head(base) if is_stored else base, message)


def test_a_quantised_base_is_refused(tmp_path):
    base = write_checkpoint(tmp_path / "base", layers=2)
    weights = tensors(base)
    save_file(weights | {f"{QUERY}.weight": torch.ones(32, 32, dtype=torch.int8)}, base / "model.safetensors")
    small_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"base: tensor {QUERY}.weight is I8, expected one of F64, F32"):
        loading.resolve_model("adapter", "base")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"])
def test_a_base_with_other_tensors_than_its_model_is_refused(tmp_path, name):
    base = write_checkpoint(tmp_path / "base", layers=2)
    weights = tensors(base)
    if weights.pop(name, None) is None:
        weights[name] = torch.ones(48, 32)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    small_adapter(tmp_path / "adapter")
    check_refused(tmp_path, base, f"tensor {name} is .* after the merge, expected .* as in .*base$")


def test_a_pickle_is_refused_before_anything_is_loaded(tmp_path, base, monkeypatch):
    monkeypatch.setattr(adapters, "merge_with_peft", None)
    (small_adapter(tmp_path / "adapter") / WEIGHTS).unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"\x80")
    check_refused(tmp_path, base, f"found adapter_model.bin, a pickle; expected {WEIGHTS}")


def test_no_code_of_a_base_is_run(tmp_path):
    base = write_checkpoint(tmp_path / "base", layers=2)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "novel", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    small_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match="base: transformers cannot load it .*contains custom code"):
        loading.resolve_model("adapter", "base")
    assert not (tmp_path / "ran").exists()
