"""Guards of the committed notebooks: what nbval does not see (a cell that was never run passes there)."""

import ast
import json
import re

import pandas as pd
import pytest

from layerswap import experts, mgsm, nb
from layerswap.paths import LAB

HOUSE = nb.House()
NAMES = ["01_experts", "02_swap", "03_transition", "04_top_bottom", "05_mgsm"]
FOREIGN = re.compile(r"(?<![\w.])(/home|/root|/Users|/work|/tmp|[A-Z]:\\)")


def problems(notebook):
    """What is wrong with a notebook (parsed JSON), as a list of sentences."""
    found, cells = [], [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("the code cells were not all run once, in order")
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} parameters cells")
    for cell in tagged:
        for line in "".join(cell["source"]).splitlines():
            if not re.fullmatch(r"\w+ = [^#]+  +# \S.*", line):
                found.append(f"no `name = literal  # comment`: {line}")
    for cell in cells:
        source = "".join(cell["source"])
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            found.append("an error is stored")
        if FOREIGN.search(json.dumps(cell["outputs"])):
            found.append("a path of somebody's machine is stored")
        if re.search(r"^\s*[%!]", source, re.M):
            found.append("a magic")
            continue
        if any(isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 5 for n in ast.walk(ast.parse(source))):
            found.append("a def of more than 5 lines")
        if cell not in tagged and len([line for line in source.splitlines() if line.strip()]) > 25:
            found.append(f"a long cell: {source.splitlines()[0]}")
    return found


def test_five_notebooks():
    assert HOUSE.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_sound(name):
    assert problems(nb.read(HOUSE, name)) == []
    assert set(nb.metadata(HOUSE, name)) == {"needs", "writes", "leaves"}


@pytest.mark.parametrize("profile", sorted(path.stem for path in (HOUSE.root / "params").glob("*.yml")))
def test_profiles_name_only_what_exists(profile):
    resolved = nb.settings(HOUSE, profile)
    assert sorted(resolved) == NAMES and all(values["profile"] == profile for values in resolved.values())


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
    notebook = nb.read(HOUSE, "02_swap")
    spoil([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
    assert any(message in problem for problem in problems(notebook))


def test_no_choice_reads_test_problems(monkeypatch):
    """05_mgsm's cells up to the choice, run with a scorer that knows no test problem: all that they ask for is
    validation; and what they choose is what validation says."""
    cells = nb.code(HOUSE, "05_mgsm")
    last = next(i for i, source in enumerate(cells) if "chosen.append" in source)
    asked = []

    def score(profile, plans, *, split, n_problems, languages, **settings):
        asked.append((split, n_problems))
        frames = []
        for each in plans:
            right = each.layers[0] == 1 and sum(each.layers) == 2 and each.outside == 0.5
            rows = [
                {"language": code, "id": i, "correct": right and i > 2} for code in languages for i in range(n_problems)
            ]
            frames.append(pd.DataFrame(rows).assign(condition=each.name, answer_nll=1.0, answer_tokens=1))
        return pd.concat(frames)

    index = {"source": "lab", "seeds": [1], "base": LAB / "base", "experts": {}, "joint": {}, "frozen": {}}
    monkeypatch.setattr(experts, "score", score)
    monkeypatch.setattr(experts, "load", lambda profile: index)
    space = {}
    for source in cells[: last + 1]:
        exec(source, space)
    assert len(asked) == 1 + space["generations"] + 1 and set(asked) == {("validation", space["n_validation"])}
    assert [each.name for each in space["chosen"]] == ["widths chosen", "searched weights"]
    assert space["chosen"][0].layers == (1, *[0] * 6, 1) and space["chosen"][0].outside == 0.5
    assert not any("split" in source and "split=split" in source for source in cells[: last + 1])


def test_lab_splits_share_no_problem_in_any_profile():
    for profile in ("ci", "lab"):
        p = nb.settings(HOUSE, profile)["05_mgsm"]
        for code in p["languages"]:
            test, validation = (
                {each.question for each in mgsm.load("lab", code, split, n)}
                for split, n in (("test", p["n_problems"]), ("validation", p["n_validation"]))
            )
            assert test and validation and not test & validation
