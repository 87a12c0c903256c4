"""The project's folders, atomic writes, locks, digests (sha256), and reading JSON and YAML."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from layerswap.errors import UserError, one_line

ROOT = Path(__file__).resolve().parents[1]
FIGURES, BUILD = ROOT / "figures", ROOT / "build"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DRAFT = "draft"  # what notebooks that are run by hand write to


def results_name(profile: str) -> str:
    """The name of the folders in ``FIGURES`` and ``BUILD`` that a profile's results are in.

    It is the profile's own, but ``DRAFT`` in a notebook that is run by hand, so that trying something changes no
    profile's results. ``run.notebooks`` names the profile that it runs in LAYERSWAP_PROFILE.
    """
    by_hand = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    return DRAFT if by_hand and os.environ.get("LAYERSWAP_PROFILE") != profile else profile


def data_folder() -> Path:
    """The folder that LAYERSWAP_DATA names, relative to the project.

    Raises:
        UserError: the variable is not set, or names no folder.
    """
    name = os.environ.get("LAYERSWAP_DATA")
    if not name:
        contents = "mgsm/, gsm8k/ and the language sets"
        raise UserError(f"LAYERSWAP_DATA is not set: it must name the folder that holds {contents}")
    if not (ROOT / name).is_dir():
        raise UserError(f"LAYERSWAP_DATA={name}: no such folder")
    return ROOT / name


def sync(path: str | Path) -> None:
    """Flush a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def start_writeback(handle: int, start: int, n_bytes: int) -> None:
    """Have the system begin to write bytes of an open file to the disk, so that the last ``sync`` is short."""
    if hasattr(os, "posix_fadvise"):  # Linux only
        os.posix_fadvise(handle, start, n_bytes, os.POSIX_FADV_DONTNEED)


@contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open temporary file that becomes ``path`` when the block ends; on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: str | Path) -> None:
    """UserError unless a folder can be written to ``path``: it does not exist, or is an empty folder."""
    path = Path(os.path.abspath(path))
    if path.is_symlink() or path == Path.cwd():
        raise UserError(f"{path}: is {'a link' if path.is_symlink() else 'the current folder'}, expected a new folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; a folder is never written over")


def existing_parent(path: str | Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())


def check_space(path: str | Path, n_bytes: int) -> None:
    """UserError unless the disk that ``path`` would be written to has room for ``n_bytes``."""
    parent = existing_parent(path)
    if (free := shutil.disk_usage(parent).free) < n_bytes:
        raise UserError(f"{path}: needs {n_bytes / 1e6:,.1f} MB, {parent} has {free / 1e6:,.1f} MB free")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends; on an error it is removed.

    It is locked while a process writes to it. The next writer of ``path`` removes what a killed one has left.

    Raises:
        UserError: as in ``check_target``.
    """
    path = Path(os.path.abspath(path))
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with ExitStack() as stack:
        with locked(path.parent, wait=True):  # or another would find the folder before it is locked
            for stale in [folder for folder in path.parent.iterdir() if temporary_name.fullmatch(folder.name)]:
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
def locked(folder: str | Path, wait: bool = False) -> Iterator[int]:
    """Hold the lock of a folder; gives its handle.

    Raises:
        OSError: another process holds it (unless we ``wait``), or there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)


def json_digest(content: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``content``."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_fetched(path: Path) -> None:
    """UserError if there is no such file, a link to nothing, or what a git clone without LFS leaves in its place."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to {os.readlink(path)}, which is not there")
    if not path.exists() or path.is_dir():
        raise UserError(f"{path}: no such file")
    if path.is_file():  # no pipe, which can be read once
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path}: is a pointer of Git LFS, expected the file itself; git lfs pull fetches it")


def read_json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file. UserError if there is no such file (``missing_ok``: {}) or it holds anything else."""
    if missing_ok and not os.path.lexists(path):
        return {}
    check_fetched(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object ({error})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. UserError if there is no such file or it holds anything else.

    An alias within what has an anchor is refused: a few lines of them stand for more than fits into memory.
    """
    import yaml  # here, for the speed of the command line

    try:
        text, has_anchor = Path(path).read_text(encoding="utf-8"), []  # of the collections around
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                has_anchor.append(event.anchor is not None)
            elif isinstance(event, yaml.CollectionEndEvent):
                has_anchor.pop()
            elif isinstance(event, yaml.AliasEvent) and any(has_anchor):
                raise ValueError(f"alias *{event.anchor} stands within what has an anchor, expected it outside")
        data = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {str(data)[:300]}, expected fields with values")
    return data


def create_once(out: Path, write: Callable[[Path], None]) -> Path:
    """Make a folder unless it exists.

    Args:
        out: the folder.
        write: fills an empty temporary folder that becomes ``out``. Of two processes at once, the first one's stays.

    Returns:
        ``out``.
    """
    if not out.is_dir():
        try:
            with atomic_folder(out) as folder:
                write(folder)
        except UserError:
            if not out.is_dir():
                raise
    return out


def read_rows(path: Path, lines: bool = False) -> Any:
    """The JSON value of a file; a list of values if it is a .jsonl file or has one on every line (``lines``).

    Raises:
        UserError: the file is missing or not well formed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if lines or path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
