"""FINDINGS.md of a project: the claims of its published profiles."""

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
PUBLISHED = ("lab", "lab-3x3", "lab-3x3-seed1", "smollm2")  # profiles whose figures are committed
DOSES = "lab-doses"  # the one that ran 06_dose_response alone
RANKING = "gemma3-270m"  # the one that ran 07_ranking alone


def write_findings(project: Project, profile: str = PUBLISHED[0]) -> None:
    """Write FINDINGS.md from the result files of the published profiles.

    profile: one that is none of them gets a file of its own, FINDINGS-<profile>.md; ``DEFAULTS``, which only shows that
    the notebooks run, gets none.
    """
    figures = project.root / "figures"
    groups = PUBLISHED, [DOSES], [RANKING]
    names, doses, rankings = ([name for name in group if (figures / name / "").is_dir()] for group in groups)
    file_name = "FINDINGS.md"
    if profile not in (*PUBLISHED, DOSES, RANKING):
        file_name, names, doses, rankings = f"FINDINGS-{profile}.md", [profile], [], []
    if profile == DEFAULTS:
        return
    profiles = {}
    for name in names:
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
    with atomic_file(project.root / file_name) as file:
        file.write(report_text(profiles, figures, doses, rankings))


def count_plotted_layers(folder: Path) -> int:
    """Layers of the models whose results a folder of figures holds, by its layer map. UserError if it has none."""
    path = folder / "layer_map.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the result of notebook 02_swap")
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    return sum(name.startswith("layer ") for name in header)
