"""The pages of a report: what they hold, where their links lead. In a browser: test_pages_in_browser.py."""

import base64
import re
import shutil

import nbformat
import pytest
from test_run import write_notebook

from layerswap.errors import UserError
from layerswap.run.pages import write_report
from layerswap.run.profiles import Project

ROOT = Project().root
PROFILE, FIGURE = "gemma3-270m", "ranking_ablations"
ALT = "Differences <with> intervals."


@pytest.fixture
def project(tmp_path):
    """The figures of a published profile, and one executed notebook that drew one of them."""
    for folder in ("notebooks", "params", f"build/{PROFILE}", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "figures" / PROFILE, tmp_path / "figures" / PROFILE)
    shutil.copyfile(ROOT / "docs" / "labels.md", tmp_path / "docs" / "labels.md")
    project = Project(tmp_path)
    write_notebook(
        project, "01_first", 'profile = "ci"  # run', f'save_figure(figure, table[["n"]], "{FIGURE}", profile)'
    )
    notebook = nbformat.read(project.notebook("01_first"), 4)
    notebook.metadata["layerswap"]["figures"] = {FIGURE: ALT}
    title = nbformat.v4.new_markdown_cell(
        "# 1. First & last\n\n## Part one\n\n[code](../layerswap/cli.py) [more](more.md)"
    )
    notebook.cells.insert(0, title)
    picture = base64.b64encode((ROOT / "figures" / PROFILE / f"{FIGURE}.png").read_bytes()).decode()
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="3 < 4\n"),
        nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "a figure"}),
    ]
    nbformat.write(notebook, project.notebook("01_first"))
    shutil.copyfile(project.notebook("01_first"), project.build(PROFILE, "01_first.ipynb"))
    return project


def test_a_notebook_becomes_a_page_with_its_code_behind_its_figure(project):
    page = (write_report(project, PROFILE).parent / "01_first.html").read_text(encoding="utf-8")
    image, code = page.index("<img"), page.index("save_figure")
    assert image < code and page.index("3 &lt; 4") < code
    assert 'alt="Differences &lt;with&gt; intervals."' in page and f'id="figure-{FIGURE}"' in page
    assert [text for text in re.findall("<summary>(.*?)</summary>", page)] == ["Parameters", "Code"]
    assert 'class="level2"><a href="#Part-one">Part one</a>' in page
    assert 'aria-current="page">1. First &amp; last</a>' in page


def test_the_first_page_has_the_findings_with_links_to_their_figures(project):
    index = write_report(project, PROFILE)
    text = index.read_text(encoding="utf-8")
    assert f'href="01_first.html#figure-{FIGURE}"' in text  # of a notebook that was run
    assert (
        f'href="figures/{PROFILE}/ranking.png"' in text and (index.parent / f"figures/{PROFILE}/ranking.png").is_file()
    )
    assert "layer swap - ends put back to the base" in text and 'href="labels.html"' in text


def test_the_first_page_has_the_figures_of_its_findings(project):
    text = write_report(project, PROFILE).read_text(encoding="utf-8")
    pictures = re.findall(r'<a href="([^"]*)"><img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', text)
    assert [link.rpartition("/")[2] for link, _, _ in pictures] == [
        "ranking_levels.png", "ranking.png", "01_first.html#figure-ranking_ablations",
    ]  # fmt: skip
    for name, (_, _, content) in zip(["ranking_levels", "ranking", FIGURE], pictures, strict=True):
        assert base64.b64decode(content) == (ROOT / "figures" / PROFILE / f"{name}.png").read_bytes()
    assert pictures[2][1] == "Differences &lt;with&gt; intervals."


def test_nothing_is_fetched_and_no_link_leads_out_of_the_report(project):
    for path in write_report(project, PROFILE).parent.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|<link[^>]*href)="(?!data:)', text.replace('rel="icon" href="data:,"', ""))
        for link in re.findall(r'href="([^"#]+)[^"]*"', text):
            assert re.match(r"https?://|data:", link) or (path.parent / link).is_file(), link


def test_profiles_are_compared_in_columns(project):
    shutil.copytree(project.root / "figures" / PROFILE, project.root / "figures" / "other")
    shutil.copytree(project.root / "figures" / PROFILE, project.root / "figures" / "draft")  # somebody's trials
    text = (write_report(project, PROFILE).parent / "compare.html").read_text(encoding="utf-8")
    assert re.findall(r"<th[^>]*>([\w-]+)</th>", text) == [PROFILE, "other"]


def test_a_report_replaces_the_last_one_and_needs_an_executed_notebook(project):
    first = write_report(project, PROFILE)
    (first.parent / "old.html").touch()
    before = first.read_bytes()
    assert write_report(project, PROFILE).read_bytes() == before and not (first.parent / "old.html").exists()
    with pytest.raises(UserError, match="^build/lab holds no executed notebook: run `make all PROFILE=lab` first$"):
        write_report(project, "lab")


def test_a_method_that_is_the_same_model_as_another_is_compared_as_such(project):
    for profile in ("one", "two"):
        (project.root / "figures" / profile).mkdir()
        row = "only bottom,pooled,0.1,0.0,0.2,0.5"
        (project.root / f"figures/{profile}/mgsm_paired.csv").write_text(
            f"condition,language,difference,low,high,p_holm\n{row}\n"
        )
        same_as = ",only bottom" if profile == "two" else ","
        (project.root / f"figures/{profile}/selection.csv").write_text(f"condition,same_as\nwidths chosen{same_as}\n")
    text = (write_report(project, PROFILE).parent / "compare.html").read_text(encoding="utf-8")
    assert re.search(r"<td>widths chosen</td>\s*<td></td>\s*<td>= only bottom</td>", text)
