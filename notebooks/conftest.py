"""Settings of nbval: kernels get the environment of a run, and a loaded machine gets time to hand over an output."""

import os

os.environ.update({"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"})


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):  # a notebook cell
            item.output_timeout = 120  # seconds; nbval's own 5 fail on a busy machine
            if "stderr" not in item.parent.skip_compare:
                item.parent.skip_compare += (
                    "stderr",
                )  # warnings differ between machines; a cell's results do not go there
