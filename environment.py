"""The environment that ``make`` runs in: the packages of requirements.lock in .venv, made by one process at a time.

``make`` calls it by whatever Python it was given, before anything is installed, so this file needs no package and says
in one line what is missing. The stamp .venv/.ready holds the folder that .venv was made for: scripts and the editable
install point there, so the .venv of a checkout that was moved or copied is made anew.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCK, VENV = ROOT / "requirements.lock", ROOT / ".venv"
READY = VENV / ".ready"
PIP = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]


def main() -> None:
    """Make .venv unless it is ready; with the argument "check", check the environment that runs this instead."""
    check_python()
    if sys.argv[1:] == ["check"]:
        return check_pins()
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError:
        print("layerswap: another make installs the packages; waiting for it", file=sys.stderr)
        fcntl.flock(folder, fcntl.LOCK_EX)
    if not is_ready():
        check_space()
        moved_from = os.fsdecode(READY.read_bytes()) if READY.is_file() else ""
        if moved_from not in ("", str(ROOT)):
            print(f"layerswap: .venv was made for {moved_from}", file=sys.stderr)
        print("installing the pinned packages into .venv", flush=True)
        make_environment()


def check_python() -> None:
    """Stop unless this Python can make the environment."""
    if sys.version_info < (3, 11):  # noqa: UP036 (it may be any Python)
        actual = f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}"
        sys.exit(f"layerswap: {actual}, expected 3.11 or newer; try make PYTHON=python3.11")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        sys.exit(f"layerswap: {sys.executable} lacks venv or ensurepip (Debian: apt install python3-venv)")


def check_pins() -> None:
    """Stop unless this environment (conda's) has the pinned versions."""
    from importlib.metadata import PackageNotFoundError, version  # here: an old Python has none

    for line in LOCK.read_text(encoding="utf-8").split():
        name, _, pinned = line.partition("==")
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:
            installed = "none"
        if installed != pinned:
            hint = "conda env update -f environment.yml, or conda deactivate to use .venv"
            sys.exit(f"layerswap: {sys.prefix} has {name} {installed}, requirements.lock {pinned}: {hint}")


def check_space() -> None:
    """Stop unless the disk has the room that the packages may take."""
    free, needed = shutil.disk_usage(ROOT).free / 2**30, float(os.environ.get("GIGABYTES") or 7)
    if free < needed:
        sys.exit(
            f"layerswap: {free:.1f} GB free here, {needed:g} expected: the environment takes 5.7 GB with torch's build"
            " for CUDA, 2.1 GB with its build for CPUs; where that is the one that pip takes, make GIGABYTES=3"
        )


def is_ready() -> bool:
    """Whether .venv was made for this folder, and after the lock was last changed."""
    made_here = READY.is_file() and READY.read_bytes() == os.fsencode(ROOT)
    return made_here and READY.stat().st_mtime >= LOCK.stat().st_mtime


def make_environment() -> None:
    """Make .venv. The stamp is written last, so an install that was cut off is done again."""
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([*PIP, "-r", str(LOCK)], check=True)
        subprocess.run([*PIP, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"layerswap: .venv could not be made, {error.cmd[2]} ended with status {error.returncode} (see above)")
    READY.write_bytes(os.fsencode(ROOT))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("layerswap: interrupted; the same command installs the packages anew", file=sys.stderr)
        sys.exit(130)
