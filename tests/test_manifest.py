"""Manifests: verify names what changed, and the keys of merges stay as they were."""

import pytest
from safetensors.torch import load_file, save_file

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.merging.manifest import merge_key, verify
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import Plan, layer_swap, uniform
from layerswap.merging.task_vectors import TaskVectors


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def reshape(path):
    data = load_file(path)
    save_file({name: tensor.reshape(1, *tensor.shape) for name, tensor in data.items()}, path)


def rename(path):
    data = load_file(path)
    save_file({"extra" if name == "model.norm.weight" else name: tensor for name, tensor in data.items()}, path)


CHANGED = {
    "a bit of a tensor": (lambda out: flip(out / "model.safetensors"), "tensor .* has sha256"),
    "a shape": (lambda out: reshape(out / "model.safetensors"), "dtypes or shapes"),
    "a tensor more": (
        lambda out: rename(out / "model.safetensors"),
        "tensor extra is in the weights, but not in",
    ),
    "the config": (lambda out: flip(out / "config.json"), "config.json: sha256 is"),
    "the model card": (lambda out: flip(out / "README.md"), "README.md: sha256 is"),
    "a file more": (lambda out: (out / "model-1.safetensors").touch(), "model-1.safetensors: is not in the manifest"),
    "a file less": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "no manifest": (lambda out: (out / "layerswap.json").unlink(), "layerswap.json: no such file"),
    "a manifest of lists": (
        lambda out: (out / "layerswap.json").write_text('{"files": [], "tensors": {}, "digest": 1}'),
        "not a manifest",
    ),
    "another manifest": (lambda out: (out / "layerswap.json").write_text("{}"), "has no 'files'"),
}


def test_files_in_folders_are_verified_too(checkpoint_factory, tmp_path):
    experts = [checkpoint_factory("math", 1), checkpoint_factory("language", 2)]
    template = "additional_chat_templates/tools.jinja"
    (experts[0] / template).parent.mkdir()
    (experts[0] / template).write_text("{{ tools }}")
    manifest = merge(*experts, layer_swap(4, 1, 1, 1), tmp_path / "out")
    assert template in manifest["files"] and verify(tmp_path / "out") == len(manifest["tensors"])
    flip(tmp_path / "out" / template)
    with pytest.raises(UserError, match=f"{template}: sha256 is"):
        verify(tmp_path / "out")


@pytest.mark.parametrize("case", CHANGED)
def test_verify_names_what_changed(experts, tmp_path, case):
    change, message = CHANGED[case]
    merge(*experts, layer_swap(4, 1, 1, 1), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        verify(tmp_path / "out")


def test_a_merge_without_hashes_says_so(experts, tmp_path):
    plan = layer_swap(4, 1, 1, 1)
    manifest = merge(*experts, plan, tmp_path / "out", hashing=False)
    assert "digest" not in manifest and "sha256" not in manifest["tensors"]["model.norm.weight"]
    assert weights_digest(tmp_path / "out") == merge(*experts, plan, tmp_path / "hashed")["digest"]
    with pytest.raises(UserError, match="nothing to check against"):
        verify(tmp_path / "out")


# Keys that the answers of earlier versions lie under, when non_layer_weight was called outside.
DIGESTS = {"math": 64 * "a", "language": 64 * "b", "base": 64 * "c"}
KEYS = {
    layer_swap(4, 1, 1, 1, weight=0.3): "194e2ef0ecb776f3a34fd47b5bb51207704227940951f4968d2189ec0783db63",
    uniform(4, 0, "math"): "5dbb7b2c6fba90dc4ad09e7b3eb685801c325b50df1f88604cb981e046934325",
    uniform(4, 1, "language"): "298ceb59fda3b4cb6f9f3a4e80ad4d7bd3d0a9f383852d13528198fbf73ed948",
    uniform(4, 0.5, "soup"): "9f272d6f18d7ed9a7b5b909695603a2693847a80e5de92d6e0ef52df973d3359",
    TaskVectors("sum", "task arithmetic", 0.4, 0.7): "f3a5174ddfd17e92f8542680289de9c0159e49cc95fd7fa3b83e8341b19d62dc",
    TaskVectors("ties", "ties", density=0.3, scale=0.8): (
        "2c6588925b33eedbee2dac9b81054a1ee22ea795d6f19aaab31901c46259c07f"
    ),
}


@pytest.mark.parametrize("plan", KEYS, ids=lambda plan: plan.name)
def test_keys_are_those_of_earlier_versions(plan):
    assert merge_key(DIGESTS, plan, "torch.bfloat16") == KEYS[plan]


def test_a_merge_of_one_model_with_itself_has_that_models_key():
    digests = DIGESTS | {"language": DIGESTS["math"]}
    keys = {merge_key(digests, plan, "torch.bfloat16") for plan in KEYS if isinstance(plan, Plan)}
    assert keys == {KEYS[uniform(4, 0, "math")]}
