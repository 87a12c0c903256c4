"""Commands side by side: interleaved runs, medians, ratios and peak memory of whole processes."""

import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd


def once(command):
    """(wall seconds, CPU seconds, peak RSS in MB) of a command. RuntimeError, with what it said, if it fails."""
    started = time.perf_counter()
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {said.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def interleaved(cases, runs, before):
    """Run each case (name -> command) once a round, ``runs`` rounds; ``before(name)`` prepares one, unmeasured.

    Returns a frame, one row a case: median, low and high of wall seconds, median CPU seconds, largest peak RSS [MB].
    """
    found = {name: [] for name in cases}
    for _ in range(runs):
        for name, command in cases.items():
            before(name)
            found[name].append(once(command))
    rows = []
    for name, results in found.items():
        wall, cpu, rss = zip(*results, strict=True)
        rows.append({"case": name, "wall_s": statistics.median(wall), "low": min(wall), "high": max(wall),
                     "cpu_s": statistics.median(cpu), "rss_mb": max(rss)})  # fmt: skip
    return pd.DataFrame(rows).set_index("case")


def evict(folder):
    """Take a folder's files out of the page cache."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def warm(folder):
    """Read a folder's files, so that they lie in the page cache."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass


def machine():
    """One line that says what was measured on."""
    with open("/proc/cpuinfo") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, torch {version('torch')}"
