"""Whether two models differ in nothing but the values of their weights, and whether each can be merged by itself.

What changes the function of a model keeps two from being merged. What does not (fields that trainers stamp, chat
templates, buffers that no loader reads) is taken from one of them, and named.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from layerswap.checkpoints.architecture import LLAMAS, config_meaning, is_constant, is_read, parse_config
from layerswap.checkpoints.difference import MISSING, Difference, differing_fields
from layerswap.checkpoints.model_files import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    function_config,
    matching_files,
    split_files,
    without_storage_fields,
)
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, read_header, tensor_digest
from layerswap.checkpoints.tokenizer import content_digest, tokenizer_differences
from layerswap.errors import UserError
from layerswap.files import read_json

# Fields of config.json, also of nested ones, that change nothing that a trained model computes.
STAMPED_FIELDS = re.compile(
    r"""(?:.*\.)? (?: pad_token_id | bos_token_id | architectures | add_cross_attention | num_labels |
    (?:auto_map | id2label | label2id | task_specific_params | transformers\.js_config) \b.* | problem_type |
    cache_implementation | finetuning_task | tokenizer_class | \w*dropout\w* | \w*_pdrop | pretraining_tp |
    \w*router_(?:aux|z)_loss_coef | chunk_size_feed_forward | gradient_checkpointing | _commit_hash | return_dict\w* |
    _?unsloth\w* | output_(?:attentions | hidden_states | router_logits) | _?(?:attn|experts)_implementation\w* )""",
    re.VERBOSE,
)
# What wrappers of a model write into the names of its tensors.
WRAPPERS = re.compile(
    r"(?:^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_flat_param|"
    r"base_layer|lora_\w+|modules_to_save|original_module)(?:\.|$)|^(module|base_model\.model)\."
)
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def check_compatible(math: str | Path, language: str | Path, allow: Collection[str] = ()) -> list[Difference]:
    """Check that two models differ in nothing that changes what their weights mean.

    Compared are the meaning of config.json (as transformers reads it), where a text ends, tensors (dtype, shape), and
    what the tokenizers do. Each model is checked by itself too.

    Args:
        math: folder of one.
        language: folder of the other.
        allow: names of differences that are meant, such as config fields.

    Returns:
        The differences that do not matter, and those that are allowed: one of the two models gives its value.

    Raises:
        UserError: the first other difference; a model with an empty matrix, with names of tensors that a wrapper or an
            unmerged adapter has left, or with a stored head that is not the embeddings its config ties it to.
    """
    folders = (Path(math), Path(language))
    return list_differences(folders, mergeable_headers(folders), allow)


def list_differences(
    folders: tuple[Path, Path], headers: Sequence[Mapping[str, StoredTensor]], allow: Collection[str]
) -> list[Difference]:
    """The differences of ``check_compatible``, of two folders whose headers are those of ``mergeable_headers``."""
    (math, language), listed = folders, []
    files = [split_files(folder)[0] for folder in folders]
    for difference in chain(
        config_differences(*folders), generation_differences(*folders), tensor_differences(folders, headers),
        tokenizer_differences(*folders), file_differences(folders, files),
    ):  # fmt: skip
        if difference.changes_function and not difference.is_among(allow):
            a, b = (str(value)[:200] for value in difference.values)
            hint = f"; --allow {difference.name} takes the donor's" if difference.name else ""
            raise UserError(f"{difference.description} is {a} in {math} and {b} in {language}, expected the same{hint}")
        listed.append(difference)
    return listed


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of nested tables under one name each ("rope_parameters.rope_theta"), without those that repeat another.

    "type" is the former name of rope_type, kept beside it.
    """
    flat: dict[str, Any] = {}
    rope = fields["rope_parameters"] if isinstance(fields.get("rope_parameters"), dict) else {}
    for field, value in fields.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{field}.")
        elif field == "eos_token_id":
            flat[prefix + field] = end_ids(value)
        elif (field != "type" or "rope_type" not in fields) and (field not in rope or rope[field] != value):
            flat[prefix + field] = value
    return flat


def end_ids(value: Any) -> Any:
    """The ids that end a text, in order; one alone without a list."""
    ids = sorted(value, key=str) if isinstance(value, list) else [value]
    return ids[0] if len(ids) == 1 else ids


def config_differences(math: Path, language: Path) -> Iterator[Difference]:
    """What the configs of two models differ in.

    transformers is asked what they mean only if their texts differ in more than fields that trainers stamp.
    """
    differing = differing_fields([flatten(function_config(folder)) for folder in (math, language)])
    configs = []
    if not all(STAMPED_FIELDS.fullmatch(field) for field in differing):
        configs = [config for folder in (math, language) if (config := parse_config(folder))]
    if len(configs) == 2:  # else it has no class for them
        meanings = [flatten(without_storage_fields(config_meaning(config))) for config in configs]
        # Of a field that the class does not know, null means what leaving it out means.
        nulls = ((None, MISSING), (MISSING, None))
        differing = {name: values for name, values in differing_fields(meanings).items() if values not in nulls}
    for field, values in differing.items():
        is_stamped = STAMPED_FIELDS.fullmatch(field) is not None
        is_unread = len(configs) == 2 and not any(map(is_read, [field] * 2, configs, (math, language)))
        yield Difference(field, f"config field {field}", values, not (is_stamped or is_unread))


def generation_differences(math: Path, language: Path) -> Iterator[Difference]:
    """What the generation configs of two models differ in; only where a text ends changes the function."""
    fields = []
    for folder in (math, language):
        config = read_json(folder / "generation_config.json", missing_ok=True)
        eos = config.get("eos_token_id")
        if eos is None:
            eos = read_json(folder / "config.json").get("eos_token_id")
        ignored = ("transformers_version", "_from_model_config", "use_cache", "eos_token_id")
        others = {name: value for name, value in config.items() if name not in ignored}
        fields.append(others | {"eos_token_id": end_ids(eos)})
    for field, values in differing_fields(fields).items():
        yield Difference(field, f"generation_config's {field}", values, field == "eos_token_id")


def tensor_differences(folders: Sequence[Path], headers: Sequence[Mapping[str, StoredTensor]]) -> Iterator[Difference]:
    """What the tensors of two models differ in; none of it can be allowed. headers: those of ``mergeable_headers``."""
    tensors = [{name: f"{t.dtype} {list(t.shape)}" for name, t in header.items()} for header in headers]
    for name, values in differing_fields(tensors).items():
        yield Difference("", f"tensor {name}", values)
    dropped = [read_header(f).keys() - header.keys() for f, header in zip(folders, headers, strict=True)]
    names = [{re.sub(r"\.\d+\.", ".*.", name) for name in names} for names in dropped]  # those of all layers as one
    for name in sorted(names[0] | names[1]):
        values = ("there" if name in names[0] else MISSING, "there" if name in names[1] else MISSING)
        yield Difference("", f"tensor {name}, which no loader reads,", values, False)


def file_differences(folders: Sequence[Path], files: Sequence[Sequence[Path]]) -> Iterator[Difference]:
    """The files beside weights, config and tokenizer that two models differ in, such as those of processors."""
    digests = []
    for folder, names in zip(folders, files, strict=True):
        compared = {*matching_files(folder, TOKENIZER_FILES)} - {*matching_files(folder, VOCABULARY_FILES)}
        compared |= {folder / "config.json", folder / "generation_config.json", folder / "tokenizer.json"}
        digests.append({file.name: content_digest(file)[:12] for file in names if file not in compared})
    for name, values in differing_fields(digests).items():
        yield Difference(name, f"file {name} (sha256)", values, False)


def mergeable_headers(folders: Sequence[Path]) -> list[dict[str, StoredTensor]]:
    """The headers of models without what is no weight of its own and not the same in all.

    That is a head that is stored beside the embeddings it is tied to, and buffers that no loader reads.

    Args:
        folders: of the models.

    Returns:
        A header for each: tensor name -> tensor.

    Raises:
        UserError: a tensor is empty, or of a wrapper of the model; or a head is not the embeddings that it is tied to.
    """
    headers = [read_header(folder) for folder in folders]
    dropped = set()
    for folder, header in zip(folders, headers, strict=True):
        check_tensors(folder, header)
        tied = tied_head(folder, header)
        for name in header:
            tensors = [other[name] for other in headers if name in other]
            is_everywhere = len(tensors) == len(headers)
            if is_constant(name, header[name]):
                is_everywhere &= len({(t.dtype, t.shape) for t in tensors}) == 1
                if not is_everywhere or len(set(map(tensor_digest, tensors))) > 1:
                    dropped.add(name)
            elif name == tied and not is_everywhere:
                dropped.add(name)
    return [{name: tensor for name, tensor in header.items() if name not in dropped} for header in headers]


def check_tensors(folder: Path, header: Mapping[str, StoredTensor]) -> None:
    """UserError for a tensor that is empty, or whose name a wrapper of the model has changed."""
    check_not_empty(folder, header)
    for name in header:
        if match := WRAPPERS.search(name):
            wrapper = "torch.compile, FSDP, DDP or an adapter that was not merged"
            expected = "expected the names of the model itself"
            raise UserError(f"{folder}: tensor {name} has {match[1] or match[2]} in its name, of {wrapper}; {expected}")


def check_not_empty(folder: Path, header: Mapping[str, StoredTensor]) -> None:
    """UserError for a tensor of weights that holds nothing."""
    for name, tensor in header.items():
        if tensor.dtype in FLOAT_DTYPES and not prod(tensor.shape):
            expected = "expected weights; ZeRO-3 saves such where they are not gathered"
            raise UserError(f"{folder}: tensor {name} is empty, {tensor.dtype} {list(tensor.shape)}, {expected}")


def tied_head(folder: Path, header: Mapping[str, StoredTensor]) -> str | None:
    """The name of a stored head that is tied to the embeddings. UserError if it is not equal to them."""
    for name, head in header.items():
        if name == "lm_head.weight" or name.endswith(".lm_head.weight"):
            embeddings = [t for other, t in header.items() if other.endswith(EMBEDDINGS) and t.shape == head.shape]
            if embeddings and ties_embeddings(folder):
                if tensor_digest(head) not in map(tensor_digest, embeddings):
                    expected = "expected equal ones, or tie_word_embeddings false"
                    raise UserError(f"{folder}: {name} is not the embeddings, which config.json ties it to; {expected}")
                return name
    return None


def ties_embeddings(folder: Path) -> bool:
    """Whether a model's head is its embeddings; where config.json leaves it out, transformers' class says so."""
    raw = read_json(folder / "config.json")
    if "tie_word_embeddings" in raw or raw.get("model_type") in LLAMAS:
        return bool(raw.get("tie_word_embeddings"))
    return bool(getattr(parse_config(folder), "tie_word_embeddings", False))
