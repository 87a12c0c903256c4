"""README's three steps on one's own experts, in a language without training text here: nothing else is asked for."""

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import write_checkpoint

from layerswap.files import ROOT
from layerswap.run.profiles import Project, load_profile

FEW = {"n_problems": 1, "n_sweep": 1, "n_map": 1, "n_validation": 1, "max_new_tokens": 4, "exemplars": 2}


def readme_profile():
    """The profile that README shows."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(text)


def write_problems(folder, *languages):
    """What LAYERSWAP_DATA holds at least: MGSM's files, here of made-up problems, and nothing to train on."""
    (folder / "mgsm").mkdir(parents=True)
    for language in languages:
        rows = [f"Asha has {i} apples plus {i}?\t{2 * i}\n" for i in range(60)]
        (folder / "mgsm" / f"mgsm_{language}.tsv").write_text("".join(rows), encoding="utf-8")
    solved = {str(i): {"q": f"Question: {i} plus {i}?", "a": f"Step-by-Step Answer: The answer is {2 * i}."}
              for i in range(1, 9)}  # fmt: skip
    exemplars = {"MGSM_EXEMPLARS": dict.fromkeys(languages, solved)}
    (folder / "mgsm" / "exemplars.json").write_text(json.dumps(exemplars), encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """A copy of the project, in a path that needs quotes, with the user's data beside it."""
    root = tmp_path / "mes modèles"
    for name in ("layerswap", "notebooks", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", root / "requirements.lock")
    write_problems(tmp_path / "data", "en", "sw", "de")
    return Project(root)


def run(project, *arguments):
    environment = os.environ | {"PYTHONPATH": str(project.root), "LAYERSWAP_DATA": str(project.root.parent / "data")}
    command = [sys.executable, "-m", "layerswap.run", *arguments, "--profile", "mine"]
    return subprocess.run(command, cwd=project.root, capture_output=True, text=True, env=environment)


def write_mine(project, profile):
    (project.root / "params/mine.yml").write_text(yaml.safe_dump(profile), encoding="utf-8")


def test_the_readmes_profile_can_be_estimated(project):
    """As it stands, with a base that is on no disk yet and has no size in its name."""
    write_mine(project, readme_profile())
    done = run(project, "cost")
    assert done.returncode == 0 and "nan" not in done.stdout, done.stderr
    assert load_profile(project, "mine")["05_mgsm"]["n_problems"] == 200


def test_own_experts_from_the_readme_alone(project):
    """The base as its own language expert: no better than its base, which is said and stops nothing."""
    profile, models = readme_profile(), project.root / "models"
    base = write_checkpoint(models / "base", layers=6, max_position_embeddings=2048)
    math = write_checkpoint(models / "math", 1, layers=6, max_position_embeddings=2048)
    profile["all"] |= {"base": str(base), "languages": ["de"]}
    profile["01_experts"] |= {"math_experts": ["models/math"], "language_experts": [str(base)]}
    write_mine(project, profile)
    assert run(project, "cost").returncode == 0 and math.is_dir()
    defaults = load_profile(project, "mine")
    for name, parameters in defaults.items():
        profile[name] = profile.get(name, {}) | {key: value for key, value in FEW.items() if key in parameters}
    write_mine(project, profile)
    done = run(project, "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(project, "findings").returncode == 0
    findings = (project.root / "FINDINGS-mine.md").read_text(encoding="utf-8")
    assert "## Profile mine" in findings and not re.search(r"\bnan\b", findings) and "(too few) points" in findings
    assert "not measured, for want of text" in findings and not (project.root / "FINDINGS.md").exists()
    notebook = (project.root / "build/mine/01_experts.ipynb").read_text(encoding="utf-8")
    assert "de: not measured, no held-out text of its subject is at hand" in notebook
    assert "warning: expert math left the neighbourhood of its base" in notebook
    for path in (project.root / "build/mine").glob("0*.ipynb"):
        texts = [output.get("text", "") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                 for output in cell.get("outputs", ())]  # fmt: skip
        assert not re.search(r"\bnan\b", "".join(map("".join, texts)), re.IGNORECASE), path.name
    assert len(pd.read_csv(project.root / "figures/mine/held_out_loss.csv")) == 0
