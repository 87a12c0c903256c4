"""The merge on disk: expert folders and a plan become a new checkpoint folder with its provenance.

All is planned from headers before a byte is written. Where the plan's weight is 0 or 1 bytes are copied, elsewhere
``blend`` calculates them, piece by piece: memory does not grow with the model.
"""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock

from layerswap import __version__, checkpoint, paths, provenance
from layerswap.blend import blend, check_mixable
from layerswap.checkpoint import BYTES, PIECE, Tensor
from layerswap.paths import UserError

RUN = 64 << 20  # bytes after which a run of tensors ends: a step of the progress bar
FLUSH = 8 << 20  # bytes between two requests to begin writing them to the disk
PAGE = 4096  # bytes
ONE_AT_A_TIME = Lock()  # copies within the system: two at once only wait for the disk and for each other
LACKING = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}  # "use another way"


@dataclass(frozen=True)
class Part:
    """One tensor of the merge: where it will lie in its shard, and the tensors it is made of, by role."""

    name: str
    start: int  # byte in the shard's file
    weight: float | None  # the language expert's; None: task vectors, which need the whole tensors
    sources: dict[str, Tensor]

    @property
    def is_copy(self):
        return len(self.sources) == 1

    @property
    def size(self):  # bytes
        return next(iter(self.sources.values())).n_bytes


@dataclass(frozen=True)
class Shard:
    """One file of the merge: its header, its tensors, and the experts' file it could be a link to (None: no one's)."""

    file: str
    header: bytes
    parts: list[Part]
    size: int
    twin: Path | None


def merge(math, language, plan, out, *, base=None, donor="math", shard_size=5 << 30, link=False, hashing=True,
          progress=lambda n_bytes: None):  # fmt: skip
    """Write the merge of expert folders under a plan to the new folder ``out``; returns its manifest.

    plan: a Plan, or TaskVectors, which need the folder ``base``. donor: "math" or "language", whose config, generation
    config, tokenizer and chat template the result gets. shard_size: bytes of the largest shard, larger tensors apart.
    link: keep the math expert's shards, and make those that are wholly one expert's hard links to its file (not in
    shard_size then). hashing: whether the manifest has sha256s, taken as the bytes pass. progress: told bytes done.

    The manifest (also in layerswap.json) has plan, donor, experts; ``tensors``, name -> source ("math", "language",
    "math+language" ...), weight, sha256, and ``from``, the sha256 of each source of a mixed one; ``digest`` of the
    merged weights; ``files`` with the sha256 of those that are no weights. UserError, and nothing written, if ``out``
    is not new or empty, the disk is too full, the experts do not fit each other, or the plan does not fit them.
    """
    if (base is None) == ("base" in plan.roles):
        raise UserError(f"plan {plan.name!r} needs {', '.join(plan.roles)}; base is {base}")
    folders = {"math": Path(math), "language": Path(language)} | ({} if base is None else {"base": Path(base)})
    headers = check(folders, plan, out, donor, shard_size)
    shards = layout(headers, plan, shard_size, link)
    disk = paths.existing_parent(out).stat().st_dev  # links stay on one
    paths.check_space(out, sum(each.size for each in shards if not each.twin or each.twin.stat().st_dev != disk))
    manifest = {
        "layerswap": __version__, "plan": plan.to_dict(), "donor": donor,
        "experts": {role: {"folder": os.fsencode(folder.resolve().name).decode(errors="replace"),
                           "config": paths.file_digest(folder / "config.json")} for role, folder in folders.items()},
    }  # fmt: skip
    with paths.atomic_folder(out) as folder:
        manifest["tensors"] = write(folder, shards, plan, hashing, progress)
        if hashing:
            hashes = {name: each["sha256"] for name, each in manifest["tensors"].items()}
            manifest["digest"] = checkpoint.content_digest(headers["math"], hashes)
        provenance.finish(folder, folders[donor], shards, manifest)
    return manifest


def write(folder, shards, plan, hashing, progress):
    """Write the shards' files; returns the manifest's entries, in the order of the tensors."""
    jobs = []  # a run of tensors, and the file it goes to; none where that is a link already
    for shard in shards:
        path = folder / shard.file
        linked = shard.twin and hard_link(shard.twin, path)
        if not linked:
            prepare(path, shard)
        jobs += [(run, None if linked else path) for run in runs(shard, hashing)]
    tensors = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            for entries, n_bytes in pool.map(lambda job: fill(*job, plan, hashing), jobs):
                tensors |= entries
                progress(n_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tensors


def check(folders, plan, out, donor, shard_size):
    """role -> header. UserError unless the folders can be merged under the plan to ``out``."""
    if donor not in ("math", "language"):
        raise UserError(f"donor is {donor!r}, expected math or language")
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size!r}, expected a number of bytes, 1 or more")
    roles = list(folders)
    for i, role in enumerate(roles):
        for other in roles[:i]:
            if folders[role].resolve() == folders[other].resolve():
                raise UserError(f"{folders[role]}: is both the {other} and the {role} model, expected two folders")
    paths.check_target(out)
    for role, folder in folders.items():
        if Path(out).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{out}: lies in the {role} model's folder {folder}, expected a place of its own")
    for role in roles[1:]:
        checkpoint.check_fit(folders["math"], folders[role])
    headers = {role: checkpoint.read_header(folder) for role, folder in folders.items()}
    plan.check_depth(checkpoint.layer_count(folders["math"]), folders["math"])
    check_mixable(headers["math"], plan)
    return headers


def sources(headers, plan, name):
    """role -> Tensor of what a merged tensor is made of."""
    roles = {0: ["math"], 1: ["language"]}.get(plan.weight(name), plan.roles)
    return {role: headers[role][name] for role in roles}


def layout(headers, plan, shard_size, link):
    """The shards of the merge, in the order of the math expert's files and of the tensors in them."""
    # Widest dtypes first within a file keeps every tensor aligned, as in safetensors itself.
    order = sorted(headers["math"].items(), key=lambda i: (i[1].file, -BYTES[i[1].dtype], i[1].start))
    groups, sizes = [], []
    for name, tensor in order:
        n_bytes = tensor.n_bytes
        fits = groups and sizes[-1] + n_bytes <= shard_size
        if link:
            fits = groups and headers["math"][groups[-1][0]].file == tensor.file
        if not fits:
            groups.append([])
            sizes.append(0)
        groups[-1].append(name)
        sizes[-1] += n_bytes
    if not link:  # shards cut across files: widest first again
        groups = [sorted(group, key=lambda name: -BYTES[headers["math"][name].dtype]) for group in groups]
    shards = []
    for i, group in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        entries, position = {"__metadata__": {"format": "pt"}}, 0
        for name in group:
            tensor, start = headers["math"][name], position
            position += tensor.n_bytes
            entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, position]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        # Where source and target lie alike in their pages, the system copies twice as fast: spaces may end a header.
        text += b" " * ((headers["math"][group[0]].start - 8 - len(text)) % PAGE // 8 * 8)
        head, parts = len(text).to_bytes(8, "little") + text, []
        for name in group:
            start = len(head) + entries[name]["data_offsets"][0]
            parts.append(Part(name, start, plan.weight(name), sources(headers, plan, name)))
        shards.append(Shard(file, head, parts, len(head) + position, twin(headers, parts) if link else None))
    return shards


def twin(headers, parts):
    """The experts' file that holds exactly these tensors as copies, or None."""
    files = {source.file for part in parts for source in part.sources.values()}
    if len(files) != 1 or not all(part.is_copy for part in parts):
        return None
    (role,) = {role for part in parts for role in part.sources}
    (file,) = files
    held = {name for name, tensor in headers[role].items() if tensor.file == file}
    return file if held == {part.name for part in parts} else None


def hard_link(file, target):
    """Whether ``target`` now is a hard link to a file; not across file systems, nor where the system forbids it."""
    try:
        os.link(file.resolve(), target)
    except OSError as error:
        if error.errno in LACKING | {errno.EMLINK}:
            return False
        raise
    return True


def prepare(path, shard):
    """A file with the shard's header and room for its tensors."""
    with path.open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.size)


def runs(shard, hashing):
    """The shard's tensors as lists that one call can do: neighbours in source and shard, where bytes just move."""
    found = []
    for part in shard.parts:
        if found and not hashing and follows(found[-1][-1], part) and sum(part.size for part in found[-1]) < RUN:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def follows(before, part):
    """Whether a copied part lies right behind another one in its source, as it does in the shard."""
    if not (before.is_copy and part.is_copy):
        return False
    (a,), (b,) = before.sources.values(), part.sources.values()
    return a.file == b.file and a.end == b.start


def fill(run, path, plan, hashing):
    """Write a run of parts into their file (None: they are in it already); returns (manifest entries, bytes done)."""
    first, n_bytes, entries = run[0], sum(part.size for part in run), {part.name: entry(part) for part in run}
    if first.is_copy and not hashing:
        (source,) = first.sources.values()
        if path:
            copy_range(source.file, source.start, path, first.start, n_bytes)
        return entries, n_bytes
    shas, made_sha = {role: sha256() for role in first.sources}, sha256()
    with open(path or os.devnull, "r+b") as file:
        file.seek(first.start)
        for pieces, made in blend(first.sources, plan, first.weight):
            file.write(made)
            if hashing:
                for sha, piece in zip(shas.values(), pieces, strict=True):
                    sha.update(piece)
                if not first.is_copy:
                    made_sha.update(made)
        paths.begin_writing(file.fileno(), first.start, n_bytes)
    if hashing:
        shas = {role: sha.hexdigest() for role, sha in shas.items()}
        own = [*shas.values()][0] if first.is_copy else made_sha.hexdigest()
        entries[first.name] |= {"sha256": own} | ({} if first.is_copy else {"from": shas})
    return entries, n_bytes


def entry(part):
    """What the manifest says of a tensor, but for its sha256."""
    return {"source": "+".join(part.sources), "weight": part.weight}


def copy_range(source, start, target, offset, n_bytes):
    """Copy bytes from file to file: in the kernel where the system can, else through a buffer."""
    with open(source, "rb", buffering=0) as from_file, open(target, "r+b", buffering=0) as to_file:
        ends = from_file.fileno(), to_file.fileno()
        ways, done = [copy_in_kernel, send, read_and_write], 0
        while done < n_bytes:
            try:
                with ONE_AT_A_TIME:
                    moved = ways[0](*ends, start + done, offset + done, min(FLUSH, n_bytes - done))
            except OSError as error:
                if error.errno not in LACKING or len(ways) == 1:
                    raise
                ways.pop(0)
                continue
            if not moved:
                raise UserError(f"{source}: ended at byte {start + done}, expected {start + n_bytes}")
            paths.begin_writing(ends[1], offset + done, moved)
            done += moved


def copy_in_kernel(source, target, start, offset, n_bytes):
    return os.copy_file_range(source, target, n_bytes, start, offset)


def send(source, target, start, offset, n_bytes):
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, start, n_bytes)


def read_and_write(source, target, start, offset, n_bytes):
    return os.pwrite(target, os.pread(source, min(n_bytes, PIECE), start), offset)
