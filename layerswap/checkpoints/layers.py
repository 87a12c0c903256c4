"""Which tensors of a model belong to which layer of its text decoder, read from their names and from config.json.

A model may hold several stacks of numbered layers: a text decoder, towers that read images or sound, layers that
predict further tokens (MTP). Layer swapping is about the text decoder. config.json says how deep it is, so it is found
by its depth, whatever its family calls it ("model.layers.0.", "transformer.h.0.", "language_model.model.layers.0.").
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from layerswap.checkpoints.safetensors import read_header
from layerswap.errors import UserError
from layerswap.files import read_json

NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d{1,9})\.")  # what stands before the first number in a name, and that number
LISTS = ("layers", "layer", "h", "blocks", "block")  # what families call their list of layers
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")  # of the text decoder, in a config
HEAD = re.compile(r"(?:^|\.)(?:lm_head|output|output_layer|embed_out)\.[^.]+$")  # what families call the head
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # fields that say how many layers there are
PREDICTION_DEPTHS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # layers stored after the last one, or apart
# Modules that are no part of a text decoder.
OTHER_MODULE = re.compile(
    r"(?:^|[._])(?:vision|visual|image|img|vit|audio|speech|video|projector|connector|resampler|mtp|nextn|encoder)(?:[._]|$)"
)


@dataclass(frozen=True)
class DecoderLayers:
    """The text decoder of a model, by the names of its tensors.

    Attributes:
        prefix: what the name of a tensor in a layer begins with, before the layer's number, such as "model.layers.".
        count: number of layers L.
        others: prefixes of modules that hold other stacks of layers.
        is_multimodal: whether the text decoder is a part of the model; then the names of its tensors, but the head's,
            begin like those of its layers.
    """

    prefix: str
    count: int
    others: tuple[str, ...]
    is_multimodal: bool

    @property
    def root(self) -> str:
        """The module that holds the list of layers, as a prefix of names: "model."."""
        return self.prefix.removesuffix(list_name(self.prefix) + ".")

    def index(self, name: str) -> int | None:
        """The layer of a tensor ("model.layers.3.mlp.up_proj.weight" -> 3); None for one that is in none."""
        match = NUMBERED.match(name)
        if match is None or match[1] != self.prefix or int(match[2]) >= self.count:
            return None
        return int(match[2])

    def is_text(self, name: str) -> bool:
        """Whether a tensor belongs to the text decoder: to a layer, the embeddings, the final norm or the head."""
        if self.index(name) is not None:
            return True
        if name.startswith((self.prefix, *self.others)) or OTHER_MODULE.search(name.removeprefix(self.root)):
            return False
        return not self.is_multimodal or name.startswith(self.root) or HEAD.search(name) is not None

    def module(self, name: str) -> str:
        """What a tensor outside the text decoder belongs to: "vision_tower", "mtp", or a layer beyond the last."""
        return diverging_module(name, self.prefix).rstrip(".")


def decoder_layers(folder: str | Path) -> DecoderLayers:
    """Find the layers of the text decoder of a model.

    Args:
        folder: of the model.

    Returns:
        Its layers.

    Raises:
        UserError: no stack of layers, or more than one, is as deep as config.json says; an encoder-decoder.
    """
    return find_layers(read_header(folder), read_json(Path(folder) / "config.json"), folder)


def layer_count(folder: str | Path) -> int:
    """Count the transformer layers of a model's text decoder; UserError as ``decoder_layers``."""
    return decoder_layers(folder).count


def find_layers(names: Iterable[str], config: Mapping[str, Any], location: str | Path) -> DecoderLayers:
    """Find the layers of the text decoder among a model's tensors.

    Args:
        names: of its tensors, on disk or in memory.
        config: content of its config.json.
        location: what error messages call the model.

    Returns:
        Its layers.

    Raises:
        UserError: as ``decoder_layers``.
    """
    stacks: dict[str, set[int]] = {}
    for match in filter(None, map(NUMBERED.match, names)):
        stacks.setdefault(match[1], set()).add(int(match[2]))
    stacks = {prefix: layers for prefix, layers in stacks.items() if list_name(prefix) in LISTS} or stacks
    description = "; ".join(f"{prefix}N of {describe_indices(layers)}" for prefix, layers in sorted(stacks.items()))
    observed = f"{location}: found tensors of layers {description}" if stacks else f"{location}: found no layers"
    if config.get("is_encoder_decoder"):
        raise UserError(f"{observed}, of an encoder and a decoder; expected a decoder alone")
    depths, n_predicting = text_depths(config)
    candidates = {}
    for prefix, layers in stacks.items():
        count = len(layers) - n_predicting if len(layers) - n_predicting in depths else len(layers)
        if layers == set(range(len(layers))) and (not depths or count in depths):
            candidates[prefix] = count
    if len(candidates) > 1:  # as deep as another, but of another name
        candidates = {prefix: n for prefix, n in candidates.items() if not OTHER_MODULE.search(prefix)} or candidates
    if len(candidates) != 1:
        depth = " or ".join(map(repr, depths)) or "one stack of"
        extra = f" and {n_predicting} that predict further tokens (MTP)" if n_predicting else ""
        raise UserError(f"{observed}; expected {depth} layers from 0 up{extra}, called layers.N, h.N or blocks.N")
    ((prefix, count),) = candidates.items()
    others = tuple(sorted(diverging_module(other, prefix) for other in stacks if other != prefix))
    return DecoderLayers(prefix, count, others, any(isinstance(config.get(field), dict) for field in TEXT_CONFIGS))


def list_name(prefix: str) -> str:
    """The last module of a prefix: "model.layers." -> "layers"."""
    return prefix.rstrip(".").rpartition(".")[2]


def describe_indices(layers: set[int]) -> str:
    """Layers as text: "0 to 3" if none is left out, else a list."""
    ordered = sorted(layers)
    is_range = ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]} to {ordered[-1]}" if is_range and len(ordered) > 1 else ", ".join(map(str, ordered[:40]))


def text_depths(config: Mapping[str, Any]) -> tuple[list[Any], int]:
    """How many layers the text decoder has (a family may count in two ways), and how many MTP layers follow them."""
    while nested := [config[field] for field in TEXT_CONFIGS if isinstance(config.get(field), dict)]:
        config = nested[0]
    depths = [config[field] for field in DEPTHS if config.get(field) is not None]
    if not depths and isinstance(config.get("model_type"), str):
        depths = derived_depths(config)
    predicting = (config.get(field) for field in PREDICTION_DEPTHS)
    return depths, next((count for count in predicting if isinstance(count, int)), 0)


def derived_depths(config: Mapping[str, Any]) -> list[int]:
    """The depth of a config that names none: what transformers' class makes of it; none if it can make nothing."""
    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        return []
    fields = {name: value for name, value in config.items() if "__float__" not in str(value)}  # how it writes infinity
    try:
        return [CONFIG_MAPPING[config["model_type"]].from_dict(fields).get_text_config().num_hidden_layers]
    except Exception:  # of many classes: each config has validators of its own
        return []


def diverging_module(other: str, prefix: str) -> str:
    """The outermost module of the path ``other`` that the path ``prefix`` does not share, as a prefix of names."""
    modules = other.split(".")
    n_shared = len(commonprefix([modules, prefix.split(".")]))
    return ".".join(modules[: n_shared + 1]).rstrip(".") + "."
