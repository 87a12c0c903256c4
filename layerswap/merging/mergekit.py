"""Plans as mergekit YAML, so that a merge can be repeated with, or brought in from, the tool most people know.

Written for mergekit 0.1.5. Its ``passthrough`` copies bits; its ``linear`` calculates everywhere, which turns -0.0 into
+0.0 in copied tensors and can round a mixed element the other way.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

from layerswap.errors import UserError
from layerswap.merging.plans import Plan, check_nonnegative, uniform
from layerswap.merging.task_vectors import MergePlan, TaskVectors

MAX_LAYERS = 100_000  # of a model; more are a mistake
FIELDS = {"merge_method", "base_model", "dtype", "out_dtype", "slices", "models", "parameters"}
METHOD_NAMES = {"task_arithmetic": "task arithmetic", "ties": "ties"}  # mergekit's -> ours


def to_mergekit(
    plan: MergePlan, math: str | Path, language: str | Path, dtype: str | None = None, donor: str = "math"
) -> dict[str, Any]:
    """The mergekit configuration that makes the same weights.

    Non-layer weights are pinned by a slice of no layers at either end, because mergekit takes them from the sources of
    the first and the last slice.

    Args:
        plan: a ``Plan``.
        math: the math expert's folder or name.
        language: the language expert's folder or name.
        dtype: of the experts, "bfloat16", "float16" or "float32"; None: not written, and mergekit keeps each tensor's.
        donor: "math" or "language", whose config and tokenizer the result gets.

    Returns:
        JSON-able data for ``yaml.safe_dump``.

    Raises:
        UserError: task vectors, or two models of one name.
    """
    if not isinstance(plan, Plan):
        raise UserError(f"plan {plan.name!r} is {plan.method}: only slices are written for mergekit")
    if str(math) == str(language):
        raise UserError(f"{math}: is both the math and the language model, expected two names")
    exact = {*plan.layers, plan.non_layer_weight} <= {0, 1}

    def layer_slice(start: int, end: int, weight: float) -> dict[str, Any]:
        sources = []
        for model, model_weight in ((language, weight), (math, 1 - weight)):
            if model_weight:
                parameters = {} if exact else {"parameters": {"weight": model_weight}}
                sources.append({"model": str(model), "layer_range": [start, end], **parameters})
        return {"sources": sources}

    slices, start = [layer_slice(0, 0, plan.non_layer_weight)], 0
    for weight, layers in groupby(plan.layers):
        end = start + len(list(layers))
        slices.append(layer_slice(start, end, weight))
        start = end
    return {
        "merge_method": "passthrough" if exact else "linear",
        "base_model": str(math if donor == "math" else language),
        **({} if dtype is None else {"dtype": dtype}),
        "slices": [*slices, layer_slice(0, 0, plan.non_layer_weight)],
    }


def from_mergekit(
    data: dict[str, Any], math: str | Path, language: str | Path, name: str = "mergekit plan", *,
    base: str | Path | None = None, n_layers: int | None = None,
) -> MergePlan:  # fmt: skip
    """The plan of a mergekit configuration that means one.

    Read: ``passthrough`` and ``linear``, of slices over the layers of two models in their order or of whole models;
    ``task_arithmetic`` and ``ties`` of whole models. dtype and out_dtype play no part, nor does base_model but for task
    vectors: config and tokenizer come from the donor, dtypes from the experts.

    Args:
        data: the configuration.
        math: the math expert's name in it; two paths to one folder count as equal.
        language: the language expert's name in it.
        name: of the plan.
        base: the base model's name in it, for task vectors; None: any.
        n_layers: depth of the models, for means of whole models.

    Returns:
        The plan.

    Raises:
        UserError: what a plan cannot express, by name: other methods and fields, other models, filters, gradients,
            layers left out, repeated or moved.
    """
    if unknown := sorted(set(data) - FIELDS, key=str):
        raise UserError(f"field {unknown[0]!r} cannot be read, expected only {', '.join(sorted(FIELDS))}")
    method, models = data.get("merge_method"), data.get("models")
    if not isinstance(method, str) or method not in ("passthrough", "linear", *METHOD_NAMES):
        expected = f"expected one of passthrough, linear, {', '.join(METHOD_NAMES)}"
        raise UserError(f"merge_method is {method!r}, {expected}")
    if models is not None and data.get("slices") is not None:
        raise UserError("there are models and slices, expected one of them")
    if method in METHOD_NAMES:
        return task_vectors_of(data, math, language, base, name)
    if (data.get("parameters") or {}) not in ({}, {"normalize": True}):
        raise UserError(f"parameters is {data['parameters']!r}, expected none, or normalize: true")
    if models is not None:
        weight = language_weight(check_models(models), method, math, language, "models")
        if n_layers is None:
            raise UserError("how many layers? expected --layers N or --model DIR beside the models of mergekit")
        return uniform(n_layers, weight, name)
    slices = data.get("slices")
    if not isinstance(slices, list) or not slices:
        raise UserError(f"slices is {slices!r}, expected a list")
    layers: list[float] = []
    weights: list[float] = []  # of the slices
    for i, layer_slice in enumerate(slices):
        try:
            ((start, end),) = {tuple(source["layer_range"]) for source in layer_slice["sources"]}
            if set(layer_slice) != {"sources"} or {type(start), type(end)} != {int} or end > MAX_LAYERS:
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise UserError(f"slices[{i}]: expected only sources, with one layer_range [start, end)") from None
        if start != end and start != len(layers) or not 0 <= start <= end:
            raise UserError(f"slices[{i}]: layer_range is [{start}, {end}], expected to start at {len(layers)}")
        weights.append(language_weight(layer_slice["sources"], method, math, language, f"slices[{i}]"))
        layers += [weights[-1]] * (end - start)
    if weights[0] != weights[-1]:
        ends = f"the first slice gives the embeddings weight {weights[0]}, the last the head {weights[-1]}"
        raise UserError(f"{ends}, expected one weight outside the layers")
    return Plan(name, tuple(layers), weights[0])


def check_models(models: Any) -> list[dict[str, Any]]:
    """``models`` of a configuration. UserError unless it is a list of tables."""
    if not isinstance(models, list) or not models or not all(isinstance(model, dict) for model in models):
        raise UserError(f"models is {models!r}, expected a list with a model and its parameters in each entry")
    return models


def task_vectors_of(
    data: dict[str, Any], math: str | Path, language: str | Path, base: str | Path | None, name: str
) -> TaskVectors:
    """The plan of task arithmetic or TIES of whole models. UserError for what it cannot express."""
    method, shared = data["merge_method"], {"weight": 1.0, "density": 1.0, "lambda": 1.0}
    shared |= check_table("parameters", data.get("parameters"), {*shared, "normalize", "int8_mask"})
    is_normalized = method == "ties"  # what mergekit does where nothing is said; a plan of ours always does
    if shared.pop("normalize", is_normalized) is not is_normalized:
        raise UserError(f"normalize is {not is_normalized} of {method}, expected {is_normalized}")
    if base is not None and not same_model(data.get("base_model"), base):
        raise UserError(f"base_model is {data.get('base_model')!r}, expected {base}")
    weights, densities = {"math": 0.0, "language": 0.0}, set()
    for i, model in enumerate(check_models(data.get("models"))):
        if unknown := model.keys() - {"model", "parameters"}:
            raise UserError(f"models[{i}]: has {min(unknown, key=str)!r}, expected only model and parameters")
        own = shared | check_table(f"models[{i}]: parameters", model.get("parameters"), {"weight", "density"})
        if role := role_of(model.get("model"), math, language):
            weights[role] += check_nonnegative(f"models[{i}]: weight", own["weight"])
            densities.add(check_nonnegative(f"models[{i}]: density", own["density"]))
        elif not same_model(model.get("model"), data.get("base_model", "")):
            raise UserError(f"models[{i}]: model is {model.get('model')!r}, expected {math} or {language}")
    if len(densities) != 1:
        raise UserError(f"densities are {sorted(densities)}, expected one for both experts")
    return TaskVectors(
        name, METHOD_NAMES[method], **weights, density=min(densities) if method == "ties" else 1.0,
        scale=check_nonnegative("lambda", shared["lambda"]),
    )  # fmt: skip


def check_table(location: str, table: Any, expected: set[str]) -> dict[str, Any]:
    """``table``, none as an empty one. UserError unless it is one with keys among the expected."""
    table = {} if table is None else table
    if not isinstance(table, dict) or not table.keys() <= expected:
        raise UserError(f"{location} is {table!r}, expected only {', '.join(sorted(expected))}")
    return table


def language_weight(
    sources: list[dict[str, Any]], method: str, math: str | Path, language: str | Path, location: str
) -> float:
    """The language expert's weight in a slice. UserError for other models and for weights that are no numbers."""
    weights = {"math": 0.0, "language": 0.0}
    for source in sources:
        parameters = source.get("parameters") or {}
        fields = ["model"] if location == "models" else ["model", "layer_range"]
        is_known = isinstance(parameters, dict) and source.keys() <= {*fields, "parameters"}
        if not is_known or parameters.keys() - {"weight"}:
            raise UserError(f"{location}: a source has only {', '.join(fields)} and a weight, found {source!r}")
        role = role_of(source.get("model"), math, language)
        if role is None:
            raise UserError(f"{location}: model is {source.get('model')!r}, expected {math} or {language}")
        weight = parameters.get("weight", 1.0 if method == "passthrough" else None)
        weights[role] += check_nonnegative(f"{location}: weight", weight)
    total = sum(weights.values())
    if method == "passthrough" and len(sources) != 1 or not total:
        found_weights = f"{len(sources)} sources with weights {list(weights.values())}"
        raise UserError(f"{location}: {method} of {found_weights} is no mean")
    return weights["language"] / total


def role_of(name: Any, math: str | Path, language: str | Path) -> str | None:
    """The role of the model that a name means; None: it is neither."""
    return "math" if same_model(name, math) else "language" if same_model(name, language) else None


def same_model(name: Any, expected: str | Path) -> bool:
    """Whether two names mean one model: equal, or one folder."""
    is_path = isinstance(name, str) and "\0" not in name
    return name == str(expected) or is_path and Path(name).resolve() == Path(expected).resolve()
