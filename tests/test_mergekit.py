"""Plans to and from mergekit's YAML. That mergekit makes the same weights of it is checked by benchmarks/merge.py."""

import pytest
import yaml
from hypothesis import given, strategies as st

from layerswap.errors import UserError
from layerswap.merging.mergekit import from_mergekit, to_mergekit
from layerswap.merging.plans import Plan, layer_swap

LANGUAGE_WEIGHTS = st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.3, 1 / 3])


@given(st.lists(LANGUAGE_WEIGHTS, min_size=1, max_size=12), LANGUAGE_WEIGHTS, st.sampled_from(["math", "language"]))
def test_round_trip(layers, non_layer_weight, donor):
    plan = Plan("x", tuple(layers), non_layer_weight)
    data = yaml.safe_load(yaml.safe_dump(to_mergekit(plan, "a/math", "a/language", "bfloat16", donor)))
    assert data["base_model"] == f"a/{donor}"
    again = from_mergekit(data, "a/math", "a/language", "x")
    assert again.layers == pytest.approx(plan.layers, abs=1e-15)
    assert again.non_layer_weight == pytest.approx(non_layer_weight, abs=1e-15)
    assert again.layer_map() == plan.layer_map()


def test_a_handwritten_configuration():
    text = """
merge_method: linear
dtype: bfloat16
base_model: lang
slices:
  - sources: [{model: lang, layer_range: [0, 4], parameters: {weight: 1.0}}]
  - sources:
      - {model: lang, layer_range: [4, 6], parameters: {weight: 1}}
      - {model: math, layer_range: [4, 6], parameters: {weight: 3}}
  - sources: [{model: math, layer_range: [6, 20], parameters: {weight: 1.0}}]
  - sources: [{model: lang, layer_range: [20, 24], parameters: {weight: 2.0}}]
"""
    plan = from_mergekit(yaml.safe_load(text), "math", "lang")
    assert plan.layers == (1.0,) * 4 + (0.25,) * 2 + (0.0,) * 14 + (1.0,) * 4 and plan.non_layer_weight == 1


def edited(edit):
    """The configuration of a swap after an edit."""
    data = to_mergekit(layer_swap(8, 2, 1, 1, 1), "math", "language", "bfloat16")
    return edit(data) or data


def source(i, j=0):
    """Source j of slice i."""
    return lambda data: data["slices"][i]["sources"][j]


BAD = {
    "another method": (lambda d: d.update(merge_method="ties"), "merge_method is 'ties'"),
    "no method": (lambda d: d.pop("merge_method") and None, "merge_method is None"),
    "an unknown field": (lambda d: d.update(tokenizer_source="union"), "'tokenizer_source' cannot be read"),
    "global weights": (lambda d: d.update(parameters={"weight": 0.5}), "parameters is"),
    "not normalized": (lambda d: d.update(parameters={"normalize": False}), "parameters is"),
    "no slices": (lambda d: d.update(slices=[]), r"slices is \[\]"),
    "a slice without sources": (lambda d: d["slices"].insert(1, {}), r"slices\[1\]: expected only sources"),
    "two ranges in a slice": (lambda d: source(0, 1)(d).update(layer_range=[1, 1]), r"slices\[0\]: .*one layer_range"),
    "a layer left out": (lambda d: source(1)(d).update(layer_range=[1, 2]), r"slices\[1\]: layer_range is \[1, 2\]"),
    "a layer twice": (lambda d: d["slices"].insert(2, d["slices"][1]), r"slices\[2\]: .*expected to start at 2"),
    "a third model": (lambda d: source(1)(d).update(model="other"), "model is 'other', expected math or language"),
    "a filter": (lambda d: source(1)(d).update(parameters={"weight": [{"filter": "mlp", "value": 1}]}), "weight is"),
    "a scale": (lambda d: source(1)(d).update(parameters={"weight": 1, "scale": 0.0}), "only model, layer"),
    "a setting of a slice": (lambda d: d["slices"][1].update(parameters={"normalize": False}), "expected only sources"),
    "an unknown key": (lambda d: source(1)(d).update(density=1), "only model, layer_range and a weight"),
    "settings in words": (lambda d: source(1)(d).update(parameters="abc"), "only model, layer_range and a weight"),
    "a range in words": (lambda d: source(1)(d).update(layer_range=["0", "2"]), r"slices\[1\]: expected only sources"),
    "a range without end": (lambda d: source(1)(d).update(layer_range=[0, 10**12]), r"slices\[1\]: expected only"),
    "a weight beyond numbers": (lambda d: source(1)(d).update(parameters={"weight": 10**400}), "weight is 1000"),
    "keys of two kinds": (lambda d: d.update({1: 2, "zz": 3}), "cannot be read"),
    "no weight": (lambda d: source(1)(d).pop("parameters") and None, "weight is None"),
    "a negative weight": (lambda d: source(1)(d).update(parameters={"weight": -1}), "weight is -1"),
    "no weight at all": (lambda d: source(1)(d).update(parameters={"weight": 0}), "is no mean"),
    "two weights outside": (lambda d: d["slices"].pop(0) and None, "one weight outside the layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_a_plan_cannot_express_is_named(case):
    edit, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        from_mergekit(edited(edit), "math", "language")
    assert "\n" not in str(error.value)


def test_passthrough_takes_one_source():
    data = to_mergekit(layer_swap(8, 2, 1, non_layer_weight=1), "math", "language", "bfloat16")
    assert data["merge_method"] == "passthrough"
    data["slices"][1]["sources"] *= 2
    with pytest.raises(UserError, match="passthrough of 2 sources"):
        from_mergekit(data, "math", "language")
