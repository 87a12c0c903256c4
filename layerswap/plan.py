"""A merge as data: the language expert's weight in every layer, and one weight for all outside the layers.

The math expert has 1 - w. Layer swapping (Bandarkar et al., arXiv 2410.01335) gives the bottom and top layers
to the language expert (w = 1), the middle to the math expert (w = 0), and mixes the layers in transition.
A plan file is YAML (or JSON) with the fields of ``Plan``.
"""

import random
import re
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path

from layerswap.paths import UserError

LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")


def layer_index(tensor_name):
    """The layer of a tensor ("model.layers.3.mlp.up_proj.weight" -> 3), None outside the layers."""
    found = LAYER.search(tensor_name)
    return int(found[1]) if found else None


def check_weight(field, weight):
    """``weight`` as a float in [0, 1], -0.0 as 0.0. UserError, naming the field, for anything else."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight <= 1:
        raise UserError(f"{field} is {weight!r}, expected a number from 0 to 1")
    return float(weight) + 0.0


def check_name(name):
    """UserError unless a plan's name is text that can be written."""
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        raise UserError(f"name is {name!r}, expected text") from None


@dataclass(frozen=True)
class Plan:
    """One merge of two experts.

    name: what figures and tables call it. layers: the language expert's weight in each layer, in [0, 1].
    outside: its weight in the embeddings, the final norm and the head. UserError for any other weight.
    """

    name: str
    layers: tuple[float, ...]
    outside: float
    roles = ("math", "language")  # the models that a merge under this plan needs

    def __post_init__(self):
        check_name(self.name)
        if not isinstance(self.layers, (list, tuple)) or not self.layers:
            raise UserError(f"layers is {self.layers!r}, expected a list with one weight for each layer")
        layers = tuple(check_weight(f"layers[{i}]", w) for i, w in enumerate(self.layers))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "outside", check_weight("outside", self.outside))

    def weight(self, tensor_name):
        """The language expert's weight for a tensor. UserError if its layer is not in the plan."""
        layer = layer_index(tensor_name)
        if layer is None:
            return self.outside
        if layer >= len(self.layers):
            found = f"tensor {tensor_name} is in layer {layer}"
            raise UserError(f"{found}, plan {self.name!r} has {len(self.layers)} layers")
        return self.layers[layer]

    def check_depth(self, n_layers, folder):
        """UserError unless the plan is for models of ``n_layers`` layers, such as that of ``folder``."""
        if len(self.layers) != n_layers:
            raise UserError(f"plan {self.name!r} has {len(self.layers)} layers, {folder} has {n_layers}")

    def layer_map(self):
        """One letter a layer, bottom first: L language expert, M math expert, x a mix of both ("LxMMxL")."""
        return "".join({0.0: "M", 1.0: "L"}.get(w, "x") for w in self.layers)

    def reversed(self):
        """The control with the experts' roles exchanged: 1 - w everywhere."""
        return Plan(f"{self.name}, roles reversed", tuple(1 - w for w in self.layers), 1 - self.outside)

    def to_dict(self):
        """The plan as JSON-able data; ``Plan.from_dict`` reads it back."""
        return asdict(self) | {"layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data):
        """The plan of ``to_dict``'s data. UserError for missing or unknown fields and for bad weights."""
        if not isinstance(data, dict) or set(data) != {"name", "layers", "outside"}:
            raise UserError(f"a plan has the fields name, layers and outside, found {data!r}")
        return cls(**data)


def read_yaml(path):
    """The mapping in a YAML or JSON file. UserError if there is no such file or it holds anything else."""
    import yaml  # here, for the speed of the command line

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {data!r}, expected fields with values")
    return data


def layer_swap(n_layers, bottom, top, transition_bottom=0, transition_top=0, weight=0.5, outside=0.5, name=None):
    """The layer swap: bottom and top layers from the language expert, the middle from the math expert.

    From layer 0 up: ``bottom`` layers of weight 1, ``transition_bottom`` of ``weight``, the middle of 0,
    ``transition_top`` of ``weight``, ``top`` of 1; all else has ``outside``. UserError names a width that is
    negative or no integer, a weight outside [0, 1], and zones that overlap.
    """
    widths = {"bottom": bottom, "transition_bottom": transition_bottom}
    widths |= {"transition_top": transition_top, "top": top}
    for field, width in {"n_layers": n_layers, **widths}.items():
        if isinstance(width, bool) or not isinstance(width, int) or width < 0:
            raise UserError(f"{field} is {width!r}, expected a whole number of layers, 0 or more")
    rest = n_layers - sum(widths.values())
    if rest < 0:
        zones = " + ".join(f"{field} {width}" for field, width in widths.items())
        raise UserError(f"zones overlap: {zones} = {n_layers - rest}, the model has n_layers {n_layers}")
    weight = check_weight("weight", weight)
    zones = [(1, bottom), (weight, transition_bottom), (0, rest), (weight, transition_top), (1, top)]
    name = name or f"swap {bottom}+{top}, transition {transition_bottom}+{transition_top}"
    return Plan(name, tuple(w for w, width in zones for _ in range(width)), outside)


def only_bottom(n_layers, bottom, outside=0.5, name="only bottom"):
    """Ablation: no layers at the top and no transition zone; only ``bottom`` layers from the language expert."""
    return layer_swap(n_layers, bottom, 0, outside=outside, name=name)


def only_top(n_layers, top, outside=0.5, name="only top"):
    """Ablation: only ``top`` layers from the language expert."""
    return layer_swap(n_layers, 0, top, outside=outside, name=name)


def chosen(n_layers, layers, outside=0.5, name="chosen layers"):
    """Weight 1 in the given ``layers`` (indices), 0 in all others. UserError for a layer the model has not."""
    if wrong := sorted(set(layers) - set(range(n_layers))):
        raise UserError(f"layer {wrong[0]!r} is not in a model of n_layers {n_layers}")
    return Plan(name, tuple(float(i in layers) for i in range(n_layers)), outside)


def middle(n_layers, count, outside=0.5, name="middle"):
    """Control: ``count`` layers from the language expert, in the middle instead of the ends."""
    start = (n_layers - check_count(n_layers, count)) // 2
    return chosen(n_layers, range(start, start + count), outside, name)


def random_layers(n_layers, count, seed, outside=0.5, name="random layers"):
    """Control: ``count`` layers from the language expert, drawn by ``seed``."""
    drawn = random.Random(seed).sample(range(n_layers), check_count(n_layers, count))
    return chosen(n_layers, drawn, outside, name)


def check_count(n_layers, count):
    """``count``. UserError unless a model of n_layers has so many layers."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= n_layers:
        raise UserError(f"count is {count!r}, expected a whole number of layers from 0 to n_layers {n_layers}")
    return count


def uniform(n_layers, weight, name):
    """The same weight everywhere: 0 is the math expert, 1 the language expert."""
    return Plan(name, (weight,) * n_layers, weight)


def soup(n_layers):
    """The model soup: the plain average of both experts."""
    return uniform(n_layers, 0.5, "soup")


def widths(n_layers, given=()):
    """The widths of a swap as a dict: those ``given`` (bottom, top, transition bottom and top), or the paper's scaled.

    Rule: the same share of the depth as 5, 2, 1 and 1 of 32 layers, rounded half up, at least 1. Below 4 layers the
    zones overlap. UserError unless all four or none are given.
    """
    names = ("bottom", "top", "transition_bottom", "transition_top")
    if given and len(given) != len(names):
        raise UserError(f"widths is {list(given)}, expected four ({', '.join(names)}) or none")
    scaled = (max(1, (2 * n_layers * width + 32) // 64) for width in (5, 2, 1, 1))
    return dict(zip(names, given or scaled, strict=True))
