"""Which tensors are layers of the text decoder: by config.json, in the names of many families."""

import json

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

from layerswap.checkpoints.layers import decoder_layers, find_layers
from layerswap.errors import UserError


def stack(prefix, n, *modules):
    return [f"{prefix}{i}.{module}.weight" for i in range(n) for module in modules or ("attn", "mlp.0")]


LLAMA = [*stack("model.layers.", 4), "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
# names, config, prefix, depth, tensors outside the text decoder
MODELS = {
    "llama": (LLAMA, {"num_hidden_layers": 4}, "model.layers.", 4, []),
    "its body alone": (stack("layers.", 4), {"num_hidden_layers": 4}, "layers.", 4, []),
    "no depth in the config": (LLAMA, {}, "model.layers.", 4, []),
    "gpt2": ([*stack("transformer.h.", 3), "transformer.wte.weight"], {"n_layer": 3}, "transformer.h.", 3, []),
    "mpt": (stack("transformer.blocks.", 3), {"n_layers": 3}, "transformer.blocks.", 3, []),
    "another name": (stack("decoder.units.", 3), {"num_layers": 3}, "decoder.units.", 3, []),
    "mixture of experts": (
        stack("model.layers.", 4, "mlp.experts.0.up_proj", "mlp.experts.1.up_proj"), {"num_hidden_layers": 4},
        "model.layers.", 4, [],
    ),
    "counted twice over": (
        stack("model.layers.", 3), {"num_hidden_layers": 6, "num_layers": 3}, "model.layers.", 3, [],
    ),
    "vision tower": (
        [*stack("language_model.model.layers.", 4), *stack("vision_tower.encoder.layers.", 3),
         "vision_tower.norm.weight", "multi_modal_projector.weight",
         "language_model.model.norm.weight", "language_model.lm_head.weight"],
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 3}},
        "language_model.model.layers.", 4,
        [*stack("vision_tower.encoder.layers.", 3), "vision_tower.norm.weight", "multi_modal_projector.weight"],
    ),
    "tower as deep as the text": (
        [*LLAMA, *stack("visual.blocks.", 4), "visual.patch_embed.proj.weight", "mlp1.0.weight"],
        {"text_config": {"num_hidden_layers": 4}}, "model.layers.", 4,
        [*stack("visual.blocks.", 4), "visual.patch_embed.proj.weight", "mlp1.0.weight"],
    ),
    "tower within the model": (
        [*stack("model.layers.", 4), *stack("model.audio_tower.layers.", 2), "model.audio_tower.norm.weight"],
        {"num_hidden_layers": 4}, "model.layers.", 4,
        [*stack("model.audio_tower.layers.", 2), "model.audio_tower.norm.weight"],
    ),
    "heads of other modules": (
        [*stack("model.language_model.layers.", 4), "lm_head.weight_scale", "model.generation_head.proj_out.weight",
         "model.vision_head.weight", "action_head.output.layer.weight"],
        {"text_config": {"num_hidden_layers": 4}}, "model.language_model.layers.", 4,
        ["model.generation_head.proj_out.weight", "model.vision_head.weight", "action_head.output.layer.weight"],
    ),
    "head of another name": (
        [*stack("language_model.model.layers.", 4), "language_model.model.tok_embeddings.weight",
         "language_model.output.weight", "mlp1.0.weight"],
        {"llm_config": {"num_hidden_layers": 4}}, "language_model.model.layers.", 4, ["mlp1.0.weight"],
    ),
    "prediction head apart": (
        [*LLAMA, "mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight"], {"num_hidden_layers": 4}, "model.layers.", 4,
        ["mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight"],
    ),
    "prediction layers after the last": (
        [*LLAMA, *stack("model.layers.", 6)[8:]], {"num_hidden_layers": 4, "num_nextn_predict_layers": 2},
        "model.layers.", 4, stack("model.layers.", 6)[8:],
    ),
    "prediction layers left out": (
        LLAMA, {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}, "model.layers.", 4, [],
    ),
    "depth by the family's default": (
        stack("language_model.model.layers.", 32), {"text_config": {"model_type": "llama"}},
        "language_model.model.layers.", 32, [],
    ),
    "depth by a list of what the layers are": (
        stack("backbone.layers.", 3), {"model_type": "nemotron_h", "layers_block_type": ["mamba", "attention", "moe"],
                                                "time_step_limit": [0.0, {"__float__": "Infinity"}]},
        "backbone.layers.", 3, [],
    ),
    "another list beside it": (
        [*LLAMA, "model.altup_projections.0.weight", "model.altup_projections.1.weight"], {"num_hidden_layers": 4},
        "model.layers.", 4, [],
    ),
    "a decoder called encoder": (
        [*stack("transformer.encoder.layers.", 2), "transformer.encoder.final_layernorm.weight"], {"num_layers": 2},
        "transformer.encoder.layers.", 2, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_layers_of_the_text_decoder(case):
    names, config, prefix, count, others = MODELS[case]
    layers = find_layers(names, config, "here")
    assert (layers.prefix, layers.count) == (prefix, count)
    assert [name for name in names if not layers.is_text(name)] == others
    for name in names:
        in_layer = name.startswith(prefix) and name not in others
        assert layers.index(name) == (int(name.removeprefix(prefix).split(".")[0]) if in_layer else None)


REFUSED = {
    "encoder and decoder": (
        [*stack("model.encoder.layers.", 3), *stack("model.decoder.layers.", 4)],
        {"is_encoder_decoder": True, "num_hidden_layers": 3}, "of an encoder and a decoder",
    ),
    "two stacks as deep": (
        [*stack("model.fast.layers.", 4), *stack("model.slow.layers.", 4)], {"num_hidden_layers": 4},
        "model.fast.layers.N of 0 to 3; model.slow.layers.N of 0 to 3; expected 4 layers",
    ),
    "too few": (LLAMA, {"text_config": {"num_hidden_layers": 6}}, "model.layers.N of 0 to 3; expected 6 layers"),
    "one left out": (stack("model.layers.", 4)[2:], {"num_hidden_layers": 4}, "N of 1 to 3; expected 4 layers"),
    "one in the middle left out": (
        [name for name in LLAMA if ".2." not in name], {"num_hidden_layers": 4}, "N of 0, 1, 3; expected 4 layers",
    ),
    "prediction layers that are not declared": (
        stack("model.layers.", 5), {"num_hidden_layers": 4}, "N of 0 to 4; expected 4 layers",
    ),
    "prediction layers declared, others stored": (
        stack("model.layers.", 7), {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}, r"and 1 that predict",
    ),
    "none": (["model.embed_tokens.weight"], {"num_hidden_layers": 4}, "no layers; expected 4 layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_models_without_one_stack_are_refused_in_one_line(case):
    names, config, message = REFUSED[case]
    with pytest.raises(UserError, match=f"^here: found .*{message}") as error:
        find_layers(names, config, "here")
    assert "\n" not in str(error.value)


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from(["model.layers.", "h.", "transformer.blocks."]))
def test_the_stack_of_the_configs_depth_is_taken(depth, depth_of_tower, prefix):
    names = [*stack(prefix, depth), *stack("vision.encoder.layers.", depth_of_tower)]
    layers = find_layers(names, {"num_hidden_layers": depth}, "here")
    assert (layers.prefix, layers.count) == (prefix, depth)


def test_folders(experts, tmp_path):
    assert decoder_layers(experts[0]).count == 4
    save_file({"model.layers.0.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=f"^{tmp_path}: found tensors of layers .* expected 2 layers"):
        decoder_layers(tmp_path)
