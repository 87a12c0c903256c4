"""Checkpoints: headers, digests of content, and which differences keep two experts from being merged."""

import json

import pytest
import torch
from conftest import split, tensors

from layerswap.checkpoints import compatibility, safetensors
from layerswap.errors import UserError

NORM = "model.norm.weight"


def test_digest_is_of_content_not_of_layout(experts, tmp_path):
    weights, digests = tensors(experts[0]), []
    names = sorted(weights)
    split(tmp_path / "1", {"a.safetensors": names}, weights)
    split(tmp_path / "2", {"b.safetensors": names[::2], "a.safetensors": names[1::2]}, weights)
    for folder in (tmp_path / "1", tmp_path / "2"):
        digests.append(safetensors.weights_digest(folder))
    assert digests == [safetensors.weights_digest(experts[0])] * 2
    name = names[5]
    zero = torch.zeros_like(weights[name])
    changes = {
        "a bit": {name: zero},
        "the sign of zero": {name: -zero},
        "a shape": {name: zero.reshape(1, -1)},
        "a dtype": {name: zero.view(torch.int32)},
        "a name": {name + "x": zero},
    }
    for change in changes.values():
        changed = {key: tensor for key, tensor in weights.items() if key != name} | change
        split(tmp_path / "1", {"a.safetensors": changed}, changed)
        digests.append(safetensors.weights_digest(tmp_path / "1"))
    assert len(set(digests)) == 1 + len(changes)


def test_storage_fields_may_differ(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    config = json.loads((language / "config.json").read_text())
    config |= {"use_cache": False, "transformers_version": "4.0.0", "_name_or_path": "elsewhere"}
    (language / "config.json").write_text(json.dumps(config))
    compatibility.check_compatible(math, language)


def test_vocabulary_files_without_a_tokenizer_json(tmp_path, checkpoint_factory):
    folders = [checkpoint_factory("math", 1), checkpoint_factory("language", 2)]
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    compatibility.check_compatible(*folders)
    (folders[1] / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(UserError, match="tokenizer.model"):
        compatibility.check_compatible(*folders)


def test_a_file_that_shrinks_while_read_is_an_error(checkpoint_factory):
    folder = checkpoint_factory("math")
    tensor = safetensors.read_header(folder)[NORM]
    (folder / "model.safetensors").write_bytes(tensor.file.read_bytes()[: tensor.end - 1])
    with pytest.raises(UserError, match="ended at byte"):
        list(safetensors.read_chunks(tensor))
