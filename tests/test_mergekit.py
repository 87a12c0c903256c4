"""Plans to and from mergekit's YAML. That mergekit makes the same weights of it is checked by benchmarks/merge.py."""

import pytest
import yaml
from hypothesis import given, strategies as st

from layerswap.errors import UserError
from layerswap.merging.mergekit import from_mergekit, to_mergekit
from layerswap.merging.plans import Plan, layer_swap, uniform
from layerswap.merging.task_vectors import TaskVectors

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


def test_without_a_dtype_mergekit_keeps_that_of_the_experts():
    plan = layer_swap(8, 2, 1, 1, 1)
    assert "dtype" not in to_mergekit(plan, "math", "language")
    assert to_mergekit(plan, "math", "language", "float16")["dtype"] == "float16"


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
    "another method": (lambda d: d.update(merge_method="slerp"), "merge_method is 'slerp'"),
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
    "layers of a whole model": (
        lambda d: d.pop("slices") and d.update(models=[{"model": "math", "layer_range": [0, 2]}]), "only model and a",
    ),
    "a name that is no path": (lambda d: source(1)(d).update(model="math\0"), "model is 'math"),
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


def models_of(method, math=None, language=None, **fields):
    """A configuration over whole models, as most people write them."""
    models = [{"model": "math", "parameters": math}, {"model": "lang", "parameters": language}]
    return {"merge_method": method, "models": [model for model in models if model["parameters"] is not None], **fields}


MODELS = {
    "linear": (models_of("linear", {"weight": 0.6}, {"weight": 0.4}), uniform(4, 0.4, "x")),
    "linear of any sum": (models_of("linear", {"weight": 3}, {"weight": 1}), uniform(4, 0.25, "x")),
    "one model": (models_of("passthrough", language={}), uniform(4, 1, "x")),
    "task arithmetic": (
        models_of("task_arithmetic", {"weight": 0.7}, {"weight": 0.3}, base_model="base", dtype="bfloat16"),
        TaskVectors("x", "task arithmetic", 0.7, 0.3),
    ),
    "one weight for both": (
        models_of("task_arithmetic", {}, {}, base_model="base", parameters={"weight": 0.5, "lambda": 0.9}),
        TaskVectors("x", "task arithmetic", 0.5, 0.5, scale=0.9),
    ),
    "ties": (
        models_of("ties", {"weight": 1, "density": 0.5}, {"weight": 2, "density": 0.5}, base_model="base",
                  parameters={"normalize": True, "int8_mask": True}),
        TaskVectors("x", "ties", 1, 2, density=0.5),
    ),
    "ties with the base in the list": (
        {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.3},
         "models": [{"model": "base"}, {"model": "lang"}, {"model": "math", "parameters": None}]},
        TaskVectors("x", "ties", density=0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_whole_models(case):
    data, plan = MODELS[case]
    data = yaml.safe_load(yaml.safe_dump(data))
    assert from_mergekit(data, "math", "lang", "x", base="base", n_layers=4) == plan


TIES = models_of("ties", {"density": 0.5}, {"density": 0.5}, base_model="base")
BAD_MODELS = {
    "models and slices": (models_of("linear", {"weight": 1}) | {"slices": []}, "models and slices"),
    "no depth": (models_of("linear", {"weight": 1}), "how many layers?"),
    "a gradient": (models_of("linear", {"weight": [0, 1]}), r"weight is \[0, 1\]"),
    "a third model": (TIES | {"models": [{"model": "other"}]}, "model is 'other', expected math or lang"),
    "models in words": (TIES | {"models": "math"}, "models is 'math', expected a list"),
    "no models": (TIES | {"models": None}, "models is None, expected a list"),
    "two densities": (models_of("ties", {"density": 0.5}, {"density": 1}, base_model="base"), "densities are"),
    "only the base": (TIES | {"models": [{"model": "base"}]}, "densities are"),
    "another base": (TIES | {"base_model": "other"}, "base_model is 'other', expected base"),
    "ties as a sum": (TIES | {"parameters": {"normalize": False}}, "normalize is False of ties, expected True"),
    "task arithmetic as a mean": (
        models_of("task_arithmetic", {}, base_model="base", parameters={"normalize": True}),
        "normalize is True of task_arithmetic, expected False",
    ),
    "an unknown parameter": (TIES | {"parameters": {"epsilon": 1}}, "parameters is .*'epsilon'"),
    "a parameter of one model": (models_of("ties", {"gamma": 1}, base_model="base"), r"models\[0\]: parameters is"),
    "a key of one model": (TIES | {"models": [{"model": "math", "weight": 1}]}, r"models\[0\]: has 'weight'"),
    "a negative weight": (models_of("ties", {"weight": -1}, base_model="base"), r"models\[0\]: weight is -1"),
    "a method that is a list": (TIES | {"merge_method": ["ties"]}, r"merge_method is \['ties'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
def test_whole_models_that_no_plan_expresses_are_named(case):
    data, message = BAD_MODELS[case]
    with pytest.raises(UserError, match=message) as error:
        from_mergekit(data, "math", "lang", base="base")
    assert "\n" not in str(error.value)
