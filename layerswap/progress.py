"""Where progress bars are drawn."""

import multiprocessing
import os
import sys
from contextlib import suppress
from typing import Any


def progress_options() -> dict[str, Any]:
    """Settings of tqdm for a bar that is drawn where a person looks, and nowhere else.

    That is the terminal of this process; the terminal from which a notebook is run (LAYERSWAP_TERMINAL), below the
    bar of its cells; or the notebook itself where it is open in Jupyter. A worker process draws none.
    """
    if multiprocessing.parent_process():
        return {"disable": True}
    if terminal := os.environ.get("LAYERSWAP_TERMINAL"):
        with suppress(OSError):
            return {"file": open(terminal, "w"), "disable": False, "position": 1, "leave": False}
    visible = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    return {"file": sys.stderr, "disable": not visible, "leave": False}
