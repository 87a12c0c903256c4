"""The files beside the weights: which of them make a model, their copies, and digests of them."""

import json
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from layerswap.checkpoints.safetensors import read_header, weights_digest
from layerswap.errors import UserError
from layerswap.files import check_fetched, file_digest, json_digest, read_json

FileStates = dict[Path, tuple[int, ...]]  # file of a model -> its inode, size and times

TEMPLATES = "additional_chat_templates/*.jinja"
# Of tokenizers without a tokenizer.json, or beside it for other engines.
VOCABULARY_FILES = ("tekken.json", "*.tiktoken", "*.model", "*.spm", "vocab*", "merges.txt", "added_tokens.json")
TOKENIZER_FILES = ("tokenizer*", "*token*.json", "chat_template*", TEMPLATES, *VOCABULARY_FILES)
PROCESSOR_FILES = ("*processor*.json",)  # of images, sound and video
CODE = "custom code"
# Files that no copy of a model gets, by the reason.
LEFT_OUT = {
    "weights or training state": (
        "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx*",
        "*.np[yz]", "*.pkl", "*.pickle", "*.ot", "*.distcp", "adapter_config.json", "trainer_*", "training_args.*",
        "*_results.json", "events.out.*",
    ),
    "of this model alone": (
        "README.md", "layerswap.json", "mergekit_config.yml", "adapter.json", "provenance.json", "training.json", ".*",
    ),
    CODE: ("*.py", "*.so"),
}  # fmt: skip
# Fields of config.json that say how a model is stored or was trained, not what it computes.
STORAGE_FIELDS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"}


def without_storage_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """A config's fields that decide what a model computes, also within nested ones."""
    return {
        field: without_storage_fields(value) if isinstance(value, dict) else value
        for field, value in fields.items()
        if field not in STORAGE_FIELDS
    }


def function_config(folder: str | Path) -> dict[str, Any]:
    """The fields of config.json that decide what a model computes, as they are written."""
    return without_storage_fields(read_json(Path(folder) / "config.json"))


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
    eos = read_json(Path(folder) / "generation_config.json", missing_ok=True).get("eos_token_id")
    return json_digest([eos, [[file.name, file_digest(file)] for file in matching_files(folder, TOKENIZER_FILES)]])


def file_states(folder: str | Path) -> FileStates:
    """Each file that a model is read from -> what changes with it: its inode, size (bytes) and times (ns).

    The time of the last change cannot be set, as ``cp -p`` and ``rsync -t`` set that of the content.
    To be taken before a digest; ``check_unchanged`` then says whether what was loaded is what has that digest.

    Raises:
        UserError: as in ``read_header``.
    """
    weights = {tensor.file for tensor in read_header(folder).values()}
    files = [*weights, *matching_files(folder, ("config.json", "generation_config.json", *TOKENIZER_FILES))]
    return {
        file: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for file in files
        for stat in [file.stat()]
    }


def check_unchanged(folder: str | Path, states: FileStates) -> None:
    """UserError names a file of a model that is not as ``file_states`` found it."""
    present = file_states(folder)
    if changed := sorted(file for file in {*present, *states} if present.get(file) != states.get(file)):
        raise UserError(f"{changed[0]}: was changed or replaced meanwhile; nothing was kept of it, run again")


def split_files(folder: str | Path, custom_code: bool = False) -> tuple[list[Path], dict[str, str]]:
    """The files of a model that a copy of it gets, and those that it does not.

    Args:
        folder: of the model.
        custom_code: whether its code is copied, which config.json may name in its auto_map.

    Returns:
        The files, sorted: all beside the weights that say how the model is used. And the name of each other file or
        folder, but the weights -> why it is left out; code that config.json names and that is not there too.

    Raises:
        UserError: a file to copy is a pointer of Git LFS, or a link to nothing.
    """
    files, left_out = matching_files(folder, [TEMPLATES]), {}
    weights = {tensor.file.name for tensor in read_header(folder).values()} | {"model.safetensors.index.json"}
    for path in sorted(path for path in Path(folder).iterdir() if path.name not in weights):
        patterns = LEFT_OUT.items()
        reasons = [reason for reason, names in patterns if any(fnmatch(path.name, pattern) for pattern in names)]
        if reasons and not (custom_code and reasons == [CODE]):
            left_out[path.name] = reasons[0]
        elif path.is_file() or not path.exists():  # a link to nothing
            files.append(path)
        elif path.name != Path(TEMPLATES).parent.name:
            left_out[path.name] = "a folder"
    for file in files:
        check_fetched(file)
    config = read_json(Path(folder) / "config.json", missing_ok=True)
    named = re.findall(r'[\w.-]+(?=\.\w+")', json.dumps(config.get("auto_map")))
    present = {file.name for file in files}
    left_out |= {f"{name}.py": f"{CODE}, named by config.json" for name in named if f"{name}.py" not in present}
    return files, left_out


def copy_model_files(
    donor: str | Path, folder: Path, dtype: str | None = None, custom_code: bool = False
) -> dict[str, str]:
    """Copy what lies beside a model's weights: config, tokenizer, chat templates, processors, licence.

    Args:
        donor: folder of the model.
        folder: where they are copied to.
        dtype: what the copied config calls the dtype of the weights (None: what the donor's says); "" copies no
            config, as for the folder of an adapter.
        custom_code: whether its code is copied too.

    Returns:
        Name of each file that is left out -> why.
    """
    files, left_out = split_files(donor, custom_code)
    for path in files:
        target = folder / path.relative_to(donor)
        target.parent.mkdir(exist_ok=True)
        if path.name != "config.json" or dtype is None:
            shutil.copyfile(path, target)
        elif dtype:
            config = {field: value for field, value in read_json(path).items() if field != "torch_dtype"}
            target.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
    return left_out
