"""The files beside the weights: config and tokenizer, whether those of two models agree, and digests of them."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layerswap.checkpoints.safetensors import read_header, weights_digest
from layerswap.errors import UserError
from layerswap.files import file_digest, json_digest, read_json

VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "merges.txt")  # of tokenizers without a tokenizer.json
TOKENIZER_FILES = ("tokenizer*", "*token*.json", "chat_template*", *VOCABULARY_FILES)
MODEL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
# Fields of config.json that say how a model is stored or was trained, not what it computes.
STORAGE_FIELDS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"}


def read_vocabulary(folder: str | Path) -> dict[str, Any]:
    """Read a tokenizer's vocabulary.

    Args:
        folder: of the model.

    Returns:
        Token -> id, from tokenizer.json. Without that file: vocabulary file -> its digest ({} if there is none).

    Raises:
        UserError: tokenizer.json is malformed.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        files = (path.with_name(name) for name in VOCABULARY_FILES)
        return {file.name: file_digest(file) for file in files if file.is_file()}
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # Unigram has pairs of token and score in the order of the ids
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        return vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer ({error!r})") from None


def tokenizer_fingerprint(folder: str | Path) -> dict[str, str]:
    """What beside the vocabulary decides how a text is cut into tokens: part of tokenizer.json -> digest."""
    path = Path(folder) / "tokenizer.json"
    tokenizer = read_json(path) if path.is_file() else {}
    rules = {"normalizer": tokenizer.get("normalizer"), "pre_tokenizer": tokenizer.get("pre_tokenizer")}
    rules["merges"] = tokenizer.get("model", {}).get("merges")
    return {name: json_digest(content)[:12] for name, content in rules.items()}


def function_config(folder: str | Path) -> dict[str, Any]:
    """The fields of config.json that decide what a model computes, also within nested ones."""

    def without_storage_fields(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            field: without_storage_fields(value) if isinstance(value, dict) else value
            for field, value in fields.items()
            if field not in STORAGE_FIELDS
        }

    return without_storage_fields(read_json(Path(folder) / "config.json"))


def check_compatible(math: str | Path, language: str | Path) -> None:
    """Check that two models differ in nothing but the values of their weights.

    Compared are config fields that change the function, tensors (dtype, shape), the tokenizer's vocabulary,
    normalizer, pre-tokenizer and merges.

    Args:
        math: folder of one.
        language: folder of the other.

    Raises:
        UserError: the first difference.
    """
    descriptions = []
    for folder in (math, language):
        header = read_header(folder)
        description = {f"config field {field}": value for field, value in function_config(folder).items()}
        for name, tensor in header.items():
            description[f"tensor {name}"] = f"{tensor.dtype} {list(tensor.shape)}"
        for token, i in read_vocabulary(folder).items():
            description[f"token {token!r}"] = i
        for name, digest in tokenizer_fingerprint(folder).items():
            description[f"tokenizer's {name} (sha256)"] = digest
        descriptions.append(description)
    for key in descriptions[0] | descriptions[1]:
        a, b = (description.get(key, "missing") for description in descriptions)
        if a != b:
            raise UserError(f"{key} is {a} in {math} and {b} in {language}, expected the same")


def matching_files(folder: str | Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match one of the patterns, sorted."""
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()})


def model_digest(folder: str | Path) -> str:
    """Digest of a model: its weights, and what its config says of how they are used.

    Args:
        folder: of the model. Every byte is read, as in ``weights_digest``.

    Returns:
        sha256 (hex).

    Raises:
        UserError: as in ``read_header``, or no config.json.
    """
    return json_digest([weights_digest(folder), function_config(folder)])


def tokenizer_digest(folder: str | Path) -> str:
    """Digest of how a model's text is cut into tokens, put into a chat, and ended.

    Args:
        folder: of the model.

    Returns:
        sha256 (hex).
    """
    path = Path(folder) / "generation_config.json"
    eos = read_json(path).get("eos_token_id") if path.is_file() else None
    return json_digest([eos, [[file.name, file_digest(file)] for file in matching_files(folder, TOKENIZER_FILES)]])


def copy_model_files(donor: str | Path, folder: Path, dtype: str | None = None) -> None:
    """Copy a model's config, tokenizer and chat template.

    Args:
        donor: folder of the model.
        folder: where they are copied to.
        dtype: what the copied config calls the dtype of the weights (None: what the donor's says); "" copies no
            config, as for the folder of an adapter.
    """
    for path in matching_files(donor, MODEL_FILES):
        if path.name != "config.json" or dtype is None:
            shutil.copyfile(path, folder / path.name)
        elif dtype:
            config = {field: value for field, value in read_json(path).items() if field != "torch_dtype"}
            text = json.dumps(config | {"dtype": dtype}, indent=2)
            (folder / path.name).write_text(text + "\n", encoding="utf-8")
