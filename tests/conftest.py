"""Shared fixtures: tiny random Llama checkpoints with a word-level tokenizer."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "<pad> <eos> <unk> zero one two three four five six seven plus minus is . #### Asha has apples".split()
# Tests of kernels run on each; the expected numbers are a CPU's wherever they can be.
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
# Bits that arithmetic would not keep: -0.0, and a NaN with a payload.
SPECIAL = {
    torch.float32: (-(2**31), 0x7FC12345),
    torch.bfloat16: (-(2**15), 0x7FD5),
    torch.float16: (-(2**15), 0x7E55),
}


def word_tokenizer(words=WORDS):
    """A fast tokenizer of whole words, without special tokens around the text."""
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def write_checkpoint(folder, seed=0, *, layers=4, tied=True, dtype=torch.float32, special=False, shard=None, **config):
    """A tiny random Llama (hidden 32, 4 heads, 2 key-value heads) with its tokenizer; returns ``folder``.

    special: every tensor gets a -0.0 and a NaN with a payload. shard: bytes of the largest shard. config: further
    fields of LlamaConfig.
    """
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # large enough for the layers to matter
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings | config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start at 1: make them differ between experts
                parameter += 0.1 * torch.randn_like(parameter)
        model.to(dtype)
        for parameter in model.parameters() if special else ():
            integers = parameter.view(INTEGERS[dtype]).view(-1)
            integers[seed % 5], integers[5 + seed % 5] = SPECIAL[dtype]
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    word_tokenizer().save_pretrained(folder)
    return folder


def bits(tensor):
    """A tensor's bytes as a numpy array: equal only if every bit is (NaN, -0.0)."""
    if not tensor.numel():
        return np.zeros(0, np.uint8)
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def tensors(folder):
    """name -> tensor of a folder, read by the safetensors library."""
    weights = {}
    for file in Path(folder).glob("*.safetensors"):
        weights |= load_file(file)
    return weights


def same_bits(a, b):
    """Whether two tensors are equal in every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bits(a), bits(b))


def split(folder, shards, data):
    """Write ``data`` (name -> tensor) to a folder as shards (file -> names) with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    for shard, names in shards.items():
        save_file({name: data[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def checkpoint_factory(tmp_path):
    """write_checkpoint into tmp_path / name."""
    return lambda name, *args, **kwargs: write_checkpoint(tmp_path / name, *args, **kwargs)


@pytest.fixture(scope="session")
def experts(tmp_path_factory):
    """(math, language): two float32 experts with tied embeddings; shared, so never written to."""
    folder = tmp_path_factory.mktemp("experts")
    return write_checkpoint(folder / "math", 1), write_checkpoint(folder / "language", 2)


# Files of fast tests, for ``make check``: none trains, generates or starts processes.
FAST = set(
    "architecture arithmetic cost error_analysis experiments extraction files lab manifest mergekit mgsm "
    "msvamp plans report statistics task_vectors terminal".split()
)


def is_fast(path):
    """Whether a test file is one of the fast ones."""
    return path.stem.removeprefix("test_") in FAST


def pytest_ignore_collect(collection_path, config):
    """With ``-m fast`` the other files are not even imported: some need seconds for that."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py" and not is_fast(collection_path):
        return True


def pytest_collection_modifyitems(items):
    """Mark the tests of fast files, but for those marked slow; the longest of all comes first, beside all others."""
    items.sort(key=lambda item: item.path.stem != "test_scale")
    for item in items:
        if is_fast(item.path) and not item.get_closest_marker("slow"):
            item.add_marker("fast")


def pytest_collection_finish():
    """Keep what was imported from the garbage collector, which statsmodels runs in every correction of p-values."""
    gc.freeze()
