"""The page that ``make lab`` opens: what there is to run and to look at, and how to change a parameter safely."""

from pathlib import Path

from layerswap.files import DRAFT, atomic_file
from layerswap.run.profiles import DEFAULTS, Project, metadata, read_notebook

GUIDE = """# layerswap

**To look:** open a report below, or [08_explore](../notebooks/08_explore.ipynb) and choose *Run All Cells* in the menu
*Run*: it takes the draft's experts, or if there are none those that were made last.

**To change a parameter:**

- *To try something*, open a notebook, change its first code cell, and run it. Results go to figures/draft and
  build/draft, whatever the cell says; no profile's results change. Run [01_experts](../notebooks/01_experts.ipynb)
  first: it makes the draft's experts.
- *For results that stay*, write a profile, a file such as params/mine.yml with the values that differ
  ([how](../docs/profiles.md)), and run `make all PROFILE=mine` in a terminal (menu *File*, *New*, *Terminal*).
  `make cost PROFILE=mine` says before what it takes.
- The notebooks below build/ are records of a run. What is changed there is lost with the next one.
"""


def write_start_page(project: Project) -> Path:
    """Write build/start.md, with links to notebooks, and to each profile's executed notebooks, figures and report."""
    names = project.notebook_names()
    every_figure = [figure for name in names for figure in metadata(project, name)["figures"]]
    lines = [GUIDE, "## The notebooks", ""]
    lines += [f"- [{name}](../notebooks/{name}.ipynb): {notebook_title(project, name)}" for name in names]
    folders = {path.name for parent in ("build", "figures") for path in project.root.glob(f"{parent}/*")}
    executed_of = {profile: [name for name in names if project.build(profile, f"{name}.ipynb").is_file()]
                   for profile in folders}  # fmt: skip
    # Those that were run here come first, and of them one's own.
    for profile in sorted(folders, key=lambda name: (not executed_of[name], name in (DEFAULTS, DRAFT), name)):
        executed = executed_of[profile]
        folder = project.root / "figures" / profile
        figures = [figure for figure in every_figure if (folder / f"{figure}.png").is_file()]
        if not executed and not figures:
            continue
        lines += ["", f"## Profile {profile}", ""]
        if project.build(profile, "report/index.html").is_file():  # opens in a tab of the browser
            lines += [f"**[Report](/files/build/{profile}/report/index.html)**", ""]
        if executed:
            links = ", ".join(f"[{name}]({profile}/{name}.ipynb)" for name in executed)
            lines += [f"Executed: {links}", ""]
        if figures:
            links = ", ".join(f"[{figure}](../figures/{profile}/{figure}.png)" for figure in figures)
            lines += [f"Figures: {links}"]
    page = project.root / "build" / "start.md"
    with atomic_file(page) as file:
        file.write("\n".join(lines) + "\n")
    return page


def notebook_title(project: Project, name: str) -> str:
    """The first heading of a notebook, without its number."""
    text = "".join(read_notebook(project, name)["cells"][0]["source"])
    heading = next((line for line in text.splitlines() if line.startswith("# ")), f"# {name}")
    return heading.removeprefix("# ").lstrip("0123456789. ")
