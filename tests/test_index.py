"""The index of a profile's experts: written and read again, the models of each role, and experts that are given."""

import json
import os
from dataclasses import replace

import pytest
from conftest import write_checkpoint

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.experts import index as index_module
from layerswap.experts.index import (
    ExpertIndex,
    count_layers,
    expert_for_role,
    first_pair,
    load_index,
    resolve_experts,
    save_index,
    seed_pairs,
)
from layerswap.files import ROOT
from layerswap.lab.world import BASE, DATA
from layerswap.run.profiles import find_base


@pytest.fixture
def index(tmp_path, monkeypatch):
    """base, math, sw and te under a project of their own; the index is saved as profile "p"."""
    monkeypatch.setattr(index_module, "ROOT", tmp_path)
    monkeypatch.setattr(index_module, "BUILD", tmp_path / "build")
    folders = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(["base", "math", "sw", "te"])}
    base = folders.pop("base")
    index = ExpertIndex(source="lab", seeds=[1], base=base, experts={name: [path] for name, path in folders.items()})
    save_index("p", index)
    return index


@pytest.fixture
def larger_index(tmp_path):
    """Two seeds, frozen and joint models; no folder is there."""
    names = {"experts": ("math", "sw"), "frozen": ("math", "sw"), "joint": ("sw",)}
    groups = {
        group: {name: [tmp_path / f"{group}-{name}-{seed}" for seed in (5, 7)] for name in members}
        for group, members in names.items()
    }
    return ExpertIndex(source="lab", seeds=[5, 7], base=tmp_path / "base", **groups)


def test_index_round_trip(index, tmp_path):
    assert load_index("p") == index
    content = json.loads((tmp_path / "build" / "p" / "experts.json").read_text())
    assert list(content) == ["source", "seeds", "note", "folders", "digests"]
    assert content["folders"]["experts"]["sw"] == ["sw"], "folders are relative to the project"
    digests = {name: [weights_digest(tmp_path / name)] for name in ("base", "math", "sw", "te")}
    assert content["digests"]["base"] | content["digests"]["experts"] == digests
    assert count_layers(load_index("p")) == 4


def test_the_note_is_that_of_the_models(index):
    (index.base / "provenance.json").write_text(json.dumps({"note": "dequantised from 4 bit"}))
    (index.experts["sw"][0] / "provenance.json").write_text(json.dumps({"note": "dequantised from 4 bit"}))
    save_index("p", index)
    assert load_index("p") == replace(index, note="dequantised from 4 bit")


def test_without_an_index_the_notebook_to_run_is_named(index):
    with pytest.raises(UserError, match="build/q/experts.json is missing: run notebook 01_experts"):
        load_index("q")


@pytest.mark.parametrize(
    ("role", "language", "folder"),
    [("base", "sw", "base"), ("math", "sw", "experts-math-7"), ("language", "sw", "experts-sw-5"),
     ("language", "en", "experts-math-7"), ("joint", "sw", "joint-sw-5"), ("frozen math", "sw", "frozen-math-7"),
     ("frozen language", "sw", "frozen-sw-5")],
)  # fmt: skip
def test_the_model_of_each_role(larger_index, role, language, folder):
    assert expert_for_role(larger_index, role, language, math_seed=1, language_seed=0).name == folder


def test_pairs_of_experts(larger_index):
    assert [folder.name for folder in first_pair(larger_index, "sw")] == ["experts-math-5", "experts-sw-5"]
    assert seed_pairs(larger_index, "1x1") == [(0, 0)]
    assert seed_pairs(larger_index, "2x1") == [(0, 0), (1, 0)]
    assert seed_pairs(larger_index, "2x2") == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("pairs", ["3x1", "1x3", "0x1", "2", "all"])
def test_pairs_that_there_are_not(larger_index, pairs):
    with pytest.raises(UserError, match=rf"pairs is '{pairs}', expected .* such as 2x2"):
        seed_pairs(larger_index, pairs)


@pytest.mark.parametrize(
    ("role", "language", "message"),
    [("language", "te", "language 'te' has no expert, expected one of sw"), ("joint", "te", "'te' has no expert")],
)
def test_an_expert_that_is_not_there(larger_index, role, language, message):
    with pytest.raises(UserError, match=message):
        expert_for_role(larger_index, role, language)
    with pytest.raises(UserError, match="joint models were not trained: add 'joint' to `baselines` of 01_experts"):
        expert_for_role(replace(larger_index, joint={}), "joint", "sw")


def test_named_experts_are_found_from_the_project():
    lab = os.path.relpath(BASE, ROOT)
    assert resolve_experts(DATA, [], [], ["sw", "te"], [1, 2]) == dict.fromkeys(["math", "sw", "te"], [None, None])
    experts = resolve_experts(DATA, [lab], [str(BASE), lab], ["sw", "te"], [7])
    assert experts == dict.fromkeys(["math", "sw", "te"], [BASE])


@pytest.mark.parametrize(
    ("math_experts", "language_experts", "seeds", "message"),
    [
        (
            ["/no/such/model"],
            [],
            [1],
            "model '/no/such/model': /no/such/model holds no config.json; a model on the hub",
        ),
        ([], ["a", "b"], [1], "language_experts has 2 models, expected one"),
        (["a"], [], [1, 2], r"math_experts has 1 .* of seeds \[1, 2\], or none"),
    ],
)
def test_experts_that_cannot_be_used(math_experts, language_experts, seeds, message):
    with pytest.raises(UserError, match=message) as error:
        resolve_experts(DATA, math_experts, language_experts, ["sw"], seeds)
    assert "\n" not in str(error.value)


def test_a_base_that_is_no_model():
    with pytest.raises(
        UserError, match="model '/no/such/model': /no/such/model holds no config.json; a model on the hub"
    ):
        find_base("/no/such/model")


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_differ(seeds):
    with pytest.raises(UserError, match="seeds is .*, expected one or more, each another"):
        resolve_experts(DATA, [], [], ["sw"], seeds)


def test_baselines_exist():
    with pytest.raises(UserError, match="baselines has 'merged', expected of joint, frozen"):
        resolve_experts(DATA, [], [], ["sw"], [1], ["joint", "merged"])


def test_experts_of_the_last_profile_stand_in_for_those_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "BUILD", tmp_path)
    assert index_module.profile_with_experts("draft") == "draft", "the message about it names the draft"
    for age, name in enumerate(["mine", "lab"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experts.json").write_text("{}")
        os.utime(tmp_path / name / "experts.json", (1000 - age, 1000 - age))
    assert index_module.profile_with_experts("draft") == "mine"
    assert index_module.profile_with_experts("lab") == "lab"
