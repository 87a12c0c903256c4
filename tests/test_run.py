"""Running notebooks: strict parameters, re-runs by content, and what a failed, killed or interrupted run leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from layerswap.errors import UserError
from layerswap.files import ROOT
from layerswap.run import profiles
from layerswap.run.__main__ import main
from layerswap.run.notebooks import run_profile
from layerswap.run.profiles import Project, load_profile

FIRST = """
import json, pathlib
figures, build = pathlib.Path("../figures") / profile, pathlib.Path("../build") / profile
figures.mkdir(parents=True, exist_ok=True)
for suffix in ("png", "svg", "csv"):
    (figures / f"one.{suffix}").write_text(str(width))
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


def write_notebook(project, name, parameters, source, needs=(), figures=(), artifacts=()):
    cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    declared = {"needs": list(needs), "figures": list(figures), "artifacts": list(artifacts)}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "layerswap": declared})
    nbformat.write(notebook, project.notebook(name))


@pytest.fixture
def project(tmp_path):
    """Two small notebooks, the second of which needs what the first leaves, and a profile."""
    for folder in ("notebooks", "params", "layerswap"):
        (tmp_path / folder).mkdir()
    (tmp_path / "requirements.lock").write_text("one==1\n")
    project = Project(tmp_path)
    first = """profile = "ci"  # run
width = 2  # layers
fraction = 0.5  # of all
flag = False  # yes or no
codes = ["sw"]  # languages
bottom = "scaled"  # layers
tuning = {
    "steps": 3,
    "rate": 0.1,
    "sets": ["a"],
}"""
    write_notebook(project, "01_first", first, FIRST, figures=["one"], artifacts=["left.json"])
    second = 'profile = "ci"  # run\nextra = 1  # more\npause = 0.0  # seconds'
    write_notebook(project, "02_second", second, SECOND, needs=["01_first"])
    (tmp_path / "params" / "small.yml").write_text("all: {width: 3}\n")
    return project


def runs_so_far(project):
    log = project.root / "ran.txt"
    return log.read_text().split() if log.exists() else []


def write_profile(project, **sections):
    (project.root / "params" / "small.yml").write_text(yaml.safe_dump(sections))


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
        ({"all": {"fraction": "half"}}, "fraction is 'half'"),
        ({"all": {"codes": "sw"}}, "codes is 'sw'"),
        ({"all": {"codes": ["sw", 1]}}, "codes is ['sw', 1]"),
        ({"all": {"profile": "lab"}}, "'profile'"),
        ({"all": {"width": -1}}, "width is -1, expected 0 or more"),
        ({"all": {"fraction": float("nan")}}, "fraction is nan, expected 0 or more"),
        ({"all": 3}, "expected parameters"),
        ({"all": {"bottom": ""}}, "bottom is '' (str), 01_first expects a whole number of layers or 'scaled'"),
        ({"all": {"bottom": -1}}, "bottom is -1, expected 0 or more"),
        ({"all": {"bottom": 1.5}}, "bottom is 1.5 (float)"),
        ({"all": {"bottom": True}}, "bottom is True (bool)"),
        ({"all": {"tuning": 3}}, "tuning is 3 (int), 01_first expects dict"),
        ({"all": {"tuning": {"stesp": 3}}}, "tuning has no key 'stesp'; did you mean 'steps'?"),
        ({"all": {"tuning": {"steps": "3"}}}, "tuning.steps is '3' (str), 01_first expects int"),
        ({"all": {"tuning": {"rate": -0.1}}}, "tuning.rate is -0.1, expected 0 or more"),
        ({"all": {"steps": 5}}, "did you mean the key 'steps' of 'tuning'?"),
        ({"all": {"outside": 0.5}}, "no notebook has a parameter 'outside'; it is called non_layer_weight now"),
        ({"01_first": {"widths": [1, 1, 1, 1]}}, "it is called bottom, top, transition_bottom and transition_top now"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(project, sections, message, monkeypatch, capsys):
    write_profile(project, **sections)
    monkeypatch.setattr(profiles, "Project", lambda: project)
    assert main(["run", "--profile", "small"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not runs_so_far(project) and not (project.root / "build").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"- all", "expected sections"), (b"all: [", "params/small.yml: "), (b"\xff\xfe", "'utf-8' codec")],
)
def test_bad_profile_file(project, content, message):
    (project.root / "params/small.yml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        run_profile(project, "small")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", ["none", "", "../params/small", "sub/small", "."])
def test_a_profile_is_a_name(project, profile):
    (project.root / "params/sub").mkdir()
    (project.root / "params/sub/small.yml").write_text("all: {width: 3}\n")
    with pytest.raises(UserError, match="does not exist, expected one of small"):
        run_profile(project, profile)


def test_an_int_stands_for_a_float_and_a_notebook_section_wins(project):
    sections = {"01_first": {"width": 4, "tuning": {"rate": 1}}, "all": {"fraction": 1, "width": 3,
                "tuning": {"rate": 0.5, "steps": 7}, "bottom": 0}}  # fmt: skip
    write_profile(project, **sections)
    resolved = load_profile(project, "small")["01_first"]
    assert resolved["width"] == 4 and isinstance(resolved["fraction"], float) and resolved["profile"] == "small"
    assert resolved["tuning"] == {"steps": 7, "rate": 1.0, "sets": ["a"]} and resolved["bottom"] == 0


def test_a_notebook_needs_a_profile(project):
    write_notebook(project, "01_first", "width = 2  # layers", FIRST)
    with pytest.raises(UserError, match="01_first.*profile"):
        load_profile(project, "small")


@pytest.mark.parametrize("source", ["width = 1 + 1", "a, b = 1, 2", "import os", "width = [n for n in (1,)]"])
def test_parameters_are_literals(project, source):
    write_notebook(project, "01_first", source, FIRST)
    with pytest.raises(UserError, match="01_first.*parameters"):
        load_profile(project, "small")


def test_runs_again_only_what_changed(project):
    assert run_profile(project, "small") == ["01_first", "02_second"]
    before = {path: path.read_bytes() for path in (project.root / "build/small").glob("*.ipynb")}
    assert run_profile(project, "small") == []
    write_profile(project, all={"width": 3, "extra": 2})
    assert run_profile(project, "small") == ["02_second"]
    write_profile(project, all={"width": 5, "extra": 2})
    assert run_profile(project, "small") == ["01_first", "02_second"]
    write_profile(project, all={"width": 5, "extra": 2, "fraction": 0.25})  # the first runs; its artifact is the same
    assert run_profile(project, "small") == ["01_first"]
    (project.root / "figures/small/one.png").write_text("touched")
    assert run_profile(project, "small") == ["01_first"]
    write_profile(project, all={"width": 3})
    assert run_profile(project, "small") == ["01_first", "02_second"]
    assert before == {path: path.read_bytes() for path in before}


def test_another_model_at_the_same_path_runs_again(project):
    first = 'profile = "ci"  # run\nwidth = 2  # layers\nbase = ""  # model\nexperts = [""]  # models'
    write_notebook(project, "01_first", first, FIRST, figures=["one"], artifacts=["left.json"])
    for folder in ("one", "two"):
        (project.root / "models" / folder).mkdir(parents=True)
        (project.root / "models" / folder / "config.json").write_text("{}")
    write_profile(project, all={"base": "models/one", "experts": [str(project.root / "models/two")]})
    assert run_profile(project, "small") == ["01_first", "02_second"]
    assert run_profile(project, "small") == []
    for folder in ("one", "two"):
        (project.root / "models" / folder / "model.safetensors").write_text(folder)
        assert run_profile(project, "small") == ["01_first"]


def test_another_training_file_runs_again(project):
    first = 'profile = "ci"  # run\nwidth = 2  # layers\nlanguages = [""]  # codes\ndata = [""]  # sets\nmath = [""]  #'
    write_notebook(project, "01_first", first, FIRST, figures=["one"], artifacts=["left.json"])
    (project.root / "adapter").mkdir()
    files = [project.root / name for name in ("rows-te.jsonl", "more.jsonl", "adapter/adapter_config.json", "m.gguf")]
    for file in files:
        file.write_text("1")
    sets = ["rows-{language}.jsonl:0.5", str(project.root / "more.jsonl")]
    write_profile(project, all={"languages": ["sw", "te"], "data": sets, "math": ["adapter", "m.gguf"]})
    assert run_profile(project, "small") == ["01_first", "02_second"]
    for file in files:
        assert run_profile(project, "small") == []
        file.write_text("12")
        assert run_profile(project, "small") == ["01_first"]


@pytest.mark.parametrize(
    ("source", "figures", "message"),
    [
        ("print(1)", ["one"], "one.png was declared but not written"),
        ("1 / 0", [], "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", [], "01_first failed: Kernel died"),  # out of memory, for one
    ],
)
def test_a_failed_run_leaves_no_target(project, source, figures, message, monkeypatch, capsys):
    run_profile(project, "small")
    write_notebook(project, "01_first", 'profile = "ci"  # run\nwidth = 2  # layers', source, figures=figures)
    monkeypatch.setattr(profiles, "Project", lambda: project)
    assert main(["run", "--profile", "small", "01_first"]) == 1
    assert message in capsys.readouterr().err
    left = {path.name for path in (project.root / "build/small").glob("01_first*")}
    assert left == {"01_first.failed.ipynb"}


def start_second(project):
    """The run in a process of its own, once the second notebook's cell is under way."""
    write_profile(project, all={"width": 3, "pause": 30.0})
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job ignores it
        "import pathlib, sys; from layerswap.run import profiles; from layerswap.run.__main__ import main; "
        f"project = profiles.Project(pathlib.Path({str(project.root)!r})); profiles.Project = lambda: project; "
        "sys.exit(main(['run', '--profile', 'small']))"
    )
    n_before = len(runs_so_far(project))
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while len(runs_so_far(project)) == n_before:
        assert process.poll() is None
        time.sleep(0.05)
    return process


def records(project):
    return {path.name: path.read_bytes() for path in (project.root / "build/small").glob("0*")}


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_is_done_again(project, stop):
    run_profile(project, "small")
    undisturbed = records(project)
    for path in (project.root / "build/small").glob("02*"):
        path.unlink()
    process = start_second(project)
    os.killpg(process.pid, stop)  # as a terminal's Ctrl-C does, to the kernel too
    error = process.communicate()[1]
    assert not list((project.root / "build/small").glob("02*.json"))
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert error.count("\n") == 1 and error.startswith("layerswap: interrupted")
        assert not list((project.root / "build/small").glob("02*"))
    write_profile(project, all={"width": 3})
    assert run_profile(project, "small") == ["02_second"]
    assert undisturbed == records(project)


@pytest.mark.parametrize(
    "package", sorted({str(path.parent.relative_to(ROOT)) for path in (ROOT / "layerswap").rglob("*.py")})
)
def test_one_line_in_any_package_runs_the_notebooks_again(project, package):
    """Whatever file it is in: a package's sub-packages count as its top level does, texts for people do not."""
    file = project.root / package / "module.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("weight = 1\n")
    (file.parent / "README.md").write_text("one")
    assert run_profile(project, "small") == ["01_first", "02_second"]
    (file.parent / "README.md").write_text("two")
    assert run_profile(project, "small") == []
    file.write_text("weight = 2\n")
    assert run_profile(project, "small") == ["01_first", "02_second"]


def test_nbval_sees_a_changed_digit(project):
    run_profile(project, "small")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    notebook = json.loads((project.root / "build/small/01_first.ipynb").read_text())
    source = project.notebook("01_first")
    source.write_text(json.dumps(notebook))
    assert subprocess.run([*command, source], cwd=project.root, capture_output=True).returncode == 0
    notebook["cells"][-1]["outputs"][0]["text"] = ["4\n"]
    source.write_text(json.dumps(notebook))
    assert subprocess.run([*command, source], cwd=project.root, capture_output=True).returncode == 1
