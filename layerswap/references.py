"""What a model may be named by: a folder, a LoRA adapter, a GGUF file, or a model on the hub at one revision.

Adapters are folded into their base and GGUF files converted, once, into build/models under a name made of content.
"""

import json
import math
import re
import shutil
from pathlib import Path

from layerswap import checkpoint, provenance
from layerswap.blend import MIXED
from layerswap.paths import BUILD, ROOT, UserError, atomic_file, atomic_folder, check_space, digest, file_digest

# What is fetched of a model on the hub: weights and text, no pickles and no code.
WANTED = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", *provenance.DONATED]
HUB = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)@(?P<revision>\w[\w./-]*)")
LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
UNFIT = {"use_dora": "DoRA", "lora_bias": "LoRA with biases", "fan_in_fan_out": "transposed weights"}


def model(name, base=None):
    """The folder of safetensors that a reference names.

    name: a folder or a .gguf file, relative to the project; the folder of a LoRA adapter, which is folded into
    ``base`` (a folder); or owner/name@revision of a model or adapter on the hub. UserError says in one line what is
    not there or cannot be used, and what to do about it.
    """
    found, hub = ROOT / name, HUB.fullmatch(str(name))
    if hub and not found.exists():
        found = fetch(hub["name"], hub["revision"])
    if found.is_file() and found.suffix == ".gguf":
        return from_gguf(found)
    if (found / "adapter_config.json").is_file():
        if base is None:
            raise UserError(f"model {name}: is an adapter, expected a whole model (or a base to fold it into)")
        return fold(Path(base), found)
    if not (found / "config.json").is_file():
        where = f"{found} holds no config.json" if found.is_dir() else f"{found}: no such folder"
        raise UserError(f"model {name}: {where}; a model on the hub is owner/name@revision")
    return found


def fetch(name, revision):
    """The folder in the hub's cache that holds a model at a revision; what is not there yet is fetched.

    A transfer that breaks goes on where it stopped, and whole files are never fetched twice. HF_HUB_OFFLINE,
    HF_ENDPOINT, HF_HOME and HF_TOKEN are the hub library's own. UserError says what to do about a gated model, an
    unknown name or revision, and no connection.
    """
    from huggingface_hub import errors, snapshot_download

    reference = f"model {name}@{revision}"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except errors.GatedRepoError:
        todo = "accept its terms on its page, then log in (hf auth login) or set HF_TOKEN"
        raise UserError(f"{reference}: is gated; {todo}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{reference}: the model has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{reference}: no such model on the hub, or a private one that needs HF_TOKEN") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(f"{reference}: is not whole in the cache, and the hub was not reached") from None
    except Exception as error:  # the transfer's own: each library under the hub's raises others
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{reference}: the transfer failed ({reason}); whole files are kept: run it again") from None
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{reference}: holds no safetensors, the only weights that are read")
    return folder


def fold(base, adapter):
    """The base with a LoRA adapter folded in, W + scale B A, bit for bit as PEFT's merge_and_unload does.

    Made once for the content of both, one matrix after another: memory does not grow with the model. UserError for
    another kind of adapter than plain LoRA on matrices, and for one whose modules or shapes are not the base's.
    """
    settings, weights = checkpoint.read_json(adapter / "adapter_config.json"), adapter / "adapter_model.safetensors"
    if not weights.is_file() and (adapter / "adapter_model.bin").is_file():
        raise UserError(f"{adapter}: found adapter_model.bin, a pickle; expected adapter_model.safetensors")
    header, stored = checkpoint.read_header(base), checkpoint.read_file_header(weights)
    pairs = check_adapter(adapter, settings, header, stored)
    key = digest([provenance.model_digest(base), provenance.reading_digest(base), settings, file_digest(weights)])
    out = BUILD / "models" / f"{adapter.name}-{key[:16]}"
    if out.is_dir():
        return out
    files = sorted({tensor.file for tensor in header.values()})
    check_space(out, sum(file.stat().st_size for file in files))
    with atomic_folder(out) as folder:
        for file in [*files, *provenance.files(base, ("*.safetensors.index.json", *provenance.DONATED))]:
            shutil.copyfile(file, folder / file.name)
        for module, (a, b) in pairs.items():
            tensor, factor = header[f"{module}.weight"], scale(adapter, settings, module, stored[a].shape[0])
            made = folded(tensor, stored[a], stored[b], factor)
            if made is None:
                raise UserError(f"{adapter}: the change of module {module} is no finite number")
            with open(folder / tensor.file.name, "r+b") as file:
                file.seek(tensor.start)
                file.write(made)
        with atomic_file(folder / "adapter.json") as file:
            json.dump({"base": str(base), "adapter": str(adapter), "settings": settings}, file, indent=1)
    return out


def check_adapter(adapter, settings, header, stored):
    """module -> names of its (A, B). UserError unless all of an adapter is plain LoRA on the base's matrices."""
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{adapter}: peft_type is {settings.get('peft_type')}, expected LORA")
    for field, what in UNFIT.items():
        if settings.get(field):
            raise UserError(f"{adapter}: {field} is set; {what} cannot be folded")
    found = {}
    for name in stored:
        lora = LORA.fullmatch(name)
        if not lora:
            raise UserError(f"{adapter}: tensor {name} is no lora_A or lora_B of a matrix, and cannot be folded")
        found.setdefault(lora["module"], {})[lora["side"]] = name
    if not found:
        raise UserError(f"{adapter}: holds no LoRA matrices")
    for module, sides in found.items():
        if f"{module}.weight" not in header:
            raise UserError(f"{adapter}: the base has no module {module}; an adapter of another base?")
        if missing := {"A", "B"} - sides.keys():
            raise UserError(f"{adapter}: module {module} has no lora_{min(missing)}")
        weight, a, b = header[f"{module}.weight"], stored[sides["A"]], stored[sides["B"]]
        shapes = [list(each.shape) for each in (b, a, weight)]
        if (
            [len(shape) for shape in shapes] != [2, 2, 2]
            or shapes[2] != [shapes[0][0], shapes[1][1]]
            or (shapes[0][1] != shapes[1][0])
        ):
            product = f"B {shapes[0]} times A {shapes[1]}"
            raise UserError(f"{adapter}: module {module} is {product}, {shapes[2]} in the base; one of another base?")
        if wrong := [each for each in (weight, a, b) if each.dtype not in MIXED]:
            raise UserError(f"{wrong[0].file}: module {module} is {wrong[0].dtype}, expected one of {', '.join(MIXED)}")
        scale(adapter, settings, module, a.shape[0])
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}


def scale(adapter, settings, module, rank):
    """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank) if rank-stabilised; patterns as in PEFT."""
    patterns = settings.get("alpha_pattern") or {}
    matched = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = next(matched, settings.get("lora_alpha"))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(f"{adapter}: lora_alpha is {alpha!r}, expected a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def folded(weight, a, b, factor):
    """The bytes of W + factor B A, rounded once to W's dtype; A [rank, in], B [out, rank], W [out, in].

    None if the change is not finite.
    """
    import torch

    def read(tensor):
        data = bytearray(b"".join(map(bytes, checkpoint.read_pieces(tensor))))
        return torch.frombuffer(data, dtype=getattr(torch, MIXED[tensor.dtype])).view(tensor.shape)

    whole, change = read(weight), (read(b).float() @ read(a).float()) * factor  # [out, in], the change in float32
    if not change.isfinite().all():
        return None
    whole += change
    return whole.view(torch.uint8).numpy()


def from_gguf(path):
    """The float32 folder of a GGUF file, made once for its content; its note says what it was dequantised from."""
    sha = file_digest(path)
    out = BUILD / "models" / f"{path.stem}-{sha[:16]}"
    if not out.is_dir():
        convert_gguf(path, out, {"file": path.name, "note": f"dequantised from {quantisation(path)}", "sha256": sha})
    return out


def quantisation(path):
    """The commonest type of a GGUF file's quantised tensors, such as Q4_1. UserError if it is no GGUF file."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{path}: not a GGUF file ({' '.join(str(error).split())[:200]})") from None
    sizes = {}
    for tensor in tensors:
        name = tensor.tensor_type.name
        sizes[name] = sizes.get(name, 0) + int(tensor.n_elements) * (name not in ("F32", "F16", "BF16"))
    return max(sizes, key=sizes.get, default="nothing")


def convert_gguf(path, folder, content):
    """Write a GGUF file as an ordinary float32 folder, which keeps the dequantised values as they are.

    content: what its provenance.json shall say. UserError if transformers cannot load it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: transformers cannot load it ({reason})") from None
    config = AutoConfig.for_model(**loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model marked as quantised cannot be saved
    made = AutoModelForCausalLM.from_config(config)
    made.load_state_dict(loaded.state_dict())
    made.tie_weights()
    with atomic_folder(folder) as temporary:
        made.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        with atomic_file(temporary / "provenance.json") as file:
            json.dump(content, file, indent=1)
