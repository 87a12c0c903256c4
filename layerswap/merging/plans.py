"""A merge as data: the language expert's weight in every layer, and one weight for all tensors outside the layers.

The math expert has 1 - w. Layer swapping (Bandarkar et al., arXiv 2410.01335) takes the bottom and top layers from the
language expert (w = 1), the middle from the math expert (w = 0), and mixes the two in the transition zones between.
A plan file is YAML (or JSON) with the fields of ``Plan``.
"""

import random
from collections.abc import Collection
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

from layerswap.errors import UserError

SCALED: Literal["scaled"] = "scaled"  # a width that is the paper's, scaled to the depth of the model
Width = int | Literal["scaled"]  # a number of layers, or SCALED
PAPER_DEPTH = 32  # layers of the paper's models
PAPER_WIDTHS = {"bottom": 5, "top": 2, "transition_bottom": 1, "transition_top": 1}  # layers of PAPER_DEPTH
WIDTH_NAMES = tuple(PAPER_WIDTHS)


@dataclass(frozen=True)
class Plan:
    """One merge of two experts.

    Attributes:
        name: what figures and tables call it.
        layers: the language expert's weight in each layer, in [0, 1], from the bottom up.
        non_layer_weight: its weight in the embeddings, the final norm and the head, in [0, 1].
        roles: the models that a merge under this plan needs.

    Raises:
        UserError: a weight that is no number from 0 to 1, or no layers.
    """

    name: str
    layers: tuple[float, ...]
    non_layer_weight: float
    roles: ClassVar[tuple[str, ...]] = ("math", "language")

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.layers, (list, tuple)) or not self.layers:
            raise UserError(f"layers is {self.layers!r}, expected a list with one weight for each layer")
        layers = tuple(check_weight(f"layers[{i}]", weight) for i, weight in enumerate(self.layers))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "non_layer_weight", check_weight("non_layer_weight", self.non_layer_weight))

    def weight(self, layer: int | None) -> float:
        """The language expert's weight in a layer, or in the tensors that are in none. UserError if it has no such."""
        if layer is None:
            return self.non_layer_weight
        if layer >= len(self.layers):
            raise UserError(f"layer {layer} is not in plan {self.name!r}, which has {len(self.layers)} layers")
        return self.layers[layer]

    def check_depth(self, n_layers: int, location: str | Path) -> None:
        """UserError unless the plan is for models of ``n_layers`` layers, as ``location`` (a folder, an option) has."""
        n_weights = len(self.layers)
        if n_weights != n_layers:
            raise UserError(f"plan {self.name!r} has {n_weights} layers, {location} has {n_layers}, expected as many")

    def layer_map(self) -> str:
        """One letter a layer, bottom first: L language expert, M math expert, x a mix of the two ("LxMMxL")."""
        return "".join({0.0: "M", 1.0: "L"}.get(weight, "x") for weight in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data; ``Plan.from_dict`` reads it back."""
        return asdict(self) | {"layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """The plan of ``to_dict``'s data. UserError for missing or unknown fields and for bad weights."""
        if isinstance(data, dict) and "outside" in data:
            raise UserError("field 'outside' of a plan is called non_layer_weight now")
        if not isinstance(data, dict) or set(data) != {"name", "layers", "non_layer_weight"}:
            raise UserError(f"a plan has the fields name, layers and non_layer_weight, found {str(data)[:300]}")
        return cls(**data)


def check_weight(field: str, weight: Any) -> float:
    """``weight`` as a float in [0, 1], -0.0 as 0.0. UserError, naming the field, for anything else."""
    if not is_number(weight) or not 0 <= weight <= 1:
        raise UserError(f"{field} is {weight!r}, expected a number from 0 to 1")
    return float(weight) + 0.0


def check_nonnegative(field: str, value: Any) -> float:
    """``value`` as a float, 0 or more. UserError, naming the field, for anything else."""
    if not is_number(value) or not 0 <= value < 1e300:
        raise UserError(f"{field} is {value!r}, expected a number, 0 or more")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_name(name: Any) -> None:
    """UserError unless a plan's name is text that can be written."""
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        raise UserError(f"name is {name!r}, expected text") from None


def layer_swap(
    n_layers: int, bottom: int, top: int, transition_bottom: int = 0, transition_top: int = 0, weight: float = 0.5,
    non_layer_weight: float = 0.5, name: str | None = None,
) -> Plan:  # fmt: skip
    """The layer swap of the paper: bottom and top layers from the language expert, the middle from the math expert.

    Args:
        n_layers: depth of the models.
        bottom: layers of weight 1, from layer 0 up.
        top: layers of weight 1, from the last one down.
        transition_bottom: layers of ``weight`` above the bottom ones.
        transition_top: layers of ``weight`` below the top ones.
        weight: the language expert's weight in the transition zones, in [0, 1].
        non_layer_weight: its weight in the embeddings, the final norm and the head, in [0, 1].
        name: of the plan; None: one made from the widths.

    Returns:
        The plan; layers that are in no zone have weight 0.

    Raises:
        UserError: a width that is negative or no integer, a weight outside [0, 1], zones that overlap.
    """
    widths = {"bottom": bottom, "transition_bottom": transition_bottom, "transition_top": transition_top, "top": top}
    for field, width in {"n_layers": n_layers, **widths}.items():
        if not is_layer_count(width):
            raise UserError(f"{field} is {width!r}, expected a whole number of layers, 0 or more")
    middle = n_layers - sum(widths.values())
    if middle < 0:
        zones = " + ".join(f"{field} {width}" for field, width in widths.items())
        raise UserError(f"zones overlap: {zones} = {n_layers - middle}, the model has n_layers {n_layers}")
    weight = check_weight("weight", weight)
    layers = (1,) * bottom + (weight,) * transition_bottom + (0,) * middle + (weight,) * transition_top + (1,) * top
    name = name or f"swap {bottom}+{top}, transition {transition_bottom}+{transition_top}"
    return Plan(name, layers, non_layer_weight)


def only_bottom(n_layers: int, bottom: int, non_layer_weight: float = 0.5, name: str = "only bottom") -> Plan:
    """Ablation: a swap of the ``bottom`` lowest layers only, without transition zones. UserError as ``layer_swap``."""
    return layer_swap(n_layers, bottom, 0, non_layer_weight=non_layer_weight, name=name)


def only_top(n_layers: int, top: int, non_layer_weight: float = 0.5, name: str = "only top") -> Plan:
    """Ablation: a swap of the ``top`` highest layers only, without transition zones. UserError as ``layer_swap``."""
    return layer_swap(n_layers, 0, top, non_layer_weight=non_layer_weight, name=name)


def selected_layers(
    n_layers: int, layers: Collection[int], non_layer_weight: float = 0.5, name: str = "selected layers"
) -> Plan:
    """Weight 1 in the given ``layers`` (indices), 0 in all others. UserError for a layer that the model lacks."""
    if unknown := sorted(set(layers) - set(range(n_layers))):
        raise UserError(f"layer {unknown[0]!r} is not in a model of n_layers {n_layers}")
    return Plan(name, tuple(float(i in layers) for i in range(n_layers)), non_layer_weight)


def middle_layers(n_layers: int, count: int, non_layer_weight: float = 0.5, name: str = "middle layers") -> Plan:
    """Control: ``count`` layers from the language expert, in the middle instead of at the ends.

    UserError unless ``count`` is a whole number from 0 to ``n_layers``.
    """
    start = (n_layers - check_count(n_layers, count)) // 2
    return selected_layers(n_layers, range(start, start + count), non_layer_weight, name)


def random_layers(
    n_layers: int, count: int, seed: int, non_layer_weight: float = 0.5, name: str = "random layers"
) -> Plan:
    """Control: ``count`` layers from the language expert, sampled with ``seed``. UserError as ``middle_layers``."""
    layers = random.Random(seed).sample(range(n_layers), check_count(n_layers, count))
    return selected_layers(n_layers, layers, non_layer_weight, name)


def uniform(n_layers: int, weight: float, name: str) -> Plan:
    """The same weight everywhere: 0 is the math expert, 1 the language expert."""
    return Plan(name, (weight,) * n_layers, weight)


def soup(n_layers: int) -> Plan:
    """The model soup (Wortsman et al., arXiv 2203.05482): the plain average of the two experts."""
    return uniform(n_layers, 0.5, "soup")


def scaled_widths(
    n_layers: int, bottom: Width = SCALED, top: Width = SCALED, transition_bottom: Width = SCALED,
    transition_top: Width = SCALED,
) -> dict[str, int]:  # fmt: skip
    """The four widths of a layer swap, where "scaled" stands for the paper's width at this depth.

    The paper's 5, 2, 1 and 1 of 32 layers (arXiv 2410.01335) become the same share of the depth, rounded
    half up, at least 1. Below 4 layers these zones overlap.

    Args:
        n_layers: depth of the models.
        bottom: a whole number of layers (0 is no layer), or "scaled"; so are the other three.
        top: see ``bottom``.
        transition_bottom: see ``bottom``.
        transition_top: see ``bottom``.

    Returns:
        Keyword arguments for ``layer_swap``: name of a width -> layers.

    Raises:
        UserError: a width that is neither; it is named.
    """
    widths: dict[str, Any] = dict(zip(WIDTH_NAMES, (bottom, top, transition_bottom, transition_top), strict=True))
    for field, width in widths.items():
        if width == SCALED:
            widths[field] = max(1, int(n_layers * PAPER_WIDTHS[field] / PAPER_DEPTH + 0.5))  # exact: 32 is a power of 2
        elif not is_layer_count(width):
            raise UserError(f"{field} is {width!r}, expected a whole number of layers, 0 or more, or {SCALED!r}")
    return widths


def is_layer_count(number: Any) -> bool:
    """Whether ``number`` is an integer, 0 or more, and no truth value."""
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def check_count(n_layers: int, count: Any) -> int:
    """``count``. UserError unless a model of ``n_layers`` layers has so many."""
    if not is_layer_count(count) or count > n_layers:
        raise UserError(f"count is {count!r}, expected a whole number of layers from 0 to n_layers {n_layers}")
    return count
