"""Checkpoints: headers, digests of content, and which differences keep two experts from being merged."""

import pytest
import torch
from conftest import split, tensors
from test_merge import NORM, config

from layerswap import checkpoint
from layerswap.paths import UserError


def test_digest_is_of_content_not_of_layout(experts, tmp_path):
    stored, digests = tensors(experts[0]), []
    names = sorted(stored)
    split(tmp_path / "1", {"a.safetensors": names}, stored)
    split(tmp_path / "2", {"b.safetensors": names[::2], "a.safetensors": names[1::2]}, stored)
    for folder in (tmp_path / "1", tmp_path / "2"):
        digests.append(checkpoint.digest(folder))
    assert digests == [checkpoint.digest(experts[0])] * 2
    name = names[5]
    zero = torch.zeros_like(stored[name])
    changed = {
        "a bit": {name: zero},
        "the sign of zero": {name: -zero},
        "a shape": {name: zero.reshape(1, -1)},
        "a dtype": {name: zero.view(torch.int32)},
        "a name": {name + "x": zero},
    }
    for tensor in changed.values():
        data = {n: t for n, t in stored.items() if n != name} | tensor
        split(tmp_path / "1", {"a.safetensors": data}, data)
        digests.append(checkpoint.digest(tmp_path / "1"))
    assert len(set(digests)) == 1 + len(changed)


def test_storage_fields_may_differ(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    config(use_cache=False, transformers_version="4.0.0", _name_or_path="elsewhere")(math, language)
    checkpoint.check_fit(math, language)


def test_vocabulary_files_without_a_tokenizer_json(tmp_path, checkpoint_factory):
    folders = [checkpoint_factory("math", 1), checkpoint_factory("language", 2)]
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    checkpoint.check_fit(*folders)
    (folders[1] / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(UserError, match="tokenizer.model"):
        checkpoint.check_fit(*folders)


def test_a_file_that_shrinks_while_read_is_an_error(checkpoint_factory):
    folder = checkpoint_factory("math")
    tensor = checkpoint.read_header(folder)[NORM]
    (folder / "model.safetensors").write_bytes(tensor.file.read_bytes()[: tensor.end - 1])
    with pytest.raises(UserError, match="ended at byte"):
        list(checkpoint.read_pieces(tensor))


def test_layer_count(experts):
    assert checkpoint.layer_count(experts[0]) == 4
