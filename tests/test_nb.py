"""The runner: strict parameters, re-runs by content, and what a failed or killed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from layerswap import nb
from layerswap.paths import ROOT, UserError

FIRST = """
import json, pathlib
figures, build = pathlib.Path("../figures") / profile, pathlib.Path("../build") / profile
figures.mkdir(parents=True, exist_ok=True)
for kind in ("png", "svg", "csv"):
    (figures / f"one.{kind}").write_text(str(width))
(build / "left.json").write_text(json.dumps(width * 2 // 2))
with open("../ran.txt", "a") as log:
    log.write("first\\n")
print(width)
"""
SECOND = """
import json, pathlib, time
value = json.loads((pathlib.Path("../build") / profile / "left.json").read_text())
with open("../ran.txt", "a") as log:
    log.write("second\\n")
time.sleep(pause)
print(value + extra)
"""


def write_notebook(house, name, parameters, source, needs=(), writes=(), leaves=()):
    cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    declared = {"needs": list(needs), "writes": list(writes), "leaves": list(leaves)}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "layerswap": declared})
    nbformat.write(notebook, house.notebook(name))


@pytest.fixture
def house(tmp_path):
    """Two small notebooks, the second of which needs what the first leaves, and a profile."""
    for folder in ("notebooks", "params", "layerswap"):
        (tmp_path / folder).mkdir()
    (tmp_path / "requirements.lock").write_text("one==1\n")
    house = nb.House(tmp_path)
    first = 'profile = "ci"  # run\nwidth = 2  # layers\nshare = 0.5  # of all\nflag = False  # yes or no\n'
    first += 'codes = ["sw"]  # languages'
    write_notebook(house, "01_first", first, FIRST, writes=["one"], leaves=["left.json"])
    second = 'profile = "ci"  # run\nextra = 1  # more\npause = 0.0  # seconds'
    write_notebook(house, "02_second", second, SECOND, needs=["01_first"])
    (tmp_path / "params" / "small.yml").write_text("all: {width: 3}\n")
    return house


def ran(house):
    log = house.root / "ran.txt"
    return log.read_text().split() if log.exists() else []


def profile(house, **sections):
    (house.root / "params" / "small.yml").write_text(yaml.safe_dump(sections))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"all": {"widht": 3}}, "did you mean 'width'"),
        ({"01_frist": {"width": 3}}, "did you mean '01_first'"),
        ({"02_second": {"width": 3}}, "no notebook has a parameter 'width'"),
        ({"all": {"width": 3.5}}, "width is 3.5 (float), 01_first expects int"),
        ({"all": {"width": True}}, "width is True (bool)"),
        ({"all": {"width": "3"}}, "width is '3' (str)"),
        ({"all": {"flag": 1}}, "flag is 1 (int)"),
        ({"all": {"share": "half"}}, "share is 'half'"),
        ({"all": {"codes": "sw"}}, "codes is 'sw'"),
        ({"all": {"codes": ["sw", 1]}}, "codes is ['sw', 1]"),
        ({"all": {"profile": "lab"}}, "'profile'"),
        ({"all": {"width": -1}}, "width is -1, expected 0 or more"),
        ({"all": {"share": float("nan")}}, "share is nan, expected 0 or more"),
        ({"all": 3}, "expected parameters"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(house, sections, message, monkeypatch, capsys):
    profile(house, **sections)
    monkeypatch.setattr(nb, "House", lambda: house)
    assert nb.main(["run", "--profile", "small"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not ran(house) and not (house.root / "build").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"- all", "expected sections"), (b"all: [", "params/small.yml: "), (b"\xff\xfe", "'utf-8' codec")],
)
def test_bad_profile_file(house, content, message):
    (house.root / "params/small.yml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        nb.run(house, "small")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", ["none", "", "../params/small", "sub/small", "."])
def test_a_profile_is_a_name(house, profile):
    (house.root / "params/sub").mkdir()
    (house.root / "params/sub/small.yml").write_text("all: {width: 3}\n")
    with pytest.raises(UserError, match="does not exist, expected one of small"):
        nb.run(house, profile)


def test_an_int_stands_for_a_float_and_a_notebook_section_wins(house):
    profile(house, all={"share": 1, "width": 3}, **{"01_first": {"width": 4}})
    resolved = nb.settings(house, "small")["01_first"]
    assert resolved["width"] == 4 and isinstance(resolved["share"], float) and resolved["profile"] == "small"


def test_a_notebook_needs_a_profile(house):
    write_notebook(house, "01_first", "width = 2  # layers", FIRST)
    with pytest.raises(UserError, match="01_first.*profile"):
        nb.settings(house, "small")


@pytest.mark.parametrize("source", ["width = 1 + 1", "a, b = 1, 2", "import os", "width = [n for n in (1,)]"])
def test_parameters_are_literals(house, source):
    write_notebook(house, "01_first", source, FIRST)
    with pytest.raises(UserError, match="01_first.*parameters"):
        nb.settings(house, "small")


def test_runs_again_only_what_changed(house):
    assert nb.run(house, "small") == ["01_first", "02_second"]
    before = {path: path.read_bytes() for path in (house.root / "build/small").glob("*.ipynb")}
    assert nb.run(house, "small") == []
    profile(house, all={"width": 3, "extra": 2})
    assert nb.run(house, "small") == ["02_second"]
    profile(house, all={"width": 5, "extra": 2})
    assert nb.run(house, "small") == ["01_first", "02_second"]
    profile(house, all={"width": 5, "extra": 2, "share": 0.25})  # the first runs; what it leaves is the same
    assert nb.run(house, "small") == ["01_first"]
    (house.root / "figures/small/one.png").write_text("touched")
    assert nb.run(house, "small") == ["01_first"]
    profile(house, all={"width": 3})
    assert nb.run(house, "small") == ["01_first", "02_second"]
    assert before == {path: path.read_bytes() for path in before}


def test_another_model_at_the_same_path_is_another_recipe(house):
    first = 'profile = "ci"  # run\nwidth = 2  # layers\nbase = ""  # model\nexperts = [""]  # models'
    write_notebook(house, "01_first", first, FIRST, writes=["one"], leaves=["left.json"])
    for folder in ("one", "two"):
        (house.root / "models" / folder).mkdir(parents=True)
        (house.root / "models" / folder / "config.json").write_text("{}")
    profile(house, all={"base": "models/one", "experts": [str(house.root / "models/two")]})
    assert nb.run(house, "small") == ["01_first", "02_second"]
    assert nb.run(house, "small") == []
    for folder in ("one", "two"):
        (house.root / "models" / folder / "model.safetensors").write_text(folder)
        assert nb.run(house, "small") == ["01_first"]


def test_another_training_file_is_another_recipe(house):
    first = 'profile = "ci"  # run\nwidth = 2  # layers\nlanguages = [""]  # codes\ndata = [""]  # sets\nmath = [""]  #'
    write_notebook(house, "01_first", first, FIRST, writes=["one"], leaves=["left.json"])
    (house.root / "adapter").mkdir()
    files = [house.root / name for name in ("rows-te.jsonl", "more.jsonl", "adapter/adapter_config.json", "m.gguf")]
    for file in files:
        file.write_text("1")
    sets = ["rows-{language}.jsonl:0.5", str(house.root / "more.jsonl")]
    profile(house, all={"languages": ["sw", "te"], "data": sets, "math": ["adapter", "m.gguf"]})
    assert nb.run(house, "small") == ["01_first", "02_second"]
    for file in files:
        assert nb.run(house, "small") == []
        file.write_text("12")
        assert nb.run(house, "small") == ["01_first"]


@pytest.mark.parametrize(
    ("source", "writes", "message"),
    [
        ("print(1)", ["one"], "one.png was declared but not written"),
        ("1 / 0", [], "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", [], "01_first failed: Kernel died"),  # out of memory, for one
    ],
)
def test_a_failed_run_leaves_no_target(house, source, writes, message, monkeypatch, capsys):
    nb.run(house, "small")
    write_notebook(house, "01_first", 'profile = "ci"  # run\nwidth = 2  # layers', source, writes=writes)
    monkeypatch.setattr(nb, "House", lambda: house)
    assert nb.main(["run", "--profile", "small", "01_first"]) == 1
    assert message in capsys.readouterr().err
    left = {path.name for path in (house.root / "build/small").glob("01_first*")}
    assert left == {"01_first.failed.ipynb"}


def test_a_killed_run_is_done_again(house):
    nb.run(house, "small")
    undisturbed = {p.name: p.read_bytes() for p in (house.root / "build/small").glob("0*")}
    for path in (house.root / "build/small").glob("02*"):
        path.unlink()
    profile(house, all={"width": 3, "pause": 30.0})
    script = f"import pathlib; from layerswap import nb; nb.run(nb.House(pathlib.Path({str(house.root)!r})), 'small')"
    started = len(ran(house))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    while len(ran(house)) == started:  # until the cell is under way
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (house.root / "build/small/02_second.json").exists()
    profile(house, all={"width": 3})
    assert nb.run(house, "small") == ["02_second"]
    assert undisturbed == {p.name: p.read_bytes() for p in (house.root / "build/small").glob("0*")}


def test_nbval_sees_a_changed_digit(house):
    nb.run(house, "small")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    stored = json.loads((house.root / "build/small/01_first.ipynb").read_text())
    source = house.notebook("01_first")
    source.write_text(json.dumps(stored))
    assert subprocess.run([*command, source], cwd=house.root, capture_output=True).returncode == 0
    stored["cells"][-1]["outputs"][0]["text"] = ["4\n"]
    source.write_text(json.dumps(stored))
    assert subprocess.run([*command, source], cwd=house.root, capture_output=True).returncode == 1
