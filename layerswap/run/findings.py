"""FINDINGS.md of a project: the claims of its published profiles."""

from collections.abc import Sequence
from pathlib import Path

from layerswap.analysis.report import report_text
from layerswap.errors import UserError
from layerswap.files import atomic_file
from layerswap.run.experiments import profile_experiments
from layerswap.run.profiles import DEFAULTS, Project, load_profile

SECTIONS = {
    "03_transition": "The transition zone",
    "04_top_bottom": "Only top or only bottom layers replaced",
    "05_mgsm": "Methods on MGSM",
}  # of FINDINGS.md
# Profiles whose figures are committed.
PUBLISHED = ("lab", "lab-3x3", "lab-3x3-seed1", "smollm2", "lab-doses", "gemma3-270m")


def write_findings(project: Project, profile: str = PUBLISHED[0]) -> None:
    """Write FINDINGS.md from the result files of the published profiles.

    profile: one that is none of them gets a file of its own, FINDINGS-<profile>.md; ``DEFAULTS``, which only shows that
    the notebooks run, gets none.
    """
    if profile == DEFAULTS:
        return
    names, file_name = [profile], f"FINDINGS-{profile}.md"
    if profile in PUBLISHED:
        names = [name for name in PUBLISHED if (project.root / "figures" / name / "").is_dir()]
        file_name = "FINDINGS.md"
    with atomic_file(project.root / file_name) as file:
        file.write(findings_text(project, names))


def findings_text(project: Project, names: Sequence[str]) -> str:
    """The findings of some profiles, from their result files: first of those that ran notebooks 02 to 05.

    UserError for one that has the results neither of these nor of 06_dose_response nor of 07_ranking.
    """
    figures = project.root / "figures"
    doses, rankings = (
        [name for name in names if (figures / name / f"{result}.csv").is_file()]
        for result in ("dose_response", "ranking_levels")
    )
    profiles = {}
    for name in names:
        if name in [*doses, *rankings] and not (figures / name / "layer_map.csv").is_file():
            continue
        settings = load_profile(project, name)
        experiments = profile_experiments(settings, count_plotted_layers(figures / name))
        profiles[name] = {
            title: [
                comparison
                for experiment in experiments
                if experiment.notebook == notebook
                for comparison in experiment.comparisons
            ]
            for notebook, title in SECTIONS.items()
        }
    return report_text(profiles, figures, doses, rankings)


def count_plotted_layers(folder: Path) -> int:
    """Layers of the models whose results a folder of figures holds, by its layer map. UserError if it has none."""
    path = folder / "layer_map.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the result of notebook 02_swap")
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    return sum(name.startswith("layer ") for name in header)
