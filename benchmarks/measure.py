"""Commands side by side: interleaved runs, medians, ratios and peak memory of whole processes."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def time_command(command):
    """(wall seconds, CPU seconds, peak RSS in MB) of a command. RuntimeError, with its output, if it fails.

    A small process starts and times it: a child of this one would count this one's memory as its own.
    """
    done = subprocess.run([sys.executable, "-S", __file__, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def interleaved(cases, n_runs, before):
    """Run each case (name -> command) once a round, ``n_runs`` rounds; ``before(name)`` prepares one, unmeasured.

    Returns a frame, one row a case: median, low and high of wall seconds, median CPU seconds, largest peak RSS [MB].
    """
    times = {name: [] for name in cases}
    for _ in range(n_runs):
        for name, command in cases.items():
            before(name)
            times[name].append(time_command(command))
    import pandas as pd

    rows = []
    for name, results in times.items():
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


def processor_name():
    """The processor's name, or its architecture where the system does not tell it."""
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


def machine():
    """One line about the processor and the versions."""
    from importlib.metadata import version

    return f"{os.cpu_count()} cores of {processor_name()}, Python {platform.python_version()}, torch {version('torch')}"


if __name__ == "__main__":
    started = time.perf_counter()
    code = subprocess.run(sys.argv[1:]).returncode
    wall, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{wall} {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1000}")
    sys.exit(code)
