"""Guards of the committed notebooks: what nbval does not see (a cell that was never run passes there)."""

import ast
import json
import re

import pandas as pd
import pytest
import yaml

from layerswap.analysis.selection import CRITERIA
from layerswap.errors import UserError
from layerswap.experts.index import ExpertIndex
from layerswap.files import DRAFT
from layerswap.lab.task import LabTask
from layerswap.lab.world import BASE
from layerswap.run import scores as scores_module
from layerswap.run.profiles import (
    Project,
    changed_parameters,
    code_cells,
    default_parameters,
    load_profile,
    metadata,
    parameter_defaults,
    read_notebook,
    set_parameters,
)
from layerswap.run.scores import ProfileScores

PROJECT = Project()
SECTIONS = ["01_experts", "02_swap", "03_transition", "04_top_bottom", "05_mgsm"]  # that profiles and reports rest on
NAMES = PROJECT.notebook_names()
REMEDY = "`make notebooks` executes the notebooks anew and cleans them"
FOREIGN = re.compile(r"(?<![\w.])(/home|/root|/Users|/work|/tmp|[A-Z]:\\)")


def faults(notebook):
    """What is wrong with a notebook (parsed JSON), as a list of sentences."""
    sentences, cells = [], [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        sentences.append("the kernel is not python3")
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        sentences.append("the code cells were not all run once, in order")
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        sentences.append(f"{len(tagged)} parameters cells")
    for cell in tagged:
        for line in "".join(cell["source"]).splitlines():
            if not re.fullmatch(r"(\w+ = [^#]+|    (\"\w+\": [^#]+,)+|})  +# \S.*", line):
                sentences.append(f"no `name = literal  # comment`: {line}")
    for cell in cells:
        source = "".join(cell["source"])
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            sentences.append("an error is stored")
        if FOREIGN.search(json.dumps(cell["outputs"])):
            sentences.append("a path of somebody's machine is stored")
        if re.search(r"^\s*[%!]", source, re.M):
            sentences.append("a magic")
            continue
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(source))):
            sentences.append("a def: functions live in the package")
        if cell not in tagged and len([line for line in source.splitlines() if line.strip()]) > 16:
            sentences.append(f"a long cell: {source.splitlines()[0]}")
        if len(re.findall(r"save_figure\(", source)) > 1:
            sentences.append(f"two figures in one cell: {source.splitlines()[0]}")
    return sentences


def test_five_notebooks():
    assert NAMES[:5] == SECTIONS


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_sound(name):
    assert faults(read_notebook(PROJECT, name)) == [], REMEDY
    assert set(metadata(PROJECT, name)) - {"on_request"} == {"needs", "figures", "artifacts"}


@pytest.mark.parametrize("name", NAMES)
def test_a_parameters_cell_says_what_params_ci_yml_sets(name):
    """Each parameter, with a value of the same type: a notebook shows by hand what every profile starts from."""
    assert changed_parameters(PROJECT, [name]) == [], "change params/ci.yml too, or take the cell's change back"
    cell, (path,) = parameter_defaults(PROJECT, name), [PROJECT.root / "params" / "ci.yml"]
    pins = yaml.safe_load(path.read_text(encoding="utf-8"))
    pinned = pins["all"] | pins.get(name, {})
    assert cell.pop("profile") == DRAFT and cell.keys() <= pinned.keys(), f"params/ci.yml lacks {cell.keys() - pinned}"
    for parameter, value in cell.items():
        assert json.dumps(value) == json.dumps(default_parameters(PROJECT)[name][parameter]), parameter


@pytest.mark.parametrize("profile", sorted(path.stem for path in (PROJECT.root / "params").glob("*.yml")))
def test_profiles_name_only_what_exists(profile):
    resolved = load_profile(PROJECT, profile)
    assert sorted(resolved) == NAMES and all(values["profile"] == profile for values in resolved.values())


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("math_experts", [5], "expects list like ['text']"), ("language_experts", [{"path": "x"}], "like ['text']"),
        ("probed_layers", ["a"], "expects list like [0]"), ("probed_layers", [0.5], "expects list like [0]"),
        ("fine_tuning", {"math_data": [["gsm8k"]]}, "fine_tuning.math_data is [['gsm8k']]"),
        ("n_problems", 0, "expected 1 or more"), ("threads", 0, "expected 1 or more"),
        ("max_new_tokens", 0, "expected 1 or more"), ("device", "gpu", "expected one of cpu, cuda"),
        ("eval_dtype", "bf16", "expected one of float32, bfloat16, auto"), ("split", "dev", "one of test, validation"),
        ("criterion", "accuracy", f"expected one of {', '.join(CRITERIA)}"),
    ],
)  # fmt: skip
def test_values_that_no_notebook_takes_are_refused(parameter, value, expected):
    defaults = default_parameters(PROJECT)
    with pytest.raises(UserError) as error:
        set_parameters("params/x.yml", {"all": {parameter: value}}, defaults)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda code: code[2].update(execution_count=None), "not all run"),
        (lambda code: code[2].update(execution_count=7), "not all run"),
        (lambda code: code[0]["metadata"].update(tags=[]), "0 parameters cells"),
        (lambda code: code[0].update(source="a = 1"), "no `name = literal"),
        (lambda code: code[2].update(outputs=[{"output_type": "error"}]), "an error"),
        (lambda code: code[2].update(outputs=[{"output_type": "stream", "text": "/home/me/x"}]), "a path"),
        (lambda code: code[2].update(source="%matplotlib inline"), "a magic"),
        (lambda code: code[2].update(source="def f():\n    a\n    b\n    c\n    d\n    e"), "a def"),
    ],
)
def test_guard_sees_a_spoilt_notebook(spoil, message):
    notebook = read_notebook(PROJECT, "02_swap")
    spoil([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
    assert any(message in fault for fault in faults(notebook))


def test_no_choice_reads_test_problems(monkeypatch):
    """05_mgsm's cells up to the choice, run with a scorer that knows no test problem.

    All that they ask for is validation, and what they choose is what validation says.
    """
    cells = code_cells(PROJECT, "05_mgsm")
    last = next(i for i, source in enumerate(cells) if "chosen_plans.append" in source)
    requests = []

    def score(scores, conditions, n_problems):
        requests.append((scores.split, scores.pairs, n_problems))
        frames = []
        for condition in conditions:
            layers = condition.plan.layers
            correct = layers[0] == 1 and sum(layers) == 2 and condition.plan.non_layer_weight == 0.5
            rows = [
                {"language": language, "id": i, "correct": correct and i > 2}
                for language in scores.languages
                for i in range(n_problems)
            ]
            frames.append(pd.DataFrame(rows).assign(condition=condition.name, answer_nll=1.0, answer_tokens=1))
        return pd.concat(frames)

    index = ExpertIndex(source="lab", seeds=[1], note="", base=BASE, experts={}, joint={}, frozen={})
    monkeypatch.setattr(ProfileScores, "score", score)
    monkeypatch.setattr(scores_module, "load_index", lambda profile: index)
    space = {}
    for source in cells[: last + 1]:
        exec(source, space)
    assert len(requests) == 1 + space["generations"] + 1
    assert set(requests) == {("validation", "1x1", space["n_validation"])}
    assert [plan.name for plan in space["chosen_plans"]] == ["widths chosen", "searched weights"]
    best = space["chosen_plans"][0]
    assert best.layers == (1, *[0] * 10, 1) and best.non_layer_weight == 0.5


def test_lab_splits_share_no_problem_in_any_profile():
    for profile in ("ci", "lab"):
        p = load_profile(PROJECT, profile)["05_mgsm"]
        for language in p["languages"]:
            test, validation = (
                {problem.question for problem in LabTask().problems(language, split, n)}
                for split, n in (("test", p["n_problems"]), ("validation", p["n_validation"]))
            )
            assert test and validation and not test & validation
