"""Checkpoints on disk: safetensors headers, digests of weights, and whether two models fit each other."""

import json
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import prod
from pathlib import Path

from layerswap import paths
from layerswap.paths import UserError
from layerswap.plan import layer_index

BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}  # bytes of one element
PIECE = 1 << 20  # bytes: whole elements of every dtype, and still in the processor's cache when hashed and written
VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt")  # of tokenizers without a tokenizer.json
# Fields of config.json that say how a model is stored or was trained, not what it computes.
STORAGE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: bytes [start, end) of ``file``, counted from the beginning of the file."""

    file: Path
    dtype: str  # as safetensors writes it: "F32", "BF16" ...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_bytes(self):
        return self.end - self.start


def read_json(path):
    """The JSON object in a file. UserError if there is no such file or it holds anything else."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object ({error})") from None


def read_file_header(path):
    """name -> Tensor of a safetensors file. UserError unless the tensors fill it without gap or overlap."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")  # where the tensors begin
        if data > size:
            raise UserError(f"{path}: found {size} bytes, expected a header of {data}")
        try:
            entries = json.loads(file.read(data - 8))
            entries.pop("__metadata__", None)
            tensors = {}
            for name, e in entries.items():
                name.encode()  # UnicodeEncodeError, a ValueError, for half a character
                for number in (*e["shape"], *e["data_offsets"]):
                    if type(number) is not int or not 0 <= number < 1 << 63:
                        raise ValueError(f"tensor {name}: {str(number)[:40]} is no size")
                start, end = e["data_offsets"]
                tensors[name] = Tensor(path, e["dtype"], tuple(e["shape"]), data + start, data + end)
            sizes = {name: prod(t.shape) * BYTES[t.dtype] for name, t in tensors.items()}
            order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a safetensors header ({error!r})") from None
    for name, t in order:
        if (t.start, t.end) != (data, data + sizes[name]):
            found = f"tensor {name} ({t.dtype} {list(t.shape)}) lies at bytes {t.start} to {t.end}"
            raise UserError(f"{path}: {found}, expected {data} to {data + sizes[name]}")
        data = t.end
    if data != size:
        raise UserError(f"{path}: found {size} bytes, expected {data} by its header")
    return tensors


def read_header(folder):
    """name -> Tensor of a checkpoint: model.safetensors, or shards with an index. Reads headers only.

    UserError for a folder without safetensors, a shard that is missing or outside the folder, a tensor in two
    shards or in another one than the index says, and headers that do not match their file.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if single.is_file() and index.is_file():  # loaders take one of them without a word
        raise UserError(f"{folder}: holds both {single.name} and {index.name}, expected one of them")
    if single.is_file():
        return read_file_header(single)
    if not index.is_file():
        found = "".join(f"found {path.name}, a pickle; " for path in sorted(folder.glob("*.bin"))[:1])
        raise UserError(f"{folder}: {found}expected model.safetensors, only safetensors are read")
    weight_map, tensors = read_json(index).get("weight_map"), {}
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{index}: expected a weight_map from tensor to file name")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index}: shard {shard!r} is outside the folder, expected a plain file name")
        for name, tensor in read_file_header(folder / shard).items():
            if weight_map.get(name) != shard:
                where = weight_map.get(name, "no file")
                raise UserError(f"{index}: says that tensor {name} is in {where}, found it in {shard}")
            tensors[name] = tensor
    if missing := weight_map.keys() - tensors.keys():
        raise UserError(f"{index}: says that tensor {min(missing)} is in {weight_map[min(missing)]}, it is not")
    return tensors


def layer_count(folder):
    """Number of transformer layers. UserError unless tensors and config.json agree on layers 0 to L - 1."""
    found = sorted({layer_index(name) for name in read_header(folder)} - {None})
    expected = read_json(Path(folder) / "config.json").get("num_hidden_layers", len(found))
    if not found or expected != len(found) or found != list(range(len(found))):
        raise UserError(f"{folder}: found tensors of layers {found}, expected {expected!r} layers from 0 up")
    return len(found)


def n_weights(header):
    """How many numbers the tensors of a header hold."""
    return sum(prod(tensor.shape) for tensor in header.values())


def read_pieces(tensor):
    """The bytes of a tensor, piece after piece in one buffer: use one before the next.

    UserError if the file ends too early.
    """
    buffer = memoryview(bytearray(min(PIECE, tensor.end - tensor.start)))
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, PIECE):
            piece = buffer[: tensor.end - start]
            if file.readinto(piece) != len(piece):
                raise UserError(f"{tensor.file}: ended at byte {file.tell()}, expected {tensor.end}")
            yield piece


def tensor_digest(tensor):
    """sha256 (hex) of a tensor's bytes."""
    sha = sha256()
    for piece in read_pieces(tensor):
        sha.update(piece)
    return sha.hexdigest()


def content_digest(specs, hashes):
    """Digest of weights from name -> Tensor and name -> sha256 of its bytes; files and order do not count."""
    return paths.digest([[name, specs[name].dtype, specs[name].shape, hashes[name]] for name in sorted(specs)])


def digest(folder):
    """Digest of a folder's weights (names, dtypes, shapes, bytes) whatever their files.

    Reads every byte; once in a process, as long as no file changes its size or time.
    """
    files = [(file, file.stat()) for file in sorted({tensor.file for tensor in read_header(folder).values()})]
    return _digest(folder, tuple((file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in files))


@lru_cache
def _digest(folder, files):
    header = read_header(folder)
    return content_digest(header, {name: tensor_digest(tensor) for name, tensor in header.items()})


def read_vocabulary(folder):
    """token -> id of a tokenizer.json; without one, vocabulary file -> its digest ({} if there is none)."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        files = (path.with_name(name) for name in VOCABULARIES)
        return {file.name: paths.file_digest(file) for file in files if file.is_file()}
    data = read_json(path)
    try:
        vocab = data["model"]["vocab"]  # Unigram has pairs of token and score in the order of the ids
        vocab = vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
        return vocab | {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer ({error!r})") from None


def function_config(folder):
    """The fields of config.json that say what a model computes, also within nested ones."""

    def kept(fields):
        return {k: kept(v) if isinstance(v, dict) else v for k, v in fields.items() if k not in STORAGE}

    return kept(read_json(Path(folder) / "config.json"))


def splitting(folder):
    """What a tokenizer.json says beside the vocabulary of how a text is cut: part -> digest."""
    path = Path(folder) / "tokenizer.json"
    data = read_json(path) if path.is_file() else {}
    parts = {"normalizer": data.get("normalizer"), "pre_tokenizer": data.get("pre_tokenizer")}
    parts["merges"] = data.get("model", {}).get("merges")
    return {part: paths.digest(content)[:12] for part, content in parts.items()}


def check_fit(math, language):
    """UserError unless two experts differ in nothing but the values of their weights.

    Compared: config fields that change the function, tensors (dtype, shape), the tokenizer's vocabulary, normalizer,
    pre-tokenizer and merges.
    """
    compared = []
    for folder in (math, language):
        tensors = {f"tensor {name}": f"{t.dtype} {list(t.shape)}" for name, t in read_header(folder).items()}
        config = {f"config field {field}": value for field, value in function_config(folder).items()}
        tokens = {f"token {t!r}": i for t, i in read_vocabulary(folder).items()}
        tokens |= {f"tokenizer's {part} (sha256)": sha for part, sha in splitting(folder).items()}
        compared.append(config | tensors | tokens)
    for key in compared[0] | compared[1]:
        a, b = (of.get(key, "missing") for of in compared)
        if a != b:
            raise UserError(f"{key} is {a} in {math} and {b} in {language}, expected the same")
