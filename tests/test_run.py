"""Running notebooks: strict parameters, re-runs by content, and what a failed, killed or interrupted run leaves."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import nbclient
import nbformat
import pytest
import yaml

from layerswap.errors import UserError
from layerswap.files import ROOT, read_json
from layerswap.run import profiles
from layerswap.run.__main__ import main
from layerswap.run.notebooks import refresh, run_profile
from layerswap.run.profiles import Project, changed_parameters, load_profile

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


def change_cell(project, name, source):
    """What JupyterLab saves when somebody tries other values in a parameters cell."""
    notebook = json.loads(project.notebook(name).read_text())
    notebook["cells"][0]["source"] = source
    project.notebook(name).write_text(json.dumps(notebook))


def test_a_changed_parameters_cell_changes_no_profile_and_is_named(project, capfd):
    """params/ci.yml holds every default; a type that a cell has lost does not matter either."""
    first = {"width": 2, "fraction": 0.5, "flag": False, "codes": ["sw"], "bottom": "scaled"}
    tuning = {"steps": 3, "rate": 0.1, "sets": ["a"]}
    sections = {"01_first": first | {"tuning": tuning}, "02_second": {"extra": 1, "pause": 0.0}}
    (project.root / "params/ci.yml").write_text(yaml.safe_dump(sections))
    before = load_profile(project, "small"), load_profile(project, "ci")
    assert changed_parameters(project, project.notebook_names()) == []
    change_cell(project, "01_first", 'profile = "lab"\nwidth = "9"\nfraction = 1\nflag = True\ncodes = "te"\n'
                'bottom = 7\ntuning = {"steps": 99, "rate": 1, "sets": []}\nmore = 5')  # fmt: skip
    after = load_profile(project, "small"), load_profile(project, "ci")
    for resolved in after:
        assert resolved["01_first"].pop("more") == 5, "a parameter that is new has its cell's value"
    assert after == before
    assert run_profile(project, "small") == ["01_first", "02_second"]
    assert (project.root / "figures/small/one.csv").read_text() == "3"
    error = capfd.readouterr().err
    assert "01_first: width is '9' in the parameters cell; params/ci.yml counts, 2\n" in error
    assert error.count("in the parameters cell") == 6 and "more" not in error and "profile" not in error
    with pytest.raises(UserError, match="params/ci.yml, 01_first: no notebook has a parameter '"):
        change_cell(project, "01_first", 'profile = "lab"')
        load_profile(project, "small")


WHERE = """
from layerswap.files import results_name
print(results_name("lab"), results_name("small"), results_name("draft"))
"""


def test_a_notebook_that_is_run_by_hand_writes_to_draft(project):
    """Whatever profile is typed into it; under a profile, only that profile's results are written to."""
    write_notebook(project, "01_first", 'profile = "lab"', WHERE)
    (project.root / "params/small.yml").write_text("")
    refresh(project, ["01_first"])
    assert "draft draft draft\\n" in project.notebook("01_first").read_text()
    run_profile(project, "small", ["01_first"])
    assert "draft small draft\\n" in project.build("small", "01_first.ipynb").read_text()
    (project.root / "params/draft.yml").write_text("")
    with pytest.raises(UserError, match="profile 'draft': notebooks that are run by hand write there"):
        run_profile(project, "draft")


def test_kernels_run_the_code_of_their_project(project):
    """Not that of another checkout, to which an editable install points."""
    (project.root / "layerswap/__init__.py").write_text("")
    write_notebook(project, "01_first", 'profile = "draft"', "import layerswap\nprint(layerswap.__file__)")
    (project.root / "params/small.yml").write_text("")
    refresh(project, ["01_first"])
    run_profile(project, "small", ["01_first"])
    for path in (project.notebook("01_first"), project.build("small", "01_first.ipynb")):
        assert str(project.root / "layerswap/__init__.py") in path.read_text()


def test_a_notebook_of_another_checkout_stops_at_once(project):
    (project.root / "layerswap/files.py").write_text("")
    script = "from layerswap.run import start_notebook; start_notebook(1)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command, folder = [sys.executable, "-c", script], project.root / "notebooks"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert f"this notebook lies in {project.root}, but layerswap is imported from {ROOT}" in done.stderr


def test_what_a_notebook_stores_names_no_machine(project):
    """No bars of libraries, nothing of missing widgets and fonts, warnings without paths: as JupyterLab saves it."""
    source = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.environ.pop("TQDM_DISABLE", None)
from layerswap.run import start_notebook
start_notebook(1)
import tqdm.auto, warnings
from matplotlib.font_manager import findfont
findfont("no such font")
from layerswap.checkpoints import load_model
from layerswap.lab import BASE
import torch
load_model(BASE, torch.float32)
warnings.warn("as it is")"""
    write_notebook(project, "01_first", 'profile = "draft"', source)
    client = nbclient.NotebookClient(nbformat.read(project.notebook("01_first"), 4), kernel_name="python3",
                                     resources={"metadata": {"path": project.root / "notebooks"}})  # fmt: skip
    outputs = client.execute().cells[1].outputs
    assert [output.text for output in outputs] == ["UserWarning: as it is\n"]


def test_strays_are_named_and_left_out(project, monkeypatch, capsys):
    folder = project.root / "notebooks"
    for name in ("Untitled.ipynb", "01_first-Copy1.ipynb", "02_second copy.ipynb", "03_été.ipynb"):
        (folder / name).write_text((folder / "01_first.ipynb").read_text())
    (folder / "09_empty.ipynb").touch()
    (folder / "08_plain.ipynb").write_text('{"cells": [], "metadata": {}}')
    monkeypatch.setattr(profiles, "Project", lambda: project)
    assert main(["run", "--profile", "small"]) == 0
    error = capsys.readouterr().err
    assert runs_so_far(project) == ["first", "second"] and error.count("\n") == 6
    assert (
        "layerswap: notebooks/Untitled.ipynb: left out, as it is no notebook of the project (CONTRIBUTING.md)" in error
    )
    with pytest.raises(UserError, match="09_empty.ipynb: expected a JSON object"):
        run_profile(project, "small", ["09_empty"])


def test_a_copy_of_a_notebook_does_not_write_over_its_results(project, monkeypatch, capsys):
    folder = project.root / "notebooks"
    (folder / "03_mine.ipynb").write_text((folder / "01_first.ipynb").read_text())
    monkeypatch.setattr(profiles, "Project", lambda: project)
    assert main(["run", "--profile", "small", "02_second"]) == 2 and not runs_so_far(project)
    assert "one is declared by 01_first and by 03_mine: a copy needs names of its own" in capsys.readouterr().err


def test_a_notebook_that_is_added_runs_after_what_it_needs(project):
    third = 'with open("../ran.txt", "a") as log:\n    log.write("third\\n")'
    write_notebook(project, "03_third", 'profile = "draft"  # run', third, needs=["02_second"])
    assert run_profile(project, "small", ["03_third"]) == ["01_first", "02_second", "03_third"]
    write_profile(project, all={"width": 5})
    assert run_profile(project, "small", ["03_third"]) == ["01_first", "02_second"]


def test_a_notebook_on_request_runs_only_when_it_is_named(project):
    write_notebook(project, "03_third", 'profile = "draft"  # run', "x = 1", needs=["01_first"])
    notebook = read_json(project.notebook("03_third"))
    notebook["metadata"]["layerswap"]["on_request"] = True
    project.notebook("03_third").write_text(json.dumps(notebook))
    assert run_profile(project, "small") == ["01_first", "02_second"]
    assert run_profile(project, "small", ["03_third"]) == ["03_third"]


def test_models_that_were_removed_are_made_again(project):
    """The index of experts names folders below build/models, which somebody may remove to save space."""
    source = """
import json, pathlib
model = pathlib.Path("../build/models/one")
model.mkdir(parents=True, exist_ok=True)
for name in ("config.json", "model.safetensors"):
    (model / name).touch()
index = {"folders": {"base": {"base": ["build/models/one"]}}}
(pathlib.Path("../build") / profile / "left.json").write_text(json.dumps(index))
"""
    write_notebook(project, "01_first", 'profile = "draft"', source, artifacts=["left.json"])
    (project.root / "params/small.yml").write_text("")
    assert run_profile(project, "small", ["01_first"]) == ["01_first"]
    assert run_profile(project, "small", ["01_first"]) == []
    for file in ("build/models/one/model.safetensors", "build/models/one/config.json"):
        (project.root / file).unlink()
        assert run_profile(project, "small", ["01_first"]) == ["01_first"]


def test_a_bar_is_drawn_on_a_terminal(project):
    """From the start of a notebook on: by papermill, over its cells."""
    script = (
        "import pathlib, sys; from layerswap.run import profiles; from layerswap.run.__main__ import main; "
        f"project = profiles.Project(pathlib.Path({str(project.root)!r})); profiles.Project = lambda: project; "
        "sys.exit(main(['run', '--profile', 'small', '01_first']))"
    )
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=project.root, stderr=end, stdout=end, env=environment
    )
    os.close(end)
    output = b""
    while process.poll() is None:
        try:
            output += os.read(terminal, 1 << 16)
        except OSError:  # Linux reports the end of a terminal so
            break
    assert process.wait() == 0 and b"01_first:   0%" in output and b"cell" in output
