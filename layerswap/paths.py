"""Where things are, how they are written (atomically), and how content is named (sha256)."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURES, BUILD = ROOT / "figures", ROOT / "build"
LAB = ROOT / "layerswap" / "lab_data"


class UserError(ValueError):
    """Bad input; the message is one line for a person."""


def data_folder():
    """The folder that LAYERSWAP_DATA names (relative to the project). UserError if unset or not a folder."""
    name = os.environ.get("LAYERSWAP_DATA")
    if not name:
        raise UserError(
            "LAYERSWAP_DATA is not set: it must name the folder that holds mgsm/, gsm8k/ and the language sets"
        )
    if not (ROOT / name).is_dir():
        raise UserError(f"LAYERSWAP_DATA={name}: no such folder")
    return ROOT / name


def sync(path):
    """Flush a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def begin_writing(handle, start, n_bytes):
    """Ask the system to begin writing bytes of a file to the disk, so that the last ``sync`` has little to wait for."""
    if hasattr(os, "posix_fadvise"):  # Linux; elsewhere there is nothing to ask
        os.posix_fadvise(handle, start, n_bytes, os.POSIX_FADV_DONTNEED)


@contextmanager
def atomic_file(path, mode="w"):
    """An open temporary file that becomes ``path`` when the block ends; on an error nothing of it remains."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(
            temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else ""
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path):
    """UserError unless a folder can be written to ``path``: it does not exist, or is an empty folder."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; a folder is never written over")


def check_space(path, n_bytes):
    """UserError unless the disk that ``path`` would be written to has room for ``n_bytes``."""
    parent = next(each for each in Path(path).absolute().parents if each.exists())
    if (free := shutil.disk_usage(parent).free) < n_bytes:
        raise UserError(f"{path}: needs {n_bytes / 1e6:,.1f} MB, {parent} has {free / 1e6:,.1f} MB free")


@contextmanager
def atomic_folder(path):
    """A temporary folder that becomes ``path`` when the block ends. UserError as in ``check_target``.

    It is locked while it lives, so that what a killed process left of it is known, and removed, by the next one.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), locked(stale):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        with locked(temporary):
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                sync(file)
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(folder):
    """Hold a folder's lock. OSError if another process does, or if it is no folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def digest(content):
    """sha256 (hex) of a JSON-able object's canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path):
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
