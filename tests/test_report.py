"""FINDINGS.md and the tables it is written from: every condition is there once, and every figure is its file's."""

import re
import shutil
from itertools import product

import pandas as pd
import pytest

from layerswap.analysis.report import dose_section, ranking_section
from layerswap.files import FIGURES, ROOT
from layerswap.run.findings import PUBLISHED, write_findings
from layerswap.run.profiles import Project

LANGUAGES = ["sw", "bn"]
METHODS = [
    "base",
    "math expert",
    "language expert",
    "revert after training",
    "soup",
    "task arithmetic at 1",
    "TIES",
    "layer swap",
    "transition removed",
    "only bottom",
]  # fmt: skip (of the lab, validation problems choose the math expert itself)
ZONE_WIDTHS = [f"{end}, width {t}" for end in ("bottom", "top", "both") for t in (1, 2)]
DRAWS = [f"random layers, draw {seed}" for seed in (1, 2, 3)]
CONTROLS = ["middle layers", *DRAWS, "roles reversed"]
MEASURES = ["exact match", "whole solution", "answer loss, nats a token"]
# Result file of the lab -> (conditions, whether it is pooled too, measures).
TABLES = {
    "mgsm": (METHODS, False, None),
    "mgsm_paired": ([name for name in METHODS if name != "math expert"], True, None),
    "mgsm_soup": ([name for name in METHODS if name != "soup"], True, None),
    "mgsm_chosen": (["layer swap", "transition removed", "only bottom"], True, None),
    "answer_nll": ([name for name in METHODS if name != "math expert"], True, None),
    "solution_nll": ([name for name in METHODS if name != "math expert"], True, None),
    "transition_removed": (["transition removed"], True, MEASURES),
    "transition_width": (ZONE_WIDTHS, True, None),
    "transition_weight": (["weight 0.25", "transition kept", "weight 0.75", "weight 1"], True, None),
    "non_layer": (
        [f"{zone}: non-layer {source} - average" for zone in ("kept", "removed") for source in ("math", "language")]
        + [f"removed - kept, non-layer {source}" for source in ("math", "average", "language")], True, None,
    ),
    "top_bottom": (["both", "only bottom", "only top", "interaction"], True, MEASURES),
    "controls": (["both", *CONTROLS], True, None),
    "both_controls": ([*CONTROLS, "mean of the random draws"], True, None),
    "width_map": ([f"{b} bottom, {u} top" for b in range(3) for u in range(3)], False, None),
    "width_paired": ([f"{b} bottom, {u} top" for b in range(3) for u in range(3) if (b, u) != (2, 1)], True, None),
    "single_layers": ([*map(str, range(12)), "non-layer"], False, [MEASURES[0], MEASURES[2]]),
}  # fmt: skip


def missing_or_twice(table, conditions, pooled, panels):
    """What a result table lacks, has twice or should not have."""
    keys = ["condition", "language"] + (["measure"] if panels else [])
    expected = set(product(conditions, LANGUAGES + ["pooled"] * pooled, *([panels] if panels else [])))
    rows = list(table.astype({"condition": str})[keys].itertuples(index=False, name=None))
    return (expected ^ set(rows)) | {row for row in rows if rows.count(row) > 1}


@pytest.mark.parametrize("name", TABLES)
def test_the_labs_tables_have_every_condition_once(name):
    table = pd.read_csv(FIGURES / "lab" / f"{name}.csv")
    assert not missing_or_twice(table, *TABLES[name])
    assert missing_or_twice(table.drop(index=0), *TABLES[name]), "a missing row is seen"
    assert missing_or_twice(pd.concat([table, table.iloc[[0]]]), *TABLES[name]), "a row that stands twice is seen"


@pytest.mark.parametrize("name", ["transition_removed", "top_bottom", "mgsm_paired"])
def test_the_labs_sample_detects_seven_points(name):
    table = pd.read_csv(FIGURES / "lab" / f"{name}.csv")
    pooled = table[(table.language == "pooled") & ~table.get("measure", table.language).str.startswith("answer")]
    assert len(pooled) and (pooled.minimum_detectable_effect.dropna() < 0.07).all()


def findings_of(root, *profiles):
    """FINDINGS.md, written in a copy of the project that has the figures of these profiles."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, root / folder)
    for profile in profiles:
        shutil.copytree(FIGURES / profile, root / "figures" / profile, ignore=shutil.ignore_patterns("*.png", "*.svg"))
    write_findings(Project(root))
    return (root / "FINDINGS.md").read_text(encoding="utf-8")


def test_findings_are_what_the_results_say(tmp_path):
    profiles = [folder.name for folder in FIGURES.iterdir() if folder.name != "ci"]
    assert (ROOT / "FINDINGS.md").read_text(encoding="utf-8") == findings_of(tmp_path, *profiles), "run make all"


def test_a_changed_result_changes_the_findings(tmp_path):
    before = findings_of(tmp_path, "lab").splitlines()
    path = tmp_path / "figures" / "lab" / "mgsm_paired.csv"
    table = pd.read_csv(path)
    row = (table.condition == "layer swap") & (table.language == "pooled")
    table.loc[row, ["difference", "low", "high", "p_holm"]] = -0.0123, -0.02, -0.001, 0.01
    table.to_csv(path, index=False)
    write_findings(Project(tmp_path))
    changed = [line for line in (tmp_path / "FINDINGS.md").read_text().splitlines() if line not in before]
    assert len(changed) == 1 and re.match(
        r"\| \[layer swap, against the math expert\]\(figures/lab/mgsm_paired.png\) \| -1.2 \(-2.0, -0.1\) points"
        r" \| 500 \| clear \(p 0.01\) \| sw [0+-], bn [0+-]"
        r" \| does not agree: merged models beat the experts",
        changed[0],
    )  # fmt: skip
    path = tmp_path / "figures" / "lab" / "mgsm.csv"
    pd.read_csv(path).drop(columns="pairs").to_csv(path, index=False)  # as an older version wrote it
    write_findings(Project(tmp_path))
    text = (tmp_path / "FINDINGS.md").read_text()
    assert "## Profile lab" not in text and "Profile lab is left out" in text


def test_the_dose_response_has_a_row_for_every_dose_and_language():
    table = pd.read_csv(FIGURES / "lab-doses" / "dose_response.csv", dtype={"amount": str})
    lines = list(dose_section(FIGURES / "lab-doses"))
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    header, rows = cells[0], {tuple(row[:3]): row[3:] for row in cells[2:]}
    assert rows.keys() == set(table[["dose", "amount", "language"]].itertuples(index=False, name=None))
    for row in table.itertuples():
        n, *values = rows[row.dose, row.amount, row.language]
        value, verdict = values[header[4:].index(row.line)].rsplit(" ", 1)
        assert n == str(row.n) and value.startswith(f"{100 * row.difference:+.1f} ({100 * row.low:+.1f}, ")
        assert verdict == ("0" if row.p_holm >= 0.05 else "+" if row.difference > 0 else "-")
    transplants = pd.read_csv(FIGURES / "lab-doses" / "transplants.csv")
    for row in transplants[transplants.language == "pooled"].itertuples():
        assert f"{row.condition} {100 * row.difference:+.1f} (" in lines[-1]


def test_every_figure_that_is_linked_is_there():
    linked = set(re.findall(r"\((figures/[^)]*)\)", (ROOT / "FINDINGS.md").read_text()))
    assert len(linked) > 10 and all((ROOT / file).is_file() for file in linked)


@pytest.mark.parametrize("profile", PUBLISHED)
def test_no_figure_is_left_of_an_older_version(profile):
    """Each file of a published profile is one that a notebook declares."""
    project = Project()
    declared = {path.name for name in project.notebook_names() for path in project.outputs(name, profile)}
    assert sorted({path.name for path in (FIGURES / profile).iterdir()} - declared) == []


def test_a_ranking_has_a_row_for_every_measure(tmp_path):
    names = ["exact match", "ranked first", "log probability of the right one"]
    level = {"n": 292, "accuracy": 0.456, "low": 0.401, "high": 0.514}
    levels = [
        {"measure": measure, "condition": condition, "language": language, **level}
        for measure in names[:2] for language in ("ja", "bn") for condition in ("base", "math expert")
    ]  # fmt: skip
    differences = [{"measure": measure, "condition": "layer swap", "language": language, "n": 2628, "low": -0.01,
                    "difference": 0.0234, "high": 0.056, "p_holm": 0.04 if language == "bn" else 0.5}
                   for measure in names for language in ("ja", "bn", "pooled")]  # fmt: skip
    folder = tmp_path / "some"
    folder.mkdir()
    for name, rows in (("ranking_levels", levels), ("ranking", differences), ("ranking_ablations", differences)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    lines = list(ranking_section(folder))
    assert f"| {names[0]} | ja | 292 | 46 (40, 51) | 46 (40, 51) |" in lines
    estimate = "+2.3 (-1.0, +5.6)"
    assert lines.count(f"| layer swap | {names[1]} | {estimate} 0 | {estimate} + | {estimate} 0 |") == 2
    estimate = "+0.023 (-0.010, +0.056)"
    assert lines.count(f"| layer swap | {names[-1]} | {estimate} 0 | {estimate} + | {estimate} 0 |") == 2
