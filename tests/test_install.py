"""Newcomers' machines: what make does in a bare clone, in a moved or copied one, under conda, and with odd names."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import distributions

import pytest
from packaging.specifiers import SpecifierSet

from layerswap.files import ROOT

PINS = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "CONDA", "MFLAGS", "PYTHONPATH"))
}


def make(folder, *arguments, **variables):
    command = ["make", *arguments]
    environment = ENVIRONMENT | variables
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=60)


def write_python(path):
    """A program that stands for an environment's Python: it only notes what it was called with."""
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\necho "$0 <$*> $PYTHONPATH" >> "{path.parent}/calls"\n', encoding="utf-8")
    path.chmod(0o755)
    return path.parent / "calls"


@pytest.fixture
def checkout(tmp_path):
    """What make needs of a checkout, in a path with spaces and letters of several scripts, with a finished .venv."""
    folder = tmp_path / "mon projet é 日本"
    (folder / "notebooks").mkdir(parents=True)
    for name in ("Makefile", "environment.py", "requirements.lock"):
        shutil.copyfile(ROOT / name, folder / name)
    for path in (ROOT / "notebooks").glob("0*_*.ipynb"):
        shutil.copyfile(path, folder / "notebooks" / path.name)
    write_python(folder / ".venv/bin/python")
    (folder / ".venv/.ready").write_text(str(folder.resolve()), encoding="utf-8")
    return folder


def calls(folder):
    path = folder / ".venv/bin/calls"
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("version", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_every_pin_is_for_every_python(version):
    """By what the installed packages say of themselves: soupsieve 4 wants 3.11.5, and Debian 12 has 3.11.2."""
    required = {
        re.sub(r"[-_.]+", "-", distribution.name).lower(): distribution.metadata.get("Requires-Python") or ""
        for distribution in distributions()
    }
    pinned = [re.sub(r"[-_.]+", "-", name).lower() for name in PINS]
    assert set(pinned) <= required.keys(), "make the environment first"
    assert [name for name in pinned if not SpecifierSet(required[name]).contains(version)] == []


def test_a_profile_is_passed_on_as_it_is(checkout):
    assert make(checkout, "all", "PROFILE=a;touch x").returncode == 0
    assert make(checkout, "cost", "PROFILE=$$(touch x) 'y' \"z\"").returncode == 0
    assert not (checkout / "x").exists()
    assert "<-m layerswap.run run --profile a;touch x 05_mgsm>" in calls(checkout)
    assert "<-m layerswap.run cost --profile $(touch x) 'y' \"z\">" in calls(checkout)


def test_what_runs_is_this_checkouts_code(checkout):
    make(checkout, "01_experts", PYTHONPATH="/elsewhere")
    assert calls(checkout).rstrip().endswith(f"{checkout.resolve()}:/elsewhere")


def test_a_moved_or_copied_checkout_gets_an_environment_of_its_own(checkout):
    command = '"python3" environment.py'
    assert command not in make(checkout, "-n", "cost").stdout
    other = checkout.with_name("moved")
    shutil.copytree(checkout, other)
    assert command in make(other, "-n", "cost").stdout
    done = make(other, "cost", GIGABYTES="1e9", PYTHON=sys.executable)
    assert done.returncode == 2 and "GB free here, 1e+09 expected: the environment takes 5.7 GB" in done.stderr
    assert calls(other) == "", "nothing was run there"


def test_notebooks_that_are_drafts_are_not_run_and_a_sixth_one_is(checkout):
    notebooks = checkout / "notebooks"
    for name in ("Untitled.ipynb", "01_experts-Copy1.ipynb", "02_swap copy.ipynb", "scratch.ipynb", "06_mine.ipynb"):
        shutil.copyfile(ROOT / "notebooks/05_mgsm.ipynb", notebooks / name)
    (notebooks / "07_no_section.ipynb").write_text("{}")
    make(checkout, "all")
    first, *others = re.findall(r"--profile lab (\S+)>", calls(checkout))  # the others in any order
    assert [first, *sorted(others)] == ["01_experts", "02_swap", "03_transition", "04_top_bottom", "05_mgsm", "06_mine"]


def test_an_active_conda_environment_is_used(checkout, tmp_path):
    conda = tmp_path / "conda envs" / "layerswap"
    log = write_python(conda / "bin/python")
    make(checkout, "cost", CONDA_PREFIX=str(conda))
    assert not log.exists() and calls(checkout), "another environment, in which layerswap is not installed"
    (conda / "lib/python3.11/site-packages/layerswap-0.1.0.dist-info").mkdir(parents=True)
    assert make(checkout, "cost", CONDA_PREFIX=str(conda)).returncode == 0
    assert re.findall("<(.*)>", log.read_text()) == ["environment.py check", "-m layerswap.run cost --profile lab"]


def test_a_conda_environment_of_other_versions_is_refused(checkout):
    lock = checkout / "requirements.lock"
    lock.write_text(f"numpy=={PINS['numpy']}\nnumpy==0.1\n")
    done = subprocess.run([sys.executable, "environment.py", "check"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1 and f"has numpy {PINS['numpy']}, requirements.lock 0.1: conda env update" in done.stderr


def test_two_makes_in_a_bare_clone_install_once(checkout):
    """The second one waits, and finds what the first has made."""
    shutil.rmtree(checkout / ".venv")
    folder = os.open(checkout, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    second = subprocess.Popen([sys.executable, "environment.py"], cwd=checkout, stderr=subprocess.PIPE, text=True)
    assert "another make installs the packages; waiting" in second.stderr.readline()
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.ready").write_text(str(checkout.resolve()), encoding="utf-8")
    os.close(folder)
    assert second.wait(timeout=30) == 0 and not (checkout / ".venv/bin").exists()


def test_an_interrupted_install_is_one_line(checkout):
    shutil.rmtree(checkout / ".venv")
    folder = os.open(checkout, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    script = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # background jobs ignore it
        "runpy.run_path('environment.py', run_name='__main__')"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=checkout, stderr=subprocess.PIPE, text=True)
    assert "waiting for it" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "layerswap: interrupted; the same command installs the packages anew\n"
    assert process.returncode == 130
    os.close(folder)


def test_an_old_python_is_named(checkout):
    script = "import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path('environment.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is Python 3.8, expected 3.11 or newer; try make PYTHON=python3.11" in done.stderr


def test_jupyterlab_starts_as_root_too_and_shows_the_whole_project(checkout):
    make(checkout, "lab")
    (line,) = [line for line in calls(checkout).splitlines() if "-m jupyterlab" in line]
    assert ("--allow-root" in line) == (os.geteuid() == 0)
    assert "--LabApp.default_url=/lab/tree/build/start.md?file-browser-path=/" in line, "its root is the project"
    settings = line.partition("--LabApp.app_settings_dir=")[2].split()[0]
    assert json.loads((ROOT / settings / "overrides.json").read_text()), "no news, Markdown as it is read"


def test_an_own_profile_is_nothing_that_git_sees(tmp_path):
    """Nor are its figures and findings, and those of drafts; the published ones are."""
    shutil.copyfile(ROOT / ".gitignore", tmp_path / ".gitignore")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    own = ["params/mine.yml", "figures/mine/mgsm.csv", "figures/draft/mgsm.csv", "figures/ci/a.png", "FINDINGS-mine.md"]
    published = [
        "params/lab.yml",
        "params/ci.yml",
        "params/accelerate/fsdp.yaml",
        "figures/lab-3x3/a.csv",
        "FINDINGS.md",
    ]
    for name in (*own, *published):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted([".gitignore", *published])


def test_threads_that_wait_do_not_spin_for_long():
    """Set before torch is loaded, unless somebody has set it."""
    code = "import layerswap, os, sys; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    for variables, expected in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | variables
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == expected, done.stderr
