"""Families whose tensors have other names in memory, share keys or blocks, or stand beside towers.

They are merged on disk and in memory alike, decoded as transformers does, and measured layer by layer.
"""

import pytest
import torch
from conftest import WORDS, same_bits, tensors, word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from layerswap.checkpoints.layers import decoder_layers
from layerswap.errors import UserError
from layerswap.evaluation.engine import generate
from layerswap.evaluation.prefix_attention import supports_shared_attention
from layerswap.experts.weight_change import weight_change
from layerswap.merging.in_memory import ExpertPair
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import layer_swap
from layerswap.merging.task_vectors import TaskVectors

N_LAYERS = 4
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N_LAYERS, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 1, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "sliding_window": 7, "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "global_head_dim": 8, "laurel_rank": 4,
    "altup_num_inputs": 2, "n_layer": N_LAYERS, "n_head": 4, "mamba_d_state": 8, "mamba_headdim": 16,
    "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 8, "num_mem_blocks": 1, "attention_head_dim": 16,
    "use_shared_attention_adapter": False,
}  # fmt: skip
ATTENTIONS = ["sliding_attention", "full_attention"] * (N_LAYERS // 2)
SPECIFIC = {
    "gemma4_text": {"layer_types": ATTENTIONS},
    "gemma3n_text": {"layer_types": ATTENTIONS, "intermediate_size": [48] * N_LAYERS,
                     "activation_sparsity_pattern": [0.9, 0.0] * (N_LAYERS // 2)},
    "zamba2": {"num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"] * (N_LAYERS // 2)},
    "gpt_oss": {"layer_types": ATTENTIONS},
}  # fmt: skip
FAMILIES = (
    "llama mixtral qwen2_moe qwen3_moe olmoe glm4_moe granitemoe minimax_m2 apertus gpt_neox gemma4_text gemma3n_text "
    "gpt2 bloom gpt_oss zamba2 gemma3"
).split()
ALONE = {"bloom", "gpt_oss", "zamba2"}  # answer one prompt at a time
PLANS = [
    layer_swap(N_LAYERS, 1, 1, 1, 0, weight=1 / 3, non_layer_weight=0.6),
    layer_swap(N_LAYERS, 1, 0, 0, 2, weight=0.9, non_layer_weight=0),
]
PROMPTS = torch.randint(3, len(WORDS), (2, 11), generator=torch.Generator().manual_seed(0))  # [batch, tokens]


def tiny_config(family):
    if family == "gemma3":  # with its vision tower, of as many layers
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2,
                 "image_size": 28, "patch_size": 14}  # fmt: skip
        text = tiny_config("gemma3_text").to_dict()
        return AutoConfig.for_model(family, text_config=text, vision_config=tower, mm_tokens_per_image=4,
                                    image_token_index=18, boi_token_index=17, eoi_token_index=16)  # fmt: skip
    fields = AutoConfig.for_model(family).to_dict().keys() | {"num_hidden_layers", "hidden_size", "vocab_size"}
    sizes = {field: value for field, value in SIZES.items() if field in fields}
    return AutoConfig.for_model(family, **sizes | SPECIFIC.get(family, {}))


@pytest.fixture(scope="module", params=FAMILIES)
def expert_folders(request, tmp_path_factory):
    """(family, math, language): two random models of a family, as transformers saves them."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("math", "language"), 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(request.param), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05)
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return request.param, folder / "math", folder / "language"


def test_in_memory_as_on_disk(expert_folders, tmp_path):
    _, math, language = expert_folders
    for dtype in (torch.float32, torch.bfloat16):
        pair = ExpertPair(math, language, dtype=dtype)
        for i, plan in enumerate(PLANS):
            out = tmp_path / str(i)
            if not out.exists():
                merge(math, language, plan, out)
            from_file = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()
            try:
                merged = pair.apply(plan)
            except UserError as error:  # stored wider than it is here, and under another name
                assert dtype == torch.bfloat16 and "merge on disk (layerswap merge), then evaluate" in str(error)
                continue
            expected, actual = from_file.state_dict(), merged.state_dict()
            assert expected.keys() == actual.keys()
            assert [name for name in expected if not same_bits(expected[name], actual[name])] == []
            with torch.inference_mode():
                assert same_bits(from_file(PROMPTS).logits, merged(PROMPTS).logits)


def test_towers_are_of_one_expert(expert_folders, tmp_path):
    family, math, language = expert_folders
    layers, inputs = decoder_layers(math), {"math": tensors(math), "language": tensors(language)}
    assert layers.count == N_LAYERS
    for donor in ("math", "language"):
        manifest = merge(math, language, PLANS[0], tmp_path / donor, donor=donor)
        merged = tensors(tmp_path / donor)
        others = [name for name in merged if not layers.is_text(name)]
        assert all(same_bits(merged[name], inputs[donor][name]) for name in others)
        assert sum(manifest["modules"].values()) == len(others)
        assert bool(others) == (family == "gemma3") and all("language_model" not in name for name in others)
        assert all(
            same_bits(merged[name], inputs["language"][name])
            for name in merged
            if layers.index(name) in (0, N_LAYERS - 1)
        )
        assert all(same_bits(merged[name], inputs["math"][name]) for name in merged if layers.index(name) == 2)


def test_tokens_are_those_of_generate(expert_folders):
    family, math, _ = expert_folders
    tokenizer, model = word_tokenizer(), AutoModelForCausalLM.from_pretrained(math).eval()
    words = WORDS[3:]
    shared = [words[i * i % len(words)] for i in range(20)]
    texts = [
        " ".join(shared + [words[(7 * i + 3 * j * (i + 1)) % len(words)] for j in range(i)]) for i in (1, 4, 9, 14)
    ]
    assert supports_shared_attention(model) == (family not in ALONE)
    for text, answer in zip(texts, generate(model, tokenizer, texts, 12), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert answer.text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_change_of_every_layer_is_counted(expert_folders):
    _, math, language = expert_folders
    layers, before, after = decoder_layers(math), tensors(math), tensors(language)
    frame = weight_change(math, language).groupby("layer")
    for layer, rows in frame:
        names = [name for name in before if layers.index(name) == (None if layer == -1 else layer)]
        change = sum((after[name].double() - before[name].double()).abs().sum().item() for name in names)
        assert rows.n.sum() == sum(before[name].numel() for name in names)
        assert (rows.n * rows.mean_absolute).sum() == pytest.approx(change, rel=1e-9)
    assert sorted(frame.groups) == [-1, *range(N_LAYERS)]


def test_task_vectors_need_the_stored_tensors(expert_folders):
    family, math, language = expert_folders
    pair, plan = ExpertPair(math, language, math), TaskVectors("added", "task arithmetic", 0.5, 0.5)
    renamed = {name for name, _ in pair.load("math").named_parameters()} - tensors(math).keys()
    if renamed:
        with pytest.raises(UserError, match="task arithmetic needs them as they are stored; merge on disk"):
            pair.apply(plan)
    else:
        pair.apply(plan)
    families = "mixtral qwen2_moe qwen3_moe olmoe glm4_moe granitemoe minimax_m2 gpt_neox gemma3"
    assert bool(renamed) == (family in families.split())
