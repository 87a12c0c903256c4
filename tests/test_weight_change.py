"""Parameter change against loaded models, its memory, and the test of thirds against scipy."""

import importlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_ind
from transformers import AutoModelForCausalLM

from layerswap.errors import UserError
from layerswap.experts.weight_change import THIRDS, compare_thirds, thirds, weight_change
from layerswap.files import ROOT


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("expert") / "expert", 1, shard=20000)


def test_change_equals_float64_on_loaded_models(base, expert, monkeypatch):
    module = importlib.import_module("layerswap.experts.weight_change")  # the face has the function under this name
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 100)  # several blocks a tensor
    before, after = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float64).state_dict() for f in (base, expert))
    frame = weight_change(base, expert).set_index(["layer", "matrix"])
    assert list(frame.loc[2].index) == ["q", "k", "v", "o", "gate", "up", "down", "norm"]
    assert list(frame.index[:1]) == [(-1, "non_layer")]
    layer = "model.layers.2"
    for key, names in {
        (2, "k"): [f"{layer}.self_attn.k_proj.weight"],
        (2, "down"): [f"{layer}.mlp.down_proj.weight"],
        (2, "norm"): [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"],
        (-1, "non_layer"): ["model.embed_tokens.weight", "model.norm.weight"],
    }.items():
        old, new = (torch.cat([state[name].flatten() for name in names]) for state in (before, after))
        assert frame.loc[key, "mean_absolute"] == pytest.approx((new - old).abs().mean().item(), rel=1e-9)
        assert frame.loc[key, "relative"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-9)
    assert len(frame) == 4 * 8 + 1


def test_change_of_nothing_is_zero(base):
    assert (weight_change(base, base)[["mean_absolute", "relative"]] == 0).all(axis=None)


@pytest.mark.parametrize("other", [{"layers": 5}, {"intermediate_size": 50}, {"tied": False}])
def test_change_refuses_other_tensors(base, checkpoint_factory, other):
    with pytest.raises(UserError, match="tensor (model.layers|lm_head).*expected the same"):
        weight_change(base, checkpoint_factory("other", **other))


def test_what_is_no_weight_is_not_counted(base, expert, tmp_path):
    old = shutil.copytree(base, tmp_path / "old")  # as a hub's base of a version that stored more
    weights = load_file(old / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, old / "model.safetensors", {"format": "pt"})
    pd.testing.assert_frame_equal(weight_change(old, expert), weight_change(base, expert))


def test_change_refuses_numbers_that_are_no_floats(base, tmp_path):
    other = write_checkpoint(tmp_path / "other", dtype=torch.bfloat16)
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    with pytest.raises(UserError, match="I16 numbers have no change to measure"):
        weight_change(base, other)


MEMORY = """
import sys, torch, transformers
from layerswap.experts.weight_change import weight_change
memory = lambda: [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("VmHWM", "VmRSS"))]
before = memory()[1]
weight_change(sys.argv[1], sys.argv[2])
print(1024 * (memory()[0] - before))
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Two checkpoints of 170 MB, most of it one tensor."""
    folders = [
        write_checkpoint(tmp_path / str(i), i, layers=1, vocab_size=1_300_000, dtype=torch.float32) for i in (0, 1)
    ]
    command = [sys.executable, "-c", MEMORY, *map(str, folders)]
    n_bytes = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert n_bytes < 50e6


def frame(values):
    """A frame as of ``weight_change``: the mean absolute change of each layer's one matrix, and a non-layer tensor."""
    rows = [(i, "q", 10, value, 0.0) for i, value in enumerate(values)] + [(-1, "non_layer", 10, 99.0, 0.0)]
    return pd.DataFrame(rows, columns=["layer", "matrix", "n", "mean_absolute", "relative"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3], [1 / 6, 2 / 6, 3 / 6]), ([1, 1, 1, 1], [0.5, 0.25, 0.25]), ([2, 1], [2 / 3, 1 / 3, 0]),
     ([1] * 8, [3 / 8, 3 / 8, 2 / 8]), ([1] * 30, [1 / 3, 1 / 3, 1 / 3])],
)  # fmt: skip
def test_thirds(values, expected):
    shares = thirds(frame(values))
    assert list(shares.third) == ["bottom", "middle", "top"]
    assert list(shares.share) == pytest.approx(expected)
    n_layers = np.bincount([i * 3 // len(values) for i in range(len(values))], minlength=3)
    assert list(shares.of_weights) == pytest.approx(list(n_layers / len(values)))


def test_thirds_are_compared_by_welch_over_seeds():
    rng = np.random.default_rng(0)
    shares = pd.DataFrame([{"expert": e, "seed": s, "third": t, "share": rng.normal(0.3 + 0.1 * (e == "sw"), 0.02)}
                           for e in ("math", "sw") for s in range(4) for t in THIRDS])  # fmt: skip
    table = compare_thirds(shares, "sw").set_index("third")
    for third, row in table.iterrows():
        a, b = (shares[(shares.expert == e) & (shares.third == third)].share for e in ("sw", "math"))
        test = ttest_ind(a, b, equal_var=False)
        assert (row.difference, row.p) == pytest.approx((a.mean() - b.mean(), test.pvalue))
        assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval()))
        assert row.p <= row.p_holm <= 3 * row.p
    alone = compare_thirds(shares[shares.seed == 0], "sw")
    assert alone[["low", "high", "p", "p_holm"]].isna().all(axis=None) and alone.difference.notna().all()
