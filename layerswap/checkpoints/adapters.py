"""LoRA adapters (Hu et al., arXiv 2106.09685) merged into their base by PEFT, once, into build/models.

PEFT merges whatever it can: LoRA, DoRA, rsLoRA, modules_to_save, rank and alpha patterns, biases. It only warns, or
says nothing, where an adapter does not fit the base or the result is another function; here that is an error.
"""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerswap.checkpoints.architecture import is_constant, load_pretrained, unloaded_tensors
from layerswap.checkpoints.compatibility import check_not_empty
from layerswap.checkpoints.model_files import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    copy_model_files,
    matching_files,
    model_digest,
    tokenizer_digest,
)
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, read_file_header, read_header, tensor_digest
from layerswap.errors import UserError, as_user_error
from layerswap.files import BUILD, check_fetched, check_space, create_once, file_digest, json_digest, read_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

OWN_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # init_lora_weights; others change the base's weights
CHANGES_BASE = ("layer_replication", "kasa_config")


def merge_adapter(base: Path, adapter: Path, name: str) -> Path:
    """Merge a LoRA adapter into its base, bit for bit as PEFT's ``merge_and_unload`` on a CPU.

    The base is held in memory, in the dtypes in which it is stored.

    Args:
        base: folder of the base.
        adapter: folder of the adapter, as PEFT saves it.
        name: what the result's folder is called.

    Returns:
        A folder below build/models, made once for the same content of base and adapter: the merged weights, with names,
        shapes and dtypes of the base, or the names under which transformers saves it; its config; its tokenizer, or the
        adapter's own; and adapter.json, which says what was merged.

    Raises:
        UserError: the adapter is no LoRA adapter in safetensors, does not fit the base, changes the network's shape or
            the base it is for, cannot be merged, or makes NaN or infinity.
    """
    settings, weights = read_json(adapter / "adapter_config.json"), adapter / "adapter_model.safetensors"
    if not weights.is_file() and (pickles := sorted(adapter.glob("*.bin"))):
        raise UserError(f"{adapter}: found {pickles[0].name}, a pickle; expected {weights.name}")
    check_adapter_config(adapter, settings)
    header = {name: tensor for name, tensor in read_header(base).items() if not is_constant(name, tensor)}
    for folder, tensors in ((adapter, read_file_header(weights)), (base, header)):
        for tensor_name, tensor in tensors.items():
            if tensor.dtype not in FLOAT_DTYPES:
                expected = f"expected one of {', '.join(FLOAT_DTYPES)}"
                raise UserError(f"{folder}: tensor {tensor_name} is {tensor.dtype}, {expected} to merge an adapter")
        check_not_empty(folder, tensors)
    content = [model_digest(base), tokenizer_digest(base)]
    content += [tokenizer_digest(adapter)] if matching_files(adapter, TOKENIZER_FILES) else []
    content += [file_digest(file) for file in matching_files(adapter, PROCESSOR_FILES)]
    content += [file_digest(adapter / "adapter_config.json"), file_digest(weights)]

    def write(folder: Path) -> None:
        shard_bytes = Counter[Path]()
        for tensor in header.values():
            shard_bytes[tensor.file] += tensor.n_bytes
        check_space(folder, shard_bytes.total())
        model, is_whole = merge_with_peft(base, adapter, header, settings)
        with as_user_error(f"{adapter}: transformers cannot save it merged into {base}"):
            model.save_pretrained(folder, max_shard_size=max(shard_bytes.values()))
        check_merged(base, adapter, model, header, read_header(folder), is_whole)
        for file in folder.glob("*config.json"):
            file.unlink()
        copy_adapted_files(base, adapter, folder)
        provenance = {"base": str(base), "adapter": str(adapter), "settings": settings}
        (folder / "adapter.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")

    return create_once(BUILD / "models" / f"{name}-{json_digest(content)[:16]}", write)


def copy_adapted_files(base: Path, adapter: Path, folder: Path) -> None:
    """Copy a base's files to a folder; with what the adapter brings of tokenizer, chat templates, processors."""
    copy_model_files(base, folder)
    own_files = [file for file in matching_files(adapter, (*TOKENIZER_FILES, *PROCESSOR_FILES)) if file.suffix != ".py"]
    if matching_files(adapter, ("tokenizer.json", *VOCABULARY_FILES)):
        for file in matching_files(folder, TOKENIZER_FILES):
            file.unlink()
    for file in own_files:
        check_fetched(file)
        target = folder / file.relative_to(adapter)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def check_adapter_config(adapter: Path, settings: Mapping[str, Any]) -> None:
    """UserError for an adapter_config.json that is not LoRA's, changes the base, or has no number where PEFT counts."""
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{adapter}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    if changes := [field for field in CHANGES_BASE if settings.get(field)]:
        raise UserError(f"{adapter}: has {changes[0]}, which changes the base; expected an adapter of the base itself")
    if (initialisation := settings.get("init_lora_weights")) not in OWN_BASE:
        expected = "expected an adapter of the base itself"
        raise UserError(f"{adapter}: init_lora_weights is {initialisation!r}, which changes the base; {expected}")
    for field, pattern_field, types in (("r", "rank_pattern", (int,)), ("lora_alpha", "alpha_pattern", (int, float))):
        patterns = settings.get(pattern_field) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{adapter}: {pattern_field} is {patterns!r}, expected a table from pattern to number")
        numbers: dict[str, Any] = {field: settings.get(field)}
        numbers |= {f"{field} of {pattern!r}": number for pattern, number in patterns.items()}
        for place, number in numbers.items():
            if type(number) not in types or not abs(number) < 1e30:  # NaN is not
                expected = "a number" if float in types else "a whole number"
                raise UserError(f"{adapter}: {place} is {number!r}, expected {expected}")


def merge_with_peft(
    base: Path, adapter: Path, header: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> "tuple[PreTrainedModel, bool]":
    """The base (with its header) and the adapter (with its settings) merged in memory. UserError if they do not fit.

    With whether the base's file has just the tensors of its model, under whatever names.
    """
    import peft
    import torch
    from transformers import GenerationConfig

    config_fields = {field.name for field in fields(peft.LoraConfig)}
    if unknown := [field for field, value in settings.items() if value and field not in config_fields]:
        raise UserError(f"{adapter}: has {unknown[0]}, which PEFT {peft.__version__} does not know; a newer PEFT may")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):  # PEFT draws the weights that it then loads
        warnings.simplefilter("ignore")  # what PEFT warns of is checked here
        model, is_whole = load_in_stored_dtypes(base, header)
        tied = tied_modules(model)
        with as_user_error(f"{adapter}: PEFT cannot load it for {base}"):
            adapted = peft.PeftModel.from_pretrained(model, adapter, torch_device="cpu")
        check_adapted(base, adapter, adapted, tied)
        with as_user_error(f"{adapter}: PEFT cannot merge it into {base}"):
            model = adapted.merge_and_unload()
    if tied and not tied_modules(model):
        raise UserError(f"{adapter}: modules_to_save unties {' and '.join(tied)}, which are tied in {base}")
    if tied and all(f"{name}.weight" in header for name in tied):  # transformers would store the matrix once
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.generation_config = GenerationConfig()  # not kept; transformers refuses to save some
    return model, is_whole


def load_in_stored_dtypes(base: Path, header: Mapping[str, StoredTensor]) -> "tuple[PreTrainedModel, bool]":
    """A model on the CPU with each tensor in its own dtype, where transformers would cast all to one.

    With whether the file has just the tensors of the model.
    """
    import torch

    dtypes = {name: getattr(torch, FLOAT_DTYPES[tensor.dtype]) for name, tensor in header.items()}
    widest = reduce(torch.promote_types, dtypes.values())  # holds the numbers of all
    model, info = load_pretrained(base, dtype=widest)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, widest))
    return model, not any(info.values())


def tied_modules(model: "PreTrainedModel") -> list[str]:
    """Names of the embeddings and of the head if they share one matrix, else none."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return []
    return [name for name, module in model.named_modules() if module is embeddings or module is head]


def check_adapted(base: Path, adapter: Path, adapted: "PeftModel", tied: Sequence[str]) -> None:
    """UserError unless PEFT can merge right what it has loaded, and has loaded every tensor of the adapter."""
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    names, model = read_file_header(adapter / "adapter_model.safetensors").keys(), adapted.get_base_model()
    for name in tied:  # PEFT merges into the one matrix what the adapter was trained to do in one of two places
        module = model.get_submodule(name)
        is_head = module is model.get_output_embeddings()
        has_own_tokens = f"base_model.model.{name}.token_adapter.trainable_tokens_delta" in names
        if isinstance(module, BaseTunerLayer) or (is_head and has_own_tokens):
            raise UserError(f"{adapter}: module {name} cannot be merged: the base's embeddings are tied to it")
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    embeddings = get_peft_model_state_dict(adapted, save_embedding_layers=not tied).keys()  # may be stored too
    if unknown := sorted(names - expected - embeddings):
        raise UserError(f"{adapter}: tensor {unknown[0]} fits no module of {base} that its config adapts")
    if missing := sorted(expected - names):
        raise UserError(f"{adapter}: has no tensor {missing[0]}, expected one for each module of {base} it adapts")


def check_merged(
    base: Path, adapter: Path, model: "PreTrainedModel", before: Mapping[str, StoredTensor],
    after: Mapping[str, StoredTensor], is_whole: bool,
) -> None:  # fmt: skip
    """UserError unless the merged tensors are those of the base in name, shape and dtype, and finite where changed.

    is_whole: the base's file has just the tensors of its model. Then transformers may save them under other names.
    """
    dtypes = [Counter(tensor.dtype for tensor in header.values()) for header in (before, after)]
    is_renamed = is_whole and before.keys() != after.keys() and dtypes[0].keys() == dtypes[1].keys()
    if is_renamed and (unknown := unloaded_tensors(base, after)):
        raise UserError(f"{adapter}: tensor {unknown[0]} is left after the merge, expected those of {base}")
    for name in [] if is_renamed else sorted(before.keys() | after.keys()):
        merged, expected = (
            f"{header[name].dtype} {list(header[name].shape)}" if name in header else "missing"
            for header in (after, before)
        )
        if merged != expected:
            raise UserError(f"{adapter}: tensor {name} is {merged} after the merge, expected {expected} as in {base}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            if name not in before or tensor_digest(before[name]) != tensor_digest(after[name]):
                raise UserError(f"{adapter}: merged into {base}, it makes NaN or infinity in tensor {name}")
