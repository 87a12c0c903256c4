"""Settings of nbval: kernels get the environment of a run, and a loaded machine gets time to hand over an output."""

from layerswap.files import DRAFT
from layerswap.run.notebooks import prepare_kernels
from layerswap.run.profiles import Project, is_section

prepare_kernels(Project(), DRAFT)


def pytest_ignore_collect(collection_path):
    """Leave out drafts, such as Untitled.ipynb."""
    if collection_path.suffix == ".ipynb" and not is_section(collection_path):
        return True


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):  # a notebook cell
            item.output_timeout = 120  # seconds; nbval's own 5 fail on a busy machine
            if "stderr" not in item.parent.skip_compare:
                item.parent.skip_compare += (
                    "stderr",
                )  # warnings differ between machines; a cell's results do not go there


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line("If the new outputs are right, `make notebooks` stores them.")
