"""What a parameter may name a model by: a folder, a LoRA adapter, a GGUF file, or a model on the hub at a revision.

An adapter is merged into its base and a GGUF file converted once, into build/models, under a name made of their
content. Weights are always safetensors: no pickle is read and no code is fetched. torch is imported by the functions
that load a model.
"""

import errno
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerswap.checkpoints.adapters import merge_adapter
from layerswap.checkpoints.architecture import load_pretrained
from layerswap.checkpoints.gguf import load_gguf
from layerswap.checkpoints.model_files import copy_model_files, matching_files, model_digest, tokenizer_digest
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, count_weights, read_header
from layerswap.errors import UserError, as_user_error, describe_error
from layerswap.files import BUILD, ROOT, check_space, create_once, json_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB = re.compile(r"(?P<name>\w[\w.-]*/(?P<model>\w[\w.-]*))@(?P<revision>(?!.*\.\.)\w[\w./-]*)", re.ASCII)
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model*", "*.txt", "*.tiktoken", "*.spm", "LICENSE*"]  # no code
# Other formats in folders, but for additional chat templates; Mistral's second copy of the weights.
IGNORED_HUB_FILES = [*(f"*/{pattern}" for pattern in HUB_FILES if pattern != "*.jinja"), "consolidated*"]


def resolve_model(name: str | Path, base: str | Path | None = None) -> Path:
    """Find or make the folder of a model.

    Args:
        name: a folder; the folder of a LoRA adapter; a .gguf file; or owner/name@revision of a model or adapter on
            the hub. Relative paths are below the project.
        base: folder of the model that an adapter is merged into.

    Returns:
        A folder of safetensors and config.json.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    path, on_hub = ROOT / name, HUB.fullmatch(str(name))
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return load_gguf(path)
    folder = fetch_from_hub(on_hub["name"], on_hub["revision"]) if on_hub and not path.exists() else path
    if is_adapter(folder):
        if base is None:
            raise UserError(f"model {str(name)!r}: is an adapter, expected a whole model to begin with")
        short_name = on_hub["model"] if on_hub and folder != path else folder.resolve().name
        return merge_adapter(ROOT / base, folder, short_name)
    if not (folder / "config.json").is_file():
        hint = "" if path.exists() else "; a model on the hub is named owner/name@revision"
        raise UserError(f"model {str(name)!r}: {folder} holds no config.json{hint}")
    read_header(folder)
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's. UserError if it is a whole model too; a stray adapter_config.json is none."""
    if not (folder / "adapter_config.json").is_file():
        return False
    weights = sorted(folder.glob("adapter_model.*"))
    models = [*folder.glob("model.safetensors"), *folder.glob("model*.safetensors.index.json")]
    if weights and models:
        contents = f"both an adapter (adapter_config.json, {weights[0].name}) and a whole model ({models[0].name})"
        raise UserError(f"{folder}: holds {contents}, expected one of them")
    return not models


def fetch_from_hub(name: str, revision: str) -> Path:
    """Fetch a model from the hub unless it is in the hub's cache.

    HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN are the hub library's own.

    Args:
        name: owner/name.
        revision: commit, tag or branch.

    Returns:
        Its folder in the cache.

    Raises:
        UserError: what is wrong, and for a gated model what to do.
    """
    from huggingface_hub import constants, errors, snapshot_download

    model = f"model {name}@{revision}"
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=IGNORED_HUB_FILES)
    except errors.GatedRepoError:
        hint = f"accept its terms on {constants.ENDPOINT}/{name}, then log in (hf auth login) or set HF_TOKEN"
        raise UserError(f"{model}: is gated; {hint}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{model}: no such model on the hub, or a private one; HF_TOKEN opens those") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{model}: the model has no such commit, tag or branch") from None
    except errors.LocalEntryNotFoundError as error:  # nothing cached, after ...
        cause = error.__cause__ or error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise UserError(f"{model}: is not (wholly) in the cache, and HF_HUB_OFFLINE is set") from None
        raise UserError(f"{model}: {constants.ENDPOINT} cannot be reached ({describe_error(cause)})") from None
    except (errors.HTTPError, OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"{model}: no space left for it in {constants.HF_HUB_CACHE}") from None
        raise UserError(f"{model}: cannot be fetched ({describe_error(error)})") from None
    if not any(Path(folder).glob("*.safetensors")):
        raise UserError(f"{model}: holds no .safetensors files, only safetensors are read")
    return Path(folder)


def unify_dtypes(folders: Sequence[str | Path]) -> list[Path]:
    """Bring models to one dtype, so that they can be merged: some trained here, others given in bfloat16.

    Args:
        folders: of the models.

    Returns:
        The same folders if all their tensors are of one dtype. Otherwise a float32 copy of each model that has other
        dtypes, made once, file by file; float32 holds every number of the lower dtypes exactly.

    Raises:
        UserError: a tensor of a dtype that float32 does not hold.
    """
    headers = [read_header(folder) for folder in folders]
    if len({tensor.dtype for header in headers for tensor in header.values()}) < 2:
        return [Path(folder) for folder in folders]
    return [to_float32(Path(folder), header) for folder, header in zip(folders, headers, strict=True)]


def to_float32(folder: Path, header: Mapping[str, StoredTensor]) -> Path:
    """A folder with its weights as float32; itself if they are."""
    for name, tensor in header.items():
        if tensor.dtype not in FLOAT_DTYPES or tensor.dtype == "F64":
            raise UserError(f"{folder}: tensor {name} is {tensor.dtype}, which float32 does not hold")
    if all(tensor.dtype == "F32" for tensor in header.values()):
        return folder

    def write(out: Path) -> None:
        from safetensors.torch import load_file, save_file

        check_space(out, 4 * count_weights(header))
        for file in sorted({tensor.file for tensor in header.values()}):
            weights = {name: tensor.float() for name, tensor in load_file(file).items()}
            save_file(weights, out / file.name, {"format": "pt"})
        for file in matching_files(folder, ("model.safetensors.index.json", "provenance.json")):
            shutil.copyfile(file, out / file.name)
        copy_model_files(folder, out, "float32")

    content = json_digest([model_digest(folder), tokenizer_digest(folder)])
    return create_once(BUILD / "models" / f"{folder.resolve().name}-float32-{content[:16]}", write)


def check_device(device: "str | torch.device") -> None:
    """UserError for a GPU that is not there."""
    import torch

    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {device}, but torch finds no GPU here; expected cpu")


def load_model(folder: str | Path, dtype: "torch.dtype", device: "str | torch.device" = "cpu") -> "PreTrainedModel":
    """Load a model with transformers, in eval mode.

    Args:
        folder: of safetensors and config.json.
        dtype: of the weights in memory.
        device: where the weights lie, such as "cuda".

    Returns:
        The model.

    Raises:
        UserError: it cannot be loaded, or tensors are missing or unknown to it, where transformers would go on with
            random weights; a GPU that is not there.
    """
    check_device(device)
    model, info = load_pretrained(folder, dtype=dtype)
    if mismatches := {problem: sorted(names) for problem, names in info.items() if names}:
        raise UserError(f"{folder}: the weights are not those of the model in config.json: {mismatches}")
    return model.eval().to(device)


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer with transformers.

    Args:
        folder: of the model.

    Returns:
        The tokenizer.

    Raises:
        UserError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    with as_user_error(f"{folder}: transformers cannot load its tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
