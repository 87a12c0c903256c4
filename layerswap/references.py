"""What a parameter may name a model by: a folder, a LoRA adapter, a GGUF file, or a model on the hub at a revision.

Adapters are folded into their base and GGUF files converted once, into build/models, under a name made of their
content. Weights are safetensors always: no pickle is read, no code is fetched.
"""

import errno
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from layerswap import checkpoint, provenance
from layerswap.blend import MIXED
from layerswap.paths import BUILD, ROOT, UserError, atomic_folder, check_space, digest, file_digest, one_line
from layerswap.plan import layer_index

HUB = re.compile(r"(?P<name>\w[\w.-]*/(?P<model>\w[\w.-]*))@(?P<revision>(?!.*\.\.)\w[\w./-]*)", re.ASCII)
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]  # no pickles, no code
UNWANTED = ["*/*", "consolidated*"]  # other formats in folders, and Mistral's second copy of the weights
LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Settings of an adapter that is more, or something else, than W + scale B A with the base's own W.
UNFIT = ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "trainable_token_indices", "target_parameters",
         "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
         "monteclora_config", "velora_config")  # fmt: skip
OWN_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # init_lora_weights; others change W


def model(name, base=None):
    """The folder of safetensors and config.json that a reference names; relative names are below the project.

    name: a folder; the folder of a PEFT LoRA adapter, which is folded into ``base`` (a folder); a .gguf file; or
    owner/name@revision of a model or adapter on the hub. UserError if there is no such thing, or it cannot be used.
    """
    path, found = ROOT / name, HUB.fullmatch(str(name))
    if path.suffix == ".gguf" and not path.is_dir():
        return gguf_model(path)
    folder = fetch(found["name"], found["revision"]) if found and not path.exists() else path
    if (folder / "adapter_config.json").is_file():
        if base is None:
            raise UserError(f"model {str(name)!r}: is an adapter, expected a whole model to begin with")
        return fold(ROOT / base, folder, found["model"] if folder != path else folder.resolve().name)
    if not (folder / "config.json").is_file():
        hint = "" if path.exists() else "; a model on the hub is named owner/name@revision"
        raise UserError(f"model {str(name)!r}: {folder} holds no config.json{hint}")
    checkpoint.read_header(folder)
    return folder


def once(out, write):
    """``out``, which ``write(folder)`` makes if it is not there; of two processes at once the first one's stays."""
    if not out.is_dir():
        try:
            with atomic_folder(out) as folder:
                write(folder)
        except UserError:
            if not out.is_dir():
                raise
    return out


def alike(folders):
    """The folders, each as float32 if they are not all of one dtype: experts trained here, and given ones in bfloat16.

    Float32 holds every number of the lower dtypes exactly. Copies are made once, file by file.
    """
    headers = [checkpoint.read_header(folder) for folder in folders]
    if len({tensor.dtype for header in headers for tensor in header.values()}) < 2:
        return list(folders)
    return [widened(Path(folder), header) for folder, header in zip(folders, headers, strict=True)]


def widened(folder, header):
    """A folder with its weights as float32; itself if they are."""
    from safetensors.torch import load_file, save_file

    if wrong := [name for name, tensor in header.items() if tensor.dtype not in MIXED or tensor.dtype == "F64"]:
        raise UserError(f"{folder}: tensor {wrong[0]} is {header[wrong[0]].dtype}, which float32 does not hold")
    if all(tensor.dtype == "F32" for tensor in header.values()):
        return folder

    def write(out):
        files = sorted({tensor.file for tensor in header.values()})
        check_space(out, 4 * checkpoint.n_weights(header))
        for file in files:
            data = {name: tensor.float() for name, tensor in load_file(file).items()}
            save_file(data, out / file.name, {"format": "pt"})
        for file in provenance.files(folder, ("model.safetensors.index.json", "provenance.json")):
            shutil.copyfile(file, out / file.name)
        provenance.donate(folder, out, "float32")

    content = digest([provenance.model_digest(folder), provenance.reading_digest(folder)])
    return once(BUILD / "models" / f"{folder.resolve().name}-float32-{content[:16]}", write)


# --- the hub --------------------------------------------------------------------------------------------------------


def fetch(name, revision):
    """The folder in the hub's cache that holds a model at a revision (commit, tag or branch), fetched if need be.

    HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN are the hub library's own. UserError says what is wrong, and of
    a gated model what to do.
    """
    from huggingface_hub import constants, errors, snapshot_download

    what = f"model {name}@{revision}"
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    except errors.GatedRepoError:
        hint = f"accept its terms on {constants.ENDPOINT}/{name}, then log in (hf auth login) or set HF_TOKEN"
        raise UserError(f"{what}: is gated; {hint}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{what}: no such model on the hub, or a private one; HF_TOKEN opens those") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: the model has no such commit, tag or branch") from None
    except errors.LocalEntryNotFoundError as error:  # nothing cached, after ...
        cause = error.__cause__ or error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise UserError(f"{what}: is not (wholly) in the cache, and HF_HUB_OFFLINE is set") from None
        raise UserError(f"{what}: {constants.ENDPOINT} cannot be reached ({reason(cause)})") from None
    except (errors.HTTPError, OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"{what}: no space left for it in {constants.HF_HUB_CACHE}") from None
        raise UserError(f"{what}: cannot be fetched ({reason(error)})") from None
    if not any(Path(folder).glob("*.safetensors")):
        raise UserError(f"{what}: holds no .safetensors files, only safetensors are read")
    return Path(folder)


def reason(error):
    """An error's class and the beginning of its message."""
    return f"{type(error).__name__}: {one_line(error)}"


# --- GGUF -----------------------------------------------------------------------------------------------------------


def gguf_model(path):
    """The folder made of a .gguf file; provenance.json says which file, and what its matrices were."""
    from gguf import GGUFReader

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        kinds = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)
        (kind, _), *_ = kinds.most_common(1)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: not a GGUF file with weights ({reason(error)})") from None
    told = {"file": path.name, "sha256": file_digest(path), "note": f"dequantised from {kind}"}
    return once(BUILD / "models" / f"{path.stem}-{told['sha256'][:16]}", partial(from_gguf, path, provenance=told))


def from_gguf(path, folder, provenance):
    """Write a GGUF file's model to an empty folder: float32, which keeps the dequantised values as they are.

    Beside it its tokenizer, and provenance.json. UserError if transformers cannot load it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as alone:  # transformers reads a tokenizer that lies beside the file
        (Path(alone) / path.name).symlink_to(path.resolve())
        try:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                alone, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=path.name)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
            raise UserError(f"{path}: transformers cannot load it ({reason(error)})") from None
    if info["missing_keys"]:
        raise UserError(f"{path}: has no tensor {min(info['missing_keys'])}")
    config = AutoConfig.for_model(**loaded.config.to_dict())
    del config.quantization_config  # a model marked as quantised cannot be saved
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")


# --- adapters -------------------------------------------------------------------------------------------------------


def fold(base, adapter, name):
    """The base with a LoRA adapter folded in, W + scale B A, every bit as PEFT's merge_and_unload on a CPU.

    Made once, as ``name`` and a digest of the content of both; one tensor at a time, so memory does not grow with the
    model. UserError for all that is not plain LoRA on matrices of this base, and for a result that is not finite.
    """
    settings, weights = checkpoint.read_json(adapter / "adapter_config.json"), adapter / "adapter_model.safetensors"
    if not weights.is_file() and (found := sorted(adapter.glob("*.bin"))):
        raise UserError(f"{adapter}: found {found[0].name}, a pickle; expected {weights.name}")
    header = checkpoint.read_header(base)
    folds = check_adapter(adapter, settings, checkpoint.read_file_header(weights), base, header)
    content = [provenance.model_digest(base), provenance.reading_digest(base)]
    content += [file_digest(adapter / "adapter_config.json"), file_digest(weights)]

    def write(folder):
        shards = {tensor.file for tensor in header.values()}
        check_space(folder, sum(file.stat().st_size for file in shards))
        for file in (*shards, *provenance.files(base, ("model.safetensors.index.json",))):
            shutil.copyfile(file, folder / file.name)
        provenance.donate(base, folder)
        for tensor_name, parts in folds.items():
            made = folded(tensor_name, header[tensor_name], *parts)
            with open(folder / header[tensor_name].file.name, "r+b") as file:
                file.seek(header[tensor_name].start)
                file.write(made)
        told = {"base": str(base), "adapter": str(adapter), "settings": settings}
        (folder / "adapter.json").write_text(json.dumps(told, indent=1), encoding="utf-8")

    return once(BUILD / "models" / f"{name}-{digest(content)[:16]}", write)


def check_adapter(adapter, settings, stored, base, header):
    """Name of a base's tensor -> (A, B, scale) for all of an adapter. UserError unless that is the whole of it."""
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{adapter}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    if unfit := [field for field in UNFIT if settings.get(field)]:
        raise UserError(f"{adapter}: has {unfit[0]}, expected plain LoRA on matrices, nothing else can be folded")
    if (found := settings.get("init_lora_weights")) not in OWN_BASE:
        raise UserError(f"{adapter}: init_lora_weights is {found!r}, which changes the base; expected plain LoRA")
    tied, pairs = checkpoint.read_json(base / "config.json").get("tie_word_embeddings"), {}
    for name, tensor in stored.items():
        found = LORA.fullmatch(name)
        if not found or len(tensor.shape) != 2 or tensor.dtype not in MIXED:
            kind = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(f"{adapter}: tensor {name} ({kind}) is not plain LoRA's A or B")
        pairs.setdefault(found["module"], {})[found["side"]] = tensor
    if not pairs:
        raise UserError(f"{adapter}: holds no LoRA matrices")
    folds = {}
    for module, sides in pairs.items():
        weight = header.get(f"{module}.weight")
        if tied and layer_index(module) is None:
            raise UserError(f"{adapter}: module {module} cannot be folded: the base's embeddings are tied to it")
        if weight is None:
            raise UserError(f"{adapter}: module {module} is not one of {base}, an adapter of another base?")
        if weight.dtype not in MIXED or len(weight.shape) != 2:
            kind, expected = f"{weight.dtype} {list(weight.shape)}", f"a matrix of one of {', '.join(MIXED)}"
            raise UserError(f"{adapter}: module {module} of {base} is {kind}, expected {expected}")
        if len(sides) != 2:
            raise UserError(f"{adapter}: module {module} has lora_{min(sides)} alone, expected lora_A and lora_B")
        scale, rank = scaling(adapter, settings, module)
        (out, into), found = weight.shape, [sides[side].shape for side in "AB"]
        if found != [(rank, into), (out, rank)]:
            expected = f"{[(rank, into), (out, rank)]} by its rank and the base; an adapter of another base?"
            raise UserError(f"{adapter}: module {module} has lora_A, lora_B of {found}, expected {expected}")
        folds[f"{module}.weight"] = sides["A"], sides["B"], scale
    return folds


def scaling(adapter, settings, module):
    """(scale of B A, rank) in a module: alpha / rank, or rank-stabilised alpha / sqrt(rank); patterns as in PEFT."""
    values = []
    for field, patterns, kinds in (("lora_alpha", "alpha_pattern", (int, float)), ("r", "rank_pattern", (int,))):
        try:
            asked = (settings.get(patterns) or {}).items()
            values.append(next((v for p, v in asked if re.match(rf"(.*\.)?({p})$", module)), settings.get(field)))
        except (AttributeError, re.error) as error:
            raise UserError(f"{adapter}: {patterns} is no table of patterns ({error})") from None
        if type(values[-1]) not in kinds or not abs(values[-1]) < 1e30:
            raise UserError(f"{adapter}: {field} of {module} is {values[-1]!r}, expected a number")
    alpha, rank = values
    if rank < 1:
        raise UserError(f"{adapter}: r of {module} is {rank}, expected 1 or more")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank), rank


def folded(name, weight, a, b, scale):
    """The bytes of W + scale B A. W: [out, in], A: [rank, in], B: [out, rank]. UserError unless all are finite."""
    import torch

    whole = read(weight)
    # PEFT keeps an adapter in float32 whatever it was saved in, and in float64 on a base of that.
    wide = torch.promote_types(whole.dtype, torch.float32)
    whole += (read(b).to(wide) @ read(a).to(wide)) * scale  # rounded once, from ``wide`` to the dtype of W
    if not whole.isfinite().all():
        raise UserError(f"{a.file}: folded into tensor {name} of {weight.file} it makes NaN or infinity")
    return whole.view(torch.uint8).numpy()


def read(tensor):
    """A tensor of a safetensors file."""
    import torch

    whole = torch.empty(tensor.shape, dtype=getattr(torch, MIXED[tensor.dtype]))  # aligned as PEFT's are
    with open(tensor.file, "rb") as file:
        file.seek(tensor.start)
        if file.readinto(whole.view(-1).view(torch.uint8).numpy()) != tensor.n_bytes:
            raise UserError(f"{tensor.file}: ended early, expected {tensor.end} bytes")
    return whole
