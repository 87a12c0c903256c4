"""What a tokenizer does, from its files: how it cuts a text, the ids of the pieces, and what is put around them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from layerswap.checkpoints.model_files import TEMPLATES, VOCABULARY_FILES, matching_files
from layerswap.errors import UserError
from layerswap.files import file_digest, json_digest, read_json

# Fields of tokenizer_config.json that decide where a text begins and ends, or how it is cut.
TEXT_FIELDS = ("eos_token", "add_bos_token", "add_eos_token", "add_prefix_space")
MISSING = "missing"


class Difference(NamedTuple):
    """What two models differ in.

    Attributes:
        name: what ``allow`` calls it.
        description: what messages and manifests call it.
        values: those of the two.
        changes_function: whether one of the two would not do what it does with the other's value.
    """

    name: str
    description: str
    values: tuple[Any, Any]
    changes_function: bool = True


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
        return {file.name: content_digest(file) for file in matching_files(folder, VOCABULARY_FILES)}
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


def tokenizer_parts(path: Path) -> dict[str, Any]:
    """What beside the ids of the vocabulary decides what a tokenizer.json does: part -> what can be compared.

    The tokenizers library spells them out, as its versions write the same in several ways (merges as pairs or as text).
    What is put around a text, and what text the ids become, is compared by trying.
    """
    from tokenizers import Tokenizer

    parts = read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
        parts = json.loads(tokenizer.to_str())
        text = tokenizer.encode("a", add_special_tokens=False)
        parts["post_processor"] = [tokenizer.post_process(text, pair).ids for pair in (None, text)]
        parts["decoder"] = tokenizer.decode_batch([[i, i] for i in range(tokenizer.get_vocab_size())], False)
    except Exception:  # the library's own; what it cannot read, or try, is compared as it is written
        pass
    model = dict(parts.get("model") or {})
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    scores = vocabulary if isinstance(vocabulary, list) else None  # of Unigram
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
    cut = {name: parts.get(name) for name in names}
    return cut | {"pre_tokenizer": without_offsets(cut["pre_tokenizer"]), "merges": merges, "model": [model, scores]}


def without_offsets(rules: Any) -> Any:
    """Rules of tokenizer.json without trim_offsets, which changes no token."""
    if isinstance(rules, dict):
        return {name: without_offsets(value) for name, value in rules.items() if name != "trim_offsets"}
    return [without_offsets(rule) for rule in rules] if isinstance(rules, list) else rules


def chat_templates(folder: str | Path) -> dict[str, str]:
    """Name of a chat template -> its text, of all that a folder has."""
    config, template = Path(folder) / "tokenizer_config.json", Path(folder) / "chat_template.jinja"
    templates = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    elif not isinstance(templates, dict):
        templates = {"default": templates} if templates else {}
    if template.is_file():
        templates["default"] = template.read_text(encoding="utf-8")
    return templates | {file.stem: file.read_text(encoding="utf-8") for file in matching_files(folder, [TEMPLATES])}


def tokenizer_differences(math: str | Path, language: str | Path) -> Iterator[Difference]:
    """What the tokenizers of two models differ in, and in their chat templates."""
    folders = Path(math), Path(language)
    paths = [folder / "tokenizer.json" for folder in folders]
    is_there = [path.is_file() for path in paths]
    if is_there[0] != is_there[1]:
        values = tuple("there" if there else MISSING for there in is_there)
        yield Difference("tokenizer.json", "tokenizer.json", (values[0], values[1]))
    elif not is_there[0] or file_digest(paths[0]) != file_digest(paths[1]):
        vocabularies = [read_vocabulary(folder) for folder in folders]
        for token in vocabularies[0] | vocabularies[1]:
            values = tuple(vocabulary.get(token, MISSING) for vocabulary in vocabularies)
            if values[0] != values[1]:
                if is_there[0]:
                    yield Difference("vocabulary", f"token {token!r}", (values[0], values[1]))
                else:
                    yield Difference(token, f"tokenizer's file {token} (sha256)", (values[0][:12], values[1][:12]))
    if all(is_there) and file_digest(paths[0]) != file_digest(paths[1]):
        parts = [tokenizer_parts(path) for path in paths]
        for name in parts[0]:
            digests = [json_digest(part[name])[:12] for part in parts]
            if digests[0] != digests[1]:
                yield Difference(name, f"tokenizer's {name} (sha256)", (digests[0], digests[1]))
    configs = [read_json(path) if path.is_file() else {} for path in (f / "tokenizer_config.json" for f in folders)]
    for field in TEXT_FIELDS:
        values = tuple(
            token["content"] if isinstance(token := config.get(field), dict) else token for config in configs
        )
        if values[0] != values[1]:  # a field that one leaves out is what its tokenizer.json says
            yield Difference(field, f"tokenizer_config's {field}", (values[0], values[1]), None not in values)
    templates = [chat_templates(folder) for folder in folders]
    for name in templates[0] | templates[1]:
        values = tuple(json_digest(template[name])[:12] if name in template else MISSING for template in templates)
        if values[0] != values[1]:
            yield Difference("chat_template", f"chat template {name!r} (sha256)", (values[0], values[1]), False)
