"""Plans as mergekit YAML, so that a merge can be repeated, or brought in, from the tool most people know.

Written for mergekit 0.1.5. Its ``passthrough`` copies bits; its ``linear`` calculates everywhere, which turns -0.0 into
+0.0 in copied tensors and can round a mixed element the other way.
"""

from itertools import groupby
from pathlib import Path

from layerswap.paths import UserError
from layerswap.plan import Plan

MOST_LAYERS = 100_000  # of a model; more are a mistake
FIELDS = {"merge_method", "base_model", "dtype", "out_dtype", "slices", "parameters"}


def to_mergekit(plan, math, language, dtype, donor="math"):
    """The mergekit configuration (JSON-able, for ``yaml.safe_dump``) that makes the same weights.

    math, language: the experts' folders or names. dtype: "bfloat16", "float16" or "float32". donor: whose config and
    tokenizer the result gets. Weights outside the layers are pinned by a slice of no layers at either end, because
    mergekit takes them from the sources of the first and the last slice. UserError for task vectors and for two models
    of one name.
    """
    if len(plan.roles) > 2:
        raise UserError(f"plan {plan.name!r} is {plan.method}: only slices are written for mergekit")
    if str(math) == str(language):
        raise UserError(f"{math}: is both the math and the language model, expected two names")
    exact = {*plan.layers, plan.outside} <= {0, 1}

    def piece(start, end, weight):
        pair = {str(language): weight, str(math): 1 - weight}
        extra = [{} if exact else {"parameters": {"weight": w}} for w in pair.values() if w]
        models = [model for model, w in pair.items() if w]
        return {"sources": [
            {"model": model, "layer_range": [start, end], **more} for model, more in zip(models, extra, strict=True)
        ]}  # fmt: skip

    slices, start = [piece(0, 0, plan.outside)], 0
    for weight, layers in groupby(plan.layers):
        end = start + len(list(layers))
        slices.append(piece(start, end, weight))
        start = end
    return {
        "merge_method": "passthrough" if exact else "linear",
        "base_model": str(math if donor == "math" else language), "dtype": dtype,
        "slices": [*slices, piece(0, 0, plan.outside)],
    }  # fmt: skip


def from_mergekit(data, math, language, name="mergekit plan"):
    """The plan of a mergekit configuration of the kind ``to_mergekit`` writes.

    Read: slices of ``passthrough`` or ``linear`` over the layers of two models in their order. math, language: the
    models' names in the configuration (folders count as equal if they are one place). base_model, dtype and out_dtype
    play no part: config and tokenizer come from the donor, dtypes from the experts. UserError names what a plan cannot
    express: other methods and fields, other models, filters, layers left out, repeated or moved.
    """
    if unknown := sorted(set(data) - FIELDS, key=str):
        raise UserError(f"field {unknown[0]!r} cannot be read, expected only {', '.join(sorted(FIELDS))}")
    if data.get("merge_method") not in ("passthrough", "linear"):
        raise UserError(f"merge_method is {data.get('merge_method')!r}, expected passthrough or linear")
    if (data.get("parameters") or {}) not in ({}, {"normalize": True}):
        raise UserError(f"parameters is {data['parameters']!r}, expected none, or normalize: true")
    slices = data.get("slices")
    if not isinstance(slices, list) or not slices:
        raise UserError(f"slices is {slices!r}, expected a list")
    layers, weights = [], []
    for i, each in enumerate(slices):
        try:
            ((start, end),) = {tuple(source["layer_range"]) for source in each["sources"]}
            if set(each) != {"sources"} or {type(start), type(end)} != {int} or end > MOST_LAYERS:
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise UserError(f"slices[{i}]: expected only sources, with one layer_range [start, end)") from None
        if start != end and start != len(layers) or not 0 <= start <= end:
            raise UserError(f"slices[{i}]: layer_range is [{start}, {end}], expected to start at {len(layers)}")
        weights.append(language_weight(each["sources"], data["merge_method"], math, language, f"slices[{i}]"))
        layers += [weights[-1]] * (end - start)
    if weights[0] != weights[-1]:
        found = f"the first slice gives the embeddings weight {weights[0]}, the last the head {weights[-1]}"
        raise UserError(f"{found}, expected one weight outside the layers")
    return Plan(name, tuple(layers), weights[0])


def language_weight(sources, method, math, language, where):
    """The language expert's share in a slice. UserError for other models and for weights that are no numbers."""
    shares = {"math": 0.0, "language": 0.0}
    for source in sources:
        settings = source.get("parameters") or {}
        if (
            set(source) - {"model", "layer_range", "parameters"}
            or not isinstance(settings, dict)
            or settings.keys() - {"weight"}
        ):
            raise UserError(f"{where}: a source has only model, layer_range and a weight, found {source!r}")
        roles = [role for role, model in (("math", math), ("language", language)) if same(source.get("model"), model)]
        if not roles:
            raise UserError(f"{where}: model is {source.get('model')!r}, expected {math} or {language}")
        share = settings.get("weight", 1.0 if method == "passthrough" else None)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1e300:
            raise UserError(f"{where}: weight is {share!r}, expected a number, 0 or more")
        shares[roles[0]] += share
    if method == "passthrough" and len(sources) != 1 or not sum(shares.values()):
        raise UserError(f"{where}: {method} of {len(sources)} sources with weights {list(shares.values())} is no mean")
    return shares["language"] / sum(shares.values())


def same(found, expected):
    """Whether two names mean one model: equal, or one folder."""
    return str(found) == str(expected) or Path(str(found)).resolve() == Path(expected).resolve()
