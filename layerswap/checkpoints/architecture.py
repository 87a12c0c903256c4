"""What transformers makes of a folder: the meaning of its config.json, and the tensors that its model loads.

transformers takes seconds to import, so it is asked only where the text alone does not say. No custom code is run and
no weight is read: the model is built on the meta device.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerswap.checkpoints.layers import NUMBERED
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, read_header
from layerswap.errors import UserError, describe_error
from layerswap.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Models whose tensors a config.json names by itself, with what their layers have beside Llama's.
BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
LLAMAS: dict[str, tuple[str, ...]] = {"llama": (), "mistral": (), "qwen2": BIASES, "qwen3": NORMS}

# Buffers that older versions of transformers stored; no loader reads them.
CONSTANTS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.(?:inv_freq|cos_cached|sin_cached)|position_ids|(?:attn|attention)\.(?:masked_)?bias)$"
)
CONVERTS = re.compile("configuration_(?!utils)|modular_")  # code of configs: the fields that it makes are compared


def is_constant(name: str, tensor: StoredTensor) -> bool:
    """Whether a tensor is a buffer of older versions; a vector called bias is a weight."""
    return CONSTANTS.search(name) is not None and not (name.endswith(".bias") and len(tensor.shape) == 1)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' warnings and bars off the terminal: what they are about is checked here."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def parse_config(folder: str | Path) -> "PreTrainedConfig | None":
    """A folder's config.json as transformers' own class reads it; None where it has no class for it, or refuses it."""
    from transformers import AutoConfig

    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception:  # of many classes: each config has validators of its own
            return None


def config_meaning(config: "PreTrainedConfig") -> dict[str, Any]:
    """All fields of a config as JSON, aliases resolved and defaults written out."""
    return json.loads(config.to_json_string(use_diff=False))


def is_read(field: str, config: "PreTrainedConfig", folder: str | Path) -> bool:
    """Whether code reads a field ("text_config.head_dim"): the config's class knows it, or the code has its name.

    That is "config.head_dim" or the name in quotes in the model's code and in what all of transformers' models share,
    but what the config's class makes other fields of; in code of the folder's own it is the mere word.
    """
    import inspect

    import transformers

    first, _, rest = field.partition(".")
    nested = getattr(config, first, None)
    if rest and isinstance(nested, transformers.PreTrainedConfig):
        return is_read(rest, nested, folder)
    if first in {entry.name for entry in fields(type(config))} | config.attribute_map.keys():
        return True
    package, word = Path(transformers.__file__).parent, re.escape(first)
    places = [package, package / "generation", package / "integrations", Path(inspect.getfile(type(config))).parent]
    reading = re.compile(rf"""config\w*(?:\(\))?\.{word}\b|["']{word}["']""")
    code = [(file, reading) for place in places for file in place.glob("*.py") if not CONVERTS.match(file.name)]
    code += [(file, re.compile(rf"\b{word}\b")) for file in Path(folder).glob("*.py")]
    return any(pattern.search(file.read_text(encoding="utf-8", errors="replace")) for file, pattern in code)


def model_class(config: "PreTrainedConfig") -> Any:
    """transformers' class of a model: the one its config names, else its causal language model; None: it has none."""
    import transformers

    own = getattr(transformers, (config.architectures or [""])[0], None)
    return own or transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config))


def loading_class(folder: str | Path) -> Any:
    """transformers' class that loads a folder as what generates text: a causal language model, else the model's own."""
    import transformers

    config = parse_config(folder)
    is_causal = config is None or type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if is_causal else model_class(config) or transformers.AutoModelForCausalLM


def load_pretrained(folder: str | Path, **options: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """A folder's model as transformers loads it with these options, and what it says of the loading, but of constants.

    It sees links to the weights that ``read_header`` finds, with an index, and to the configs. In the folder itself it
    would look for others: those of an adapter, or that config.json names; and it finds no shards without an index.

    Raises:
        UserError: transformers cannot load it.
    """
    header = read_header(folder)
    files = {Path(folder, name) for name in ("config.json", "generation_config.json")}
    with tempfile.TemporaryDirectory() as links:
        for file in files | {tensor.file for tensor in header.values()}:
            if file.is_file():
                Path(links, file.name).symlink_to(file.resolve())
        if not Path(links, "model.safetensors").exists():
            index = {"metadata": {}, "weight_map": {name: tensor.file.name for name, tensor in header.items()}}
            Path(links, "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        try:
            model, info = loading_class(links).from_pretrained(
                links, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
                **options,
            )  # fmt: skip
        except Exception as error:  # of whatever class
            reason = describe_error(error).replace(links, str(folder))
            raise UserError(f"{folder}: transformers cannot load it ({reason})") from None
    model.config.name_or_path = str(folder)
    unexpected = [name for name in info["unexpected_keys"] if name not in header or not is_constant(name, header[name])]
    return model, info | {"unexpected_keys": unexpected}


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a Llama or one of its kind, by config.json alone; {} where that does not say it."""
    if config.get("model_type") not in LLAMAS or config.get("attention_bias") or config.get("mlp_bias"):
        return {}
    try:
        hidden, inner, heads = (config[f] for f in ("hidden_size", "intermediate_size", "num_attention_heads"))
        head = config.get("head_dim") or hidden // heads
        query, key = head * heads, head * (config.get("num_key_value_heads") or heads)
        layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj.weight": (key, hidden) for name in "kv"}
        layer |= {"self_attn.q_proj.weight": (query, hidden), "self_attn.o_proj.weight": (hidden, query)}
        layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        layer |= {"mlp.down_proj.weight": (hidden, inner)}
        layer |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        further = dict(zip(BIASES + NORMS, ((query,), (key,), (key,), (head,), (head,)), strict=True))
        layer |= {name: further[name] for name in LLAMAS[config["model_type"]]}
        shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
        if not config.get("tie_word_embeddings"):
            shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        n_layers = config["num_hidden_layers"]
        return shapes | {f"model.layers.{i}.{name}": layer[name] for i in range(n_layers) for name in layer}
    except (KeyError, TypeError, ZeroDivisionError):
        return {}


def unloaded_tensors(folder: str | Path, header: Mapping[str, StoredTensor]) -> list[str]:
    """The tensors of a folder that its model does not load, sorted.

    They are none where the config's fields alone say so, and are not looked for where transformers cannot: it has no
    class for the model, or the weights are quantised.

    Args:
        folder: of the model.
        header: tensor name -> tensor, of the folder.

    Returns:
        Their names.

    Raises:
        UserError: config.json names other weights; or the model has a tensor that is missing in the header, or has
            another name there, or another shape: transformers would go on with random weights.
    """
    raw = read_json(Path(folder) / "config.json")
    if weights := raw.get("transformers_weights"):
        raise UserError(f"{folder}: config.json names other weights ({weights}), expected model.safetensors, or shards")
    header = {name: tensor for name, tensor in header.items() if not is_constant(name, tensor)}
    if "quantization_config" in raw or llama_shapes(raw) == {name: tensor.shape for name, tensor in header.items()}:
        return []
    config = parse_config(folder)
    own_class = None if config is None else model_class(config)
    if own_class is None:
        return []

    import torch

    dtypes = {name: getattr(torch, FLOAT_DTYPES.get(tensor.dtype, "float32")) for name, tensor in header.items()}
    state = {name: torch.empty(header[name].shape, dtype=dtypes[name], device="meta") for name in header}
    with quiet_transformers():
        try:
            _, info = own_class.from_pretrained(
                None, config=config, state_dict=state, device_map="meta", ignore_mismatched_sizes=True,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # of whatever class
            expected = f"expected the tensors of {own_class.__name__}"
            raise UserError(f"{folder}: transformers cannot load it ({describe_error(error)}), {expected}") from None
    model = f"{own_class.__name__} of its config.json"
    missing, unloaded = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # A layer that has other tensors instead is of another class's model, and no reason to refuse it.
    is_other_class = layer_prefixes(missing) & layer_prefixes(unloaded) and not name_ends(missing) & name_ends(unloaded)
    if missing and not is_other_class:
        raise UserError(f"{folder}: has no tensor {missing[0]}, which {model} has ({len(missing)} are missing)")
    for name, shape, expected in sorted(info["mismatched_keys"]):
        raise UserError(f"{folder}: tensor {name} is {list(shape)}, expected {list(expected)} as {model} has")
    return unloaded


def name_ends(names: Iterable[str]) -> set[str]:
    """The ends of tensor names, of three words and more: those of names that differ in their beginning are equal."""
    split = [name.split(".") for name in names]
    return {".".join(words[i:]) for words in split for i in range(max(1, len(words) - 2))}


def layer_prefixes(names: Iterable[str]) -> set[str]:
    """The layers that tensors are in, as the beginnings of their names ("model.layers.3.")."""
    return {match[0] for name in names if (match := NUMBERED.match(name))}
