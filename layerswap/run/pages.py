"""``make report``: a profile's executed notebooks and findings as pages, to be read without starting anything.

The pages need no network: pictures, style and script lie in them. What FINDINGS.md says of the profile stands on the
first page, each claim linked to its figure, and a last page sets the profiles whose results are here side by side.
"""

import re
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from layerswap.analysis.comparisons import EXACT_MATCH
from layerswap.analysis.report import direction, format_estimate, read_results
from layerswap.analysis.statistics import MEASURES, NATS
from layerswap.errors import UserError
from layerswap.files import DRAFT, atomic_folder
from layerswap.run.findings import findings_text
from layerswap.run.profiles import DEFAULTS, Project, metadata

TEMPLATES = Path(__file__).parent / "templates"
HEADING = re.compile(r'<h([1-3]) id="([^"]+)">(.*?)<a class="anchor-link"', re.DOTALL)
FILE_LINK = re.compile(r' href="(?!\w+:)[^"#]+\.(?!html|png)\w+"')  # into the project: not part of the report
FIGURE_LINK = re.compile(r'href="figures/([\w-]+)/(\w+)\.png"')
COMPARISON = """# Profiles compared

Differences pooled over a profile's languages, in percentage points or nats, with 95 % intervals; *clear*: p < 0.05
after Holm's correction within the profile's figure. Profiles differ in model, problems and pairs of experts: only
directions compare.
"""
# Result files whose pooled rows are compared between profiles, with a heading each.
COMPARED = {
    "mgsm_paired": "Methods, against the math expert",
    "transition_removed": "The transition zone removed, against kept",
    "top_bottom": "Only the bottom or only the top layers replaced, against neither",
    "ranking_ablations": "Operation ranking: ablations and controls",
}


@dataclass(frozen=True)
class Page:
    """A page of the report.

    Attributes:
        file: its name.
        label: what links to it say.
        body: HTML.
    """

    file: str
    label: str
    body: str

    @property
    def contents(self) -> list[tuple[int, str, str]]:
        """(level, anchor, text) of its headings."""
        return [
            (int(level), anchor, unescape(re.sub("<[^>]+>", "", text)))
            for level, anchor, text in HEADING.findall(self.body)
        ]


def write_report(project: Project, profile: str) -> Path:
    """Write ``build/<profile>/report``, in place of the last one.

    Args:
        project: with the executed notebooks in build/<profile>.
        profile: its name.

    Returns:
        The first page, index.html.

    Raises:
        UserError: no notebook was executed under this profile.
    """
    names = [name for name in project.notebook_names() if project.build(profile, f"{name}.ipynb").is_file()]
    if not names:
        raise UserError(f"build/{profile} holds no executed notebook: run `make all PROFILE={profile}` first")
    sections = [notebook_page(project, profile, name) for name in names]
    places = {figure: f"{name}.html#figure-{figure}" for name in names for figure in metadata(project, name)["figures"]}
    pages = [
        Page("index.html", "Findings", index_body(project, profile, sections)),
        *sections,
        Page("compare.html", "Profiles compared", compare_body(project.root / "figures")),
        Page("labels.html", "Labels", markdown_body((project.root / "docs" / "labels.md").read_text(encoding="utf-8"))),
    ]
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(TEMPLATES / "report"))
    style, script = ((TEMPLATES / "report" / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    folder = project.build(profile, "report")
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        for page in pages:
            text = environment.get_template("page.html.j2").render(
                file=page.file, title=page.label, contents=page.contents, profile=profile, pages=pages, style=style,
                script=script, body=localize_links(page.body, project, profile, places, temporary),
            )  # fmt: skip
            (temporary / page.file).write_text(text, encoding="utf-8")
    return folder / "index.html"


def notebook_page(project: Project, profile: str, name: str) -> Page:
    """An executed notebook: outputs first, code folded behind them, figures with their alternative text."""
    notebook = nbformat.read(project.build(profile, f"{name}.ipynb"), 4)
    texts = metadata(project, name)["figures"]
    for cell in notebook.cells:
        cell.metadata["summary"] = "Parameters" if "parameters" in cell.metadata.get("tags", []) else "Code"
        if figure := next((name for name in texts if f'"{name}", profile)' in cell.source), None):
            cell.metadata |= {"figure": figure, "alt": texts[figure]}
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    body, _ = exporter.from_notebook_node(notebook)
    label = next((text for _, _, text in Page("", "", body).contents), name)
    return Page(f"{name}.html", label, body)


def index_body(project: Project, profile: str, sections: Sequence[Page]) -> str:
    """The first page: what was found, with its figures, and which notebooks there are."""
    links = [f"- [{page.label}]({page.file})" for page in sections]
    body = markdown_body("\n".join([findings_text(project, [profile]), "## The notebooks", "", *links]))
    return add_pictures(project, body)


def add_pictures(project: Project, body: str) -> str:
    """Below each section of findings the figures that it links to, each once, as links to their place."""
    texts = {figure: text for name in project.notebook_names()
             for figure, text in metadata(project, name)["figures"].items()}  # fmt: skip

    def picture(owner: str, figure: str) -> str:
        content = (project.root / "figures" / owner / f"{figure}.png").read_bytes()
        alternative = escape(texts.get(figure, figure.replace("_", " ")))
        image = f'<img alt="{alternative}" src="data:image/png;base64,{b64encode(content).decode()}">'
        return f'<a href="figures/{owner}/{figure}.png">{image}</a>'

    pieces = []
    for section in re.split(r"(?=<h[23] )", body):
        pieces.append(section)
        if linked := dict.fromkeys(FIGURE_LINK.findall(section)):
            pieces.append(f'<div class="pictures">{"".join(picture(*names) for names in linked)}</div>')
    return "".join(pieces)


def compare_body(figures: Path) -> str:
    """The pooled differences of every profile whose results are there, a column each."""
    lines = [COMPARISON]
    for name, heading in COMPARED.items():
        columns = {
            folder.name: dict(pooled_cells(read_results(folder, name)))
            for folder in sorted(figures.iterdir())
            if folder.name not in (DEFAULTS, DRAFT) and (folder / f"{name}.csv").is_file()
        }
        for profile, cells in columns.items():
            if name == "mgsm_paired" and "same_as" in (selection := read_results(figures / profile, "selection")):
                cells |= {row.condition: f"= {row.same_as}" for row in selection.dropna(subset="same_as").itertuples()}
        if columns:
            table = pd.DataFrame(columns).fillna("")
            lines += [f"## {heading}", "", *markdown_table(table), ""]
    return markdown_body("\n".join(lines))


def pooled_cells(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(what is compared, its pooled difference) of a result file: percentage points, or nats of a loss."""
    if "measure" not in table:
        table = table.assign(measure=EXACT_MATCH)
    for (condition, measure), rows in table.groupby(["condition", "measure"], sort=False):
        row = list(rows.itertuples())[-1]  # pooled, or the only language
        factor, digits = (1, 3) if MEASURES[measure] in NATS else (100, 1)
        estimate = format_estimate(row, factor, digits)
        verdict = " clear" if direction(row) else ""
        yield condition if measure == EXACT_MATCH else f"{condition}: {measure}", f"{estimate}{verdict}"


def markdown_table(table: pd.DataFrame) -> list[str]:
    """A frame of texts as lines of markdown."""
    rows = [
        ["", *table.columns],
        ["---"] * (1 + len(table.columns)),
        *([name, *row] for name, *row in table.itertuples()),
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def markdown_body(text: str) -> str:
    """Markdown as HTML, with an anchor at each heading."""
    return str(markdown2html_mistune(text))


def localize_links(body: str, project: Project, profile: str, places: Mapping[str, str], folder: Path) -> str:
    """Let links to figures lead to their place in the report, or to a copy in ``folder``/figures."""

    def replacement(match: re.Match[str]) -> str:
        owner, figure = match.groups()
        if owner == profile and figure in places:
            return f'href="{places[figure]}"'
        source = project.root / "figures" / owner / f"{figure}.png"
        target = folder / "figures" / owner / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return f'href="figures/{owner}/{source.name}"'

    body = FIGURE_LINK.sub(replacement, body).replace('href="docs/labels.md"', 'href="labels.html"')
    return FILE_LINK.sub("", body)
