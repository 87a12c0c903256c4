"""Weights on disk in the safetensors format: headers, tensors as chunks of bytes, digests, dtypes.

Only headers are read unless a function says otherwise, and nothing here needs torch. The format:
https://github.com/huggingface/safetensors#format
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from layerswap.errors import UserError
from layerswap.files import check_fetched, json_digest, read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPE_BITS = {  # bits of one element
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
DTYPE_BYTES = {dtype: max(1, bits // 8) for dtype, bits in DTYPE_BITS.items()}  # what its tensors are aligned to
FLOAT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # dtypes that can be mixed
CHUNK = 1 << 20  # bytes: whole elements of every dtype, and still in the processor's cache when hashed and written
OTHER_WEIGHTS = {".bin": ", a pickle", ".pt": ", a pickle", ".pth": ", a pickle", ".gguf": "", ".safetensors": ""}
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes [start, end) of ``file``, counted from the beginning of the file."""

    file: Path
    dtype: str  # as safetensors writes it: "F32", "BF16" ...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.end - self.start


def read_file_header(path: Path) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file.

    Args:
        path: the file.

    Returns:
        Tensor name -> where it lies.

    Raises:
        UserError: the file is missing, its header is malformed, or its tensors do not fill it without gap or overlap.
    """
    check_fetched(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 8 + int.from_bytes(file.read(8), "little")  # where the tensors begin
        if position > size:
            raise UserError(f"{path}: found {size} bytes, expected a header of {position}")
        try:
            entries = json.loads(file.read(position - 8))
            entries.pop("__metadata__", None)
            tensors = {}
            for name, entry in entries.items():
                name.encode()  # UnicodeEncodeError, a ValueError, for half a character
                for number in (*entry["shape"], *entry["data_offsets"]):
                    if type(number) is not int or not 0 <= number < 1 << 63:
                        raise ValueError(f"tensor {name}: {str(number)[:40]} is no size")
                start, end = (position + offset for offset in entry["data_offsets"])
                tensors[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start, end)
                if entry["dtype"] not in DTYPE_BITS:
                    raise ValueError(f"tensor {name} is {entry['dtype']}, expected one of {', '.join(DTYPE_BITS)}")
            sizes = {name: -(-prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8) for name, tensor in tensors.items()}
            in_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a safetensors header ({error!r})") from None
    for name, tensor in in_order:
        if (tensor.start, tensor.end) != (position, position + sizes[name]):
            place = f"tensor {name} ({tensor.dtype} {list(tensor.shape)}) lies at bytes {tensor.start} to {tensor.end}"
            raise UserError(f"{path}: {place}, expected {position} to {position + sizes[name]}")
        position = tensor.end
    if position != size:
        raise UserError(f"{path}: found {size} bytes, expected {position} by its header")
    return tensors


def read_header(folder: str | Path) -> dict[str, StoredTensor]:
    """Read the header of a checkpoint: model.safetensors, or shards with an index.

    Shards model-0000i-of-0000n.safetensors are read without an index too, if all of them are there.

    Args:
        folder: of the model.

    Returns:
        Tensor name -> where it lies.

    Raises:
        UserError: a folder without safetensors, a shard that is missing or not in the folder, a tensor in two shards
            or in another one than the index says, or a header that does not match its file.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a model on the hub is named owner/name@revision")
    for file in (single, index):
        if file.is_symlink():
            check_fetched(file)
    if single.is_file() and index.is_file():  # loaders silently take one of them
        raise UserError(f"{folder}: holds both {single.name} and {index.name}, expected one of them")
    if single.is_file():
        return read_file_header(single)
    shards = sorted(match[0] for file in folder.iterdir() if (match := SHARD.fullmatch(file.name)))
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise UserError(f"{index}: expected a weight_map from tensor to file name")
        shards = sorted(set(weight_map.values()))
    elif shards:
        check_all_shards(folder, shards)
        weight_map = {}
    else:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in OTHER_WEIGHTS)
        observed = "".join(f"found {name}{OTHER_WEIGHTS[Path(name).suffix]}; " for name in others[:1])
        raise UserError(f"{folder}: {observed}expected model.safetensors, only safetensors are read")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise UserError(f"{index}: shard {shard!r} is outside the folder, expected a plain file name")
        for name, tensor in read_file_header(folder / shard).items():
            if index.is_file() and weight_map.get(name) != shard:
                indexed = weight_map.get(name, "no file")
                raise UserError(f"{index}: says that tensor {name} is in {indexed}, found it in {shard}")
            if name in tensors:
                places = f"{tensors[name].file.name} and in {shard}"
                raise UserError(f"{folder}: has no model.safetensors.index.json, and tensor {name} is in {places}")
            tensors[name] = tensor
    if missing := weight_map.keys() - tensors.keys():
        raise UserError(f"{index}: says that tensor {min(missing)} is in {weight_map[min(missing)]}, it is not")
    return tensors


def check_all_shards(folder: Path, shards: list[str]) -> None:
    """UserError unless shards without an index are all that their names speak of."""
    n_shards = int(shards[0][-17:-12])
    expected = {f"model-{i:05d}-of-{n_shards:05d}.safetensors" for i in range(1, n_shards + 1)}
    if differing := expected.symmetric_difference(shards):
        problem = f"{min(differing)} is {'missing too' if min(differing) in expected else 'of another set of shards'}"
        raise UserError(f"{folder}: has shards, but no model.safetensors.index.json, and {problem}")


def count_weights(header: Mapping[str, StoredTensor]) -> int:
    """How many numbers the tensors of a header hold."""
    return sum(prod(tensor.shape) for tensor in header.values())


def read_chunks(tensor: StoredTensor) -> Iterator[memoryview]:
    """Read the bytes of a tensor, one chunk of at most ``CHUNK`` bytes after the other.

    Args:
        tensor: what to read.

    Yields:
        The next bytes, always in the same buffer: use them before the next ones are read.

    Raises:
        UserError: the file ends too early.
    """
    buffer = memoryview(bytearray(min(CHUNK, tensor.n_bytes)))
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, CHUNK):
            chunk = buffer[: tensor.end - start]
            if file.readinto(chunk) != len(chunk):
                raise UserError(f"{tensor.file}: ended at byte {file.tell()}, expected {tensor.end}")
            yield chunk


def to_float64(chunk: bytes | bytearray | memoryview, dtype: str) -> "NDArray[np.float64]":
    """The numbers in a chunk of bytes.

    Args:
        chunk: whole elements.
        dtype: theirs, one of ``FLOAT_DTYPES``.

    Returns:
        [elements], float64.
    """
    import numpy as np

    if dtype == "BF16":  # a float32 without its lower half
        return (np.frombuffer(chunk, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(chunk, FLOAT_DTYPES[dtype]).astype(np.float64)


def tensor_digest(tensor: StoredTensor) -> str:
    """sha256 (hex) of a tensor's bytes."""
    digest = sha256()
    for chunk in read_chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def tensors_digest(header: Mapping[str, StoredTensor], digests: Mapping[str, str]) -> str:
    """Digest of weights, the same in whatever files and order the tensors are stored.

    Args:
        header: tensor name -> tensor.
        digests: tensor name -> sha256 (hex) of its bytes.

    Returns:
        sha256 (hex) of names, dtypes, shapes and bytes.
    """
    return json_digest([[name, header[name].dtype, header[name].shape, digests[name]] for name in sorted(header)])


def weights_digest(folder: str | Path) -> str:
    """Digest of a folder's weights (names, dtypes, shapes, bytes), in whatever files they are stored.

    Args:
        folder: of the model. Every byte is read, once in a process as long as no file changes its size or time.

    Returns:
        sha256 (hex).

    Raises:
        UserError: as in ``read_header``.
    """
    files = [(file, file.stat()) for file in sorted({tensor.file for tensor in read_header(folder).values()})]
    return _weights_digest(folder, tuple((file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in files))


@lru_cache
def _weights_digest(folder: str | Path, files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """The digest; ``files`` is what must not have changed for a cached one to be taken."""
    header = read_header(folder)
    return tensors_digest(header, {name: tensor_digest(tensor) for name, tensor in header.items()})
