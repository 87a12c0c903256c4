"""FINDINGS.md of a project: the claims of every profile that has figures."""

from pathlib import Path

from layerswap.analysis.report import report_text
from layerswap.errors import UserError
from layerswap.files import atomic_file
from layerswap.run.experiments import profile_experiments
from layerswap.run.profiles import Project, load_profile

SECTIONS = {
    "03_transition": "The transition zone",
    "04_top_bottom": "Only top or only bottom layers replaced",
    "05_mgsm": "Methods on MGSM",
}  # of FINDINGS.md
LEFT_OUT = ("ci",)  # profiles that only show that the notebooks run


def write_findings(project: Project) -> None:
    """Write FINDINGS.md from the result files of all profiles that have figures."""
    figures = project.root / "figures"
    profiles = {}
    for folder in sorted(path for path in figures.iterdir() if path.is_dir() and path.name not in LEFT_OUT):
        settings = load_profile(project, folder.name)
        experiments = profile_experiments(settings, count_plotted_layers(folder))
        profiles[folder.name] = {
            title: [
                comparison
                for experiment in experiments
                if experiment.notebook == notebook
                for comparison in experiment.comparisons
            ]
            for notebook, title in SECTIONS.items()
        }
    with atomic_file(project.root / "FINDINGS.md") as file:
        file.write(report_text(profiles, figures))


def count_plotted_layers(folder: Path) -> int:
    """Layers of the models whose results a folder of figures holds, by its layer map. UserError if it has none."""
    path = folder / "layer_map.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the result of notebook 02_swap")
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    return sum(name.startswith("layer ") for name in header)
