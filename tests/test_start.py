"""The page that ``make lab`` opens: its links lead somewhere."""

import re

from test_run import write_notebook

from layerswap.run.profiles import Project
from layerswap.run.start import write_start_page


def test_every_link_of_the_start_page_leads_somewhere(tmp_path):
    project = Project(tmp_path)
    for folder in ("notebooks", "build/mine/report", "build/empty", "figures/lab", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    write_notebook(project, "01_first", "n = 1", "pass")
    write_notebook(project, "02_second", "n = 1", "pass", figures=["second"])
    for file in ("docs/profiles.md", "notebooks/08_explore.ipynb", "notebooks/01_experts.ipynb",
                 "build/mine/report/index.html", "build/mine/01_first.ipynb", "figures/lab/second.png"):  # fmt: skip
        (tmp_path / file).touch()
    page = write_start_page(project)
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]*)\)", text):
        target = tmp_path / link.removeprefix("/files/") if link.startswith("/files/") else page.parent / link
        assert target.is_file(), link
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["The notebooks", "Profile mine", "Profile lab"]
    assert "[Report](/files/build/mine/report/index.html)" in text and "[second](../figures/lab/second.png)" in text
