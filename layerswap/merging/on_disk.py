"""The merge on disk: expert folders and a plan become a new checkpoint folder with its manifest.

All is planned from headers before a byte is written. Where the plan's weight is 0 or 1 bytes are copied, elsewhere
``arithmetic`` calculates them. Copies and means go chunk by chunk, so memory does not grow with the model; task vectors
take whole tensors.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from layerswap import __version__
from layerswap.checkpoints.architecture import unloaded_tensors
from layerswap.checkpoints.compatibility import list_differences, mergeable_headers
from layerswap.checkpoints.layers import DecoderLayers, decoder_layers
from layerswap.checkpoints.safetensors import DTYPE_BYTES, FLOAT_DTYPES, StoredTensor, tensor_digest, tensors_digest
from layerswap.errors import UserError
from layerswap.files import atomic_folder, check_space, check_target, file_digest, start_writeback
from layerswap.merging.arithmetic import merge_chunks
from layerswap.merging.manifest import write_metadata
from layerswap.merging.task_vectors import MergePlan


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merge.

    Attributes:
        name: of the tensor.
        start: its first byte in the shard's file.
        weight: the language expert's; None where the plan's task vectors are added.
        sources: role -> the tensor of that model, for each model that it is made of.
    """

    name: str
    start: int
    weight: float | None
    sources: dict[str, StoredTensor]

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of one model."""
        return len(self.sources) == 1

    @property
    def n_bytes(self) -> int:
        """Its size in bytes."""
        return next(iter(self.sources.values())).n_bytes


@dataclass(frozen=True)
class Shard:
    """One file of the merge: its name, its header as bytes, its tensors, and its size in bytes."""

    file: str
    header: bytes
    tensors: list[MergedTensor]
    n_bytes: int


def merge(
    math: str | Path, language: str | Path, plan: MergePlan, out: str | Path, *, base: str | Path | None = None,
    donor: str = "math", allow: Collection[str] = (), custom_code: bool = False, shard_size: int = 5 << 30,
    hashing: bool = True, progress: Callable[[int], object] = lambda n_bytes: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the merge of two experts under a plan to the new folder ``out``.

    Args:
        math: the math expert's folder.
        language: the language expert's folder.
        plan: a ``Plan``, or ``TaskVectors``.
        out: the folder to write: it does not exist, or is empty.
        base: the folder of their base model, for ``TaskVectors`` only.
        donor: "math" or "language", whose files beside the weights the result gets (config, tokenizer, templates ...),
            and whose tensors outside the text decoder (vision and audio towers, layers that predict further tokens).
        allow: names of differences between the experts that are meant, such as config fields.
        custom_code: whether the donor's code (*.py) is copied too.
        shard_size: bytes of the tensors in the largest shard; a larger tensor has a shard of its own.
        hashing: whether the manifest has sha256s, taken as the bytes pass; without them it cannot be verified.
        progress: called with the number of bytes of each tensor that is done.

    Returns:
        The manifest, also written to layerswap.json: plan, donor, experts; ``differences``, what of the experts differs
        without harm or is in ``allow``, with the value of each role; ``modules``, those beside the text decoder, which
        are the donor's, with their number of tensors; ``left_out``, the donor's files that were not
        copied, and why; ``unloaded``, tensors that the model in config.json does not load; ``tensors``, name -> source
        ("math", "language", "math+language" ...), weight, sha256, and ``from``, the sha256 of each source of a mixed
        one; ``digest`` of the merged weights; ``files`` with the sha256 of those that are not weights. Without
        ``hashing`` there is no ``digest``, and no sha256 of a tensor.

    Raises:
        UserError: ``out`` is not new or empty, the disk is too full, the models do not fit each other, or the plan does
            not fit them. Nothing is written then.
    """
    if (base is None) == ("base" in plan.roles):
        expected = "the base model's folder" if base is None else "none"
        raise UserError(f"plan {plan.name!r} needs {', '.join(plan.roles)}; base is {base}, expected {expected}")
    folders = {"math": Path(math), "language": Path(language)} | ({} if base is None else {"base": Path(base)})
    headers, differences = check_inputs(folders, out, donor, allow, shard_size)
    layers = decoder_layers(folders["math"])
    plan.check_depth(layers.count, math)
    sources = select_sources(layers, headers, plan, donor)
    shards = plan_shards(headers["math"], sources, shard_size)
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    n_bytes = sum(tensor.n_bytes for tensor in headers["math"].values())
    check_space(out, sum(shard.n_bytes for shard in shards))
    manifest: dict[str, Any] = {  # a folder's name may be no UTF-8, JSON must be
        "layerswap": __version__, "plan": plan.to_dict(), "donor": donor,
        "experts": {role: {"folder": os.fsencode(folder.resolve().name).decode(errors="replace"),
                           "config": file_digest(folder / "config.json")} for role, folder in folders.items()},
        "allow": sorted(allow), "differences": differences,
        "modules": Counter(layers.module(name) for name in headers["math"] if not layers.is_text(name)),
        "unloaded": unloaded_tensors(folders["math"], headers["math"]),
    }  # fmt: skip
    with atomic_folder(out) as folder:
        manifest["tensors"] = write_tensors(folder, shards, plan, hashing, progress)
        if hashing:
            digests = {name: entry["sha256"] for name, entry in manifest["tensors"].items()}
            manifest["digest"] = tensors_digest(headers["math"], digests)
        write_metadata(folder, folders[donor], weight_map, n_bytes, manifest, custom_code)
    return manifest


def check_inputs(
    folders: Mapping[str, Path], out: str | Path, donor: str, allow: Collection[str], shard_size: int
) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, dict[str, Any]]]:
    """role -> header, and difference -> role -> value. UserError unless the folders can be merged to ``out``."""
    if donor not in ("math", "language"):
        raise UserError(f"donor is {donor!r}, expected math or language")
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size!r}, expected a number of bytes, 1 or more")
    roles = list(folders)
    for other, role in combinations(roles, 2):
        if folders[role].resolve() == folders[other].resolve():
            raise UserError(f"{folders[role]}: is both the {other} and the {role} model, expected two folders")
    check_target(out)
    for role, folder in folders.items():
        if Path(out).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{out}: lies in the {role} model's folder {folder}, expected a place of its own")
    headers = dict(zip(roles, mergeable_headers(list(folders.values())), strict=True))
    differences: dict[str, dict[str, Any]] = {}
    unused = set(allow)
    for role in roles[1:]:
        for difference in list_differences((folders["math"], folders[role]), (headers["math"], headers[role]), allow):
            values = dict(zip(("math", role), difference.values, strict=True))
            differences.setdefault(difference.description, {}).update(values)
            unused = {name for name in unused if not difference.is_among([name])}
    if unused:
        raise UserError(f"allow names {min(unused)!r}, which does not differ, expected a difference between the models")
    return headers, differences


def plan_shards(
    math: Mapping[str, StoredTensor], sources: Mapping[str, tuple[float | None, dict[str, StoredTensor]]],
    shard_size: int,
) -> list[Shard]:  # fmt: skip
    """The shards of the merge, in the order of the math expert's files; within a file the widest dtypes come first."""
    groups: list[list[str]] = []  # names of the tensors of each shard
    n_bytes = 0  # of the last group
    for name in sorted(math, key=lambda name: (math[name].file, -DTYPE_BYTES[math[name].dtype], math[name].start)):
        if not groups or n_bytes + math[name].n_bytes > shard_size:
            groups.append([])
            n_bytes = 0
        groups[-1].append(name)
        n_bytes += math[name].n_bytes
    shards = []
    for i, group in enumerate(groups, 1):
        # Widest dtypes first keeps every tensor aligned, as in safetensors itself.
        group.sort(key=lambda name: -DTYPE_BYTES[math[name].dtype])
        file = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in group:
            start, end = end, end + math[name].n_bytes
            entries[name] = {"dtype": math[name].dtype, "shape": math[name].shape, "data_offsets": [start, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        tensors = [MergedTensor(name, len(header) + entries[name]["data_offsets"][0], *sources[name]) for name in group]
        shards.append(Shard(file, header, tensors, len(header) + end))
    return shards


def select_sources(
    layers: DecoderLayers, headers: Mapping[str, Mapping[str, StoredTensor]], plan: MergePlan, donor: str
) -> dict[str, tuple[float | None, dict[str, StoredTensor]]]:
    """tensor name -> the language expert's weight, and role -> tensor of each model that the merged one is made of.

    A tensor outside the text decoder is the donor's. UserError for a tensor to be mixed that is not floating-point,
    unless all models have the same one.
    """
    selected = {}
    for name, tensor in headers["math"].items():
        weight = plan.weight(layers.index(name)) if layers.is_text(name) else float(donor == "language")
        roles = ("math",) if weight == 0 else ("language",) if weight == 1 else plan.roles
        sources = {role: headers[role][name] for role in roles}
        if len(roles) > 1 and tensor.dtype not in FLOAT_DTYPES:
            if len({tensor_digest(source) for source in sources.values()}) > 1:
                expected = f"expected one of {', '.join(FLOAT_DTYPES)}"
                raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}, which cannot be mixed, {expected}")
            weight, sources = 0.0, {"math": tensor}
        selected[name] = weight, sources
    return selected


def write_tensors(
    folder: Path, shards: Sequence[Shard], plan: MergePlan, hashing: bool, progress: Callable[[int], object]
) -> dict[str, dict[str, Any]]:
    """Write the shards' files; returns the manifest's entry of each tensor, in the order of the tensors."""
    jobs = []  # a tensor and its file
    for shard in shards:
        path = folder / shard.file
        with path.open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.n_bytes)
        jobs += [(path, tensor) for tensor in shard.tensors]
    entries = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            results = pool.map(lambda job: write_tensor(job[0], job[1], plan, hashing), jobs)
            for (_, tensor), entry in zip(jobs, results, strict=True):
                entries[tensor.name] = entry
                progress(tensor.n_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return entries


def write_tensor(path: Path, tensor: MergedTensor, plan: MergePlan, hashing: bool) -> dict[str, Any]:
    """Write a tensor into its place in a shard's file; returns the manifest's entry."""
    entry: dict[str, Any] = {"source": "+".join(tensor.sources), "weight": tensor.weight}
    merged_sha, source_shas = sha256(), [sha256() for _ in tensor.sources]
    with path.open("r+b") as file:
        file.seek(tensor.start)
        for chunks, merged in merge_chunks(tensor.sources, plan, tensor.weight):
            file.write(merged)
            if hashing:
                merged_sha.update(merged)
                if not tensor.is_copy:
                    for sha, chunk in zip(source_shas, chunks, strict=True):
                        sha.update(chunk)
        start_writeback(file.fileno(), tensor.start, tensor.n_bytes)
    if hashing:
        entry["sha256"] = merged_sha.hexdigest()
        if not tensor.is_copy:
            entry["from"] = {role: sha.hexdigest() for role, sha in zip(tensor.sources, source_shas, strict=True)}
    return entry
