"""What a tokenizer does, from its files: how it cuts a text, the ids of the pieces, and what is put around them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerswap.checkpoints.difference import MISSING, Difference, differing_fields
from layerswap.checkpoints.model_files import TEMPLATES, VOCABULARY_FILES, matching_files
from layerswap.errors import UserError
from layerswap.files import file_digest, json_digest, read_json

# Fields of tokenizer_config.json that decide where a text begins and ends, or how it is cut.
TEXT_FIELDS = ("eos_token", "add_bos_token", "add_eos_token", "add_prefix_space")
SLOW_FIELDS = (*TEXT_FIELDS, "tokenizer_class", "legacy", "do_lower_case")  # where there is no tokenizer.json
OTHER_FIELDS = ("chat_template", "name_or_path", "is_local", "backend")  # compared elsewhere, or how it was stored


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
        return {file.name: content_digest(file)[:12] for file in matching_files(folder, VOCABULARY_FILES)}
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # Unigram has pairs of token and score in the order of the ids
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        return vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer ({error!r})") from None


def content_digest(file: Path) -> str:
    """Digest of what a file says: of JSON whatever its layout, else of its bytes."""
    try:
        return json_digest(json.loads(file.read_bytes()) if file.suffix == ".json" else file_digest(file))
    except (ValueError, RecursionError):
        return file_digest(file)


def tokenizer_rules(path: Path) -> dict[str, str]:
    """What beside the ids of the vocabulary decides what a tokenizer.json does: rule -> digest.

    The tokenizers library spells them out, as its versions write the same in several ways (merges as pairs or as text).
    What is put around a text, and what text the ids become, is compared by trying.
    """
    from tokenizers import Tokenizer

    rules = read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
        rules = json.loads(tokenizer.to_str())
        text = tokenizer.encode("a", add_special_tokens=False)
        rules["post_processor"] = [surroundings(tokenizer.post_process(text, pair)) for pair in (None, text)]
        rules["decoder"] = tokenizer.decode_batch([[i, i] for i in range(tokenizer.get_vocab_size())], False)
    except Exception:  # the library's own; what it cannot read, or try, is compared as it is written
        pass
    model = dict(rules.get("model") or {})
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    scores = vocabulary if isinstance(vocabulary, list) else None  # of Unigram
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
    compared = {name: rules.get(name) for name in names} | {"merges": merges, "model": [model, scores]}
    compared["pre_tokenizer"] = without_offsets(compared["pre_tokenizer"])
    return {name: json_digest(rule)[:12] for name, rule in compared.items()}


def surroundings(encoding: Any) -> list[int | str]:
    """The ids that a post-processor has put around a text, or two, with "text" in the place of each."""
    pieces: list[int | str] = []
    for i, is_special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if is_special:
            pieces.append(i)
        elif pieces[-1:] != ["text"]:
            pieces.append("text")
    return pieces


def without_offsets(rules: Any) -> Any:
    """Rules of tokenizer.json without trim_offsets, which changes no token."""
    if isinstance(rules, dict):
        return {name: without_offsets(value) for name, value in rules.items() if name != "trim_offsets"}
    return [without_offsets(rule) for rule in rules] if isinstance(rules, list) else rules


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """The fields of tokenizer_config.json that are text, a number or a truth value; of a token its text."""
    config = read_json(folder / "tokenizer_config.json", missing_ok=True)
    values = {name: value.get("content") if isinstance(value, dict) else value for name, value in config.items()}
    return {name: v for name, v in values.items() if isinstance(v, (str, int, float)) and name not in OTHER_FIELDS}


def chat_templates(folder: Path) -> dict[str, str]:
    """Name of a chat template -> digest of its text, of all that a folder has."""
    config = folder / "tokenizer_config.json"
    templates: Any = read_json(config, missing_ok=True).get("chat_template")
    if isinstance(templates, list):
        try:
            templates = {entry["name"]: entry["template"] for entry in templates}
        except (TypeError, KeyError):
            expected = "expected text, or a list of tables with a name and a template"
            raise UserError(f"{config}: chat_template is {str(templates)[:100]}, {expected}") from None
    elif not isinstance(templates, dict):
        templates = {"default": templates} if templates else {}
    for file in matching_files(folder, ["chat_template.jinja", TEMPLATES]):
        name = "default" if file.parent == folder else file.stem
        templates[name] = file.read_text(encoding="utf-8")
    return {name: json_digest(text)[:12] for name, text in templates.items()}


def has_chat_template(folder: str | Path) -> bool:
    """Whether a model's tokenizer has a chat template, as instruct models' have; no tokenizer is loaded."""
    return bool(chat_templates(Path(folder)) or matching_files(folder, ["chat_template*"]))


def tokenizer_differences(math: Path, language: Path) -> Iterator[Difference]:
    """What the tokenizers of two models differ in, and their chat templates."""
    folders = (math, language)
    paths = [folder / "tokenizer.json" for folder in folders]
    is_there = [path.is_file() for path in paths]
    if not any(is_there):
        for name, values in differing_fields([read_vocabulary(folder) for folder in folders]).items():
            yield Difference(name, f"tokenizer's file {name} (sha256)", values)
    elif not all(is_there):
        yield Difference("tokenizer.json", "tokenizer.json", ("there", MISSING) if is_there[0] else (MISSING, "there"))
    elif file_digest(paths[0]) != file_digest(paths[1]):
        for token, values in list(differing_fields([read_vocabulary(folder) for folder in folders]).items())[:1]:
            yield Difference("vocabulary", f"token {token!r}", values)
        for name, values in differing_fields([tokenizer_rules(path) for path in paths]).items():
            yield Difference(name, f"tokenizer's {name} (sha256)", values)
    for name, values in differing_fields([tokenizer_settings(folder) for folder in folders]).items():
        is_text_field = name in (TEXT_FIELDS if any(is_there) else SLOW_FIELDS)
        changes_function = is_text_field and MISSING not in values  # one that is left out is what tokenizer.json says
        yield Difference(name, f"tokenizer_config's {name}", values, changes_function)
    for name, values in differing_fields([chat_templates(folder) for folder in folders]).items():
        yield Difference("chat_template", f"chat template {name!r} (sha256)", values, False)
