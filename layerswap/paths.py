"""Where things are, how they are written (atomically), and how content is named (sha256)."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from contextlib import ExitStack, contextmanager, suppress
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
    path = Path(os.path.abspath(path))
    if path.is_symlink() or path == Path.cwd():
        raise UserError(f"{path}: is {'a link' if path.is_symlink() else 'the current folder'}, expected a new folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; a folder is never written over")


def existing_parent(path):
    """The nearest folder above ``path`` that is there."""
    return next(each for each in Path(os.path.abspath(path)).parents if each.exists())


def check_space(path, n_bytes):
    """UserError unless the disk that ``path`` would be written to has room for ``n_bytes``."""
    parent = existing_parent(path)
    if (free := shutil.disk_usage(parent).free) < n_bytes:
        raise UserError(f"{path}: needs {n_bytes / 1e6:,.1f} MB, {parent} has {free / 1e6:,.1f} MB free")


@contextmanager
def atomic_folder(path):
    """A temporary folder that becomes ``path`` when the block ends. UserError as in ``check_target``.

    It is locked while it lives, so that what a killed process left of it is known, and removed, by the next one.
    """
    path = Path(os.path.abspath(path))
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with ExitStack() as stack:
        with locked(path.parent, wait=True):  # or another would find the folder before it is locked
            for stale in [each for each in path.parent.iterdir() if ours.fullmatch(each.name)]:
                with suppress(OSError), locked(stale):
                    shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir()
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            stack.enter_context(locked(temporary))
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise UserError(f"{path}: exists already, written meanwhile; a folder is never written over") from None
        sync(path.parent)


@contextmanager
def locked(folder, wait=False):
    """Hold a folder's lock (its handle). OSError if another process does (unless we ``wait``) or it is no folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)


def one_line(error):
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:300]


def shown():
    """tqdm's settings for a bar that is seen where somebody looks, and nowhere else.

    That is this process's terminal; the terminal from which ``nb`` runs a notebook (LAYERSWAP_TERMINAL), below the bar
    of its cells; or the notebook itself, where a person has it open in Jupyter.
    """
    if terminal := os.environ.get("LAYERSWAP_TERMINAL"):
        with suppress(OSError):
            return {"file": open(terminal, "w"), "disable": False, "position": 1, "leave": False}
    seen = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    return {"file": sys.stderr, "disable": not seen, "leave": False}


def digest(content):
    """sha256 (hex) of a JSON-able object's canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path):
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
