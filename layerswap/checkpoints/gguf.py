"""GGUF files as ordinary float32 folders of safetensors, which keeps the dequantised values as they are.

transformers reads them. It passes over tensors and fields that it does not know; here that is an error, but for the
two ways of scaled rope (the factors of Llama 3.1, and linear), which are put into the config.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerswap.errors import UserError, as_user_error, describe_error
from layerswap.files import BUILD, check_fetched, create_once, file_digest

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedConfig, PreTrainedModel

ROPE_FACTORS = "rope_freqs.weight"  # the tensor in which llama.cpp keeps the scaled rope of Llama 3.1
# Fields of a GGUF file that transformers does not read: right if the config has the value anyway.
CONFIG_FIELDS = {
    "attention.sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size", "logit_scale": "logits_scaling",
    "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier", "vocab_size": "vocab_size", "context_length": "max_position_embeddings",
    "use_parallel_residual": "use_parallel_residual",
}  # fmt: skip
IGNORED_FIELDS = ("rope.scaling.finetuned", "tensor_data_layout")  # say nothing of what the model computes


def load_gguf(path: Path) -> Path:
    """Convert a .gguf file, once.

    Args:
        path: the file.

    Returns:
        A folder below build/models; its provenance.json names the file and the dtype of its matrices.

    Raises:
        UserError: no such file, or one that cannot be read, or not as a whole.
    """
    from gguf import GGUFReader

    check_fetched(path)
    try:
        reader = GGUFReader(path)
        matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
        (dtype, _), *_ = Counter(tensor.tensor_type.name for tensor in matrices).most_common(1)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: not a GGUF file with weights ({describe_error(error)})") from None
    if (n_parts := read_field(reader, "split.count") or 1) > 1:
        position = f"part {read_field(reader, 'split.no') + 1} of {n_parts}"
        raise UserError(f"{path}: is {position}, expected one file; llama-gguf-split --merge joins the parts")
    provenance = {"file": path.name, "sha256": file_digest(path), "note": f"dequantised from {dtype}"}
    out = BUILD / "models" / f"{path.stem}-{provenance['sha256'][:16]}"
    return create_once(out, lambda folder: convert_gguf(path, folder, provenance))


def read_field(reader: "GGUFReader", name: str) -> Any:
    """The value of a field of a GGUF file, None if it has none."""
    field = reader.get_field(name)
    return field and field.contents()


def convert_gguf(path: Path, folder: Path, provenance: dict[str, str]) -> None:
    """Write the model of a GGUF file to a folder: float32 weights, config, tokenizer, provenance.json.

    Args:
        path: the GGUF file.
        folder: an empty folder.
        provenance: content of provenance.json.

    Raises:
        UserError: transformers cannot load the file, or not all of it.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:  # transformers reads a tokenizer that lies beside the file
        (Path(scratch) / path.name).symlink_to(path.resolve())
        with as_user_error(f"{path}: transformers cannot load it"):
            loaded, info = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=path.name)
    if info["missing_keys"]:
        raise UserError(f"{path}: has no tensor {min(info['missing_keys'])}")
    config = AutoConfig.for_model(**loaded.config.to_dict())
    del config.quantization_config  # a model marked as quantised cannot be saved
    reader = GGUFReader(path)
    set_rope(path, reader, config)
    check_fields(path, reader, config)
    check_tensors_loaded(path, reader, loaded)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.init_kwargs["local_files_only"] = False  # is saved, and says whether HF_HUB_OFFLINE was set
    tokenizer.save_pretrained(folder)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")


def set_rope(path: Path, reader: "GGUFReader", config: "PreTrainedConfig") -> None:
    """Put the scaled rope of a GGUF file into the config that transformers made of it.

    Raises:
        UserError: the file holds factors of the frequencies that are not those of Llama 3.1's formula.
    """
    import numpy as np
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    prefix, rope = f"{read_field(reader, 'general.architecture')}.rope.scaling.", dict(config.rope_parameters or {})
    if read_field(reader, prefix + "type") == "linear" and "rope_theta" in rope:  # one rope for all layers
        config.rope_parameters = rope | {"rope_type": "linear", "factor": read_field(reader, prefix + "factor")}
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    if factors is None:
        return
    unscaled = 1 / rope.get("rope_theta", math.nan) ** (np.arange(len(factors)) / len(factors))
    for power in range(4, 24):  # a context of 8192 in Llama 3.1; where others fit, they give the same frequencies
        formula = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1 << power}
        config.rope_parameters = rope | {"rope_type": "llama3", "factor": float(factors.max())} | formula
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if len(frequencies) == len(factors) and np.allclose(frequencies.numpy() * factors, unscaled, rtol=1e-5, atol=0):
            return
    raise UserError(f"{path}: tensor {ROPE_FACTORS} is not the rope scaling of Llama 3.1, and no other is known here")


def check_fields(path: Path, reader: "GGUFReader", config: "PreTrainedConfig") -> None:
    """UserError for a field of the model in a GGUF file that is not in the config."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture, rope = read_field(reader, "general.architecture"), getattr(config, "rope_parameters", None) or {}
    names = {architecture, architecture.replace("-", "_"), config.model_type, config.model_type.removesuffix("_text")}
    is_read = {field for name in names for field, fate in GGUF_CONFIG_MAPPING.get(name, {}).items() if fate}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: Mapping[str, Any] = {
        "attention.key_length": head, "attention.value_length": head, "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1)),
        "rope.scaling.type": rope.get("rope_type"), "rope.scaling.factor": rope.get("factor"),
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
    } | {field: getattr(config, name, None) for field, name in CONFIG_FIELDS.items()}  # fmt: skip
    for key in reader.fields:
        field, value = key.removeprefix(f"{architecture}."), read_field(reader, key)
        if field == key or field in is_read or field in IGNORED_FIELDS or not value or value == "none":
            continue
        expected = values.get(field)
        is_close = isinstance(value, float) and expected is not None and math.isclose(value, expected, rel_tol=1e-5)
        if value != expected and not is_close:
            raise UserError(f"{path}: {key} is {value!r}, which transformers does not read; its model has {expected!r}")


def check_tensors_loaded(path: Path, reader: "GGUFReader", model: "PreTrainedModel") -> None:
    """UserError unless every element of a GGUF file's tensors is in the model that transformers made of them."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    tensors = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors if tensor.name != ROPE_FACTORS}
    n_loaded = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    if (n_stored := sum(tensors.values())) != n_loaded:
        processor = TENSOR_PROCESSORS.get(read_field(reader, "general.architecture"), TensorProcessor)
        unknown = sorted(tensors.keys() - get_gguf_hf_weights_map(model, processor(model.config.to_dict())).keys())
        share_loaded = f"of {n_stored} weights transformers loads {n_loaded}"
        raise UserError(f"{path}: {share_loaded}; it does not know tensor {', '.join(unknown[:3]) or 'of some name'}")
