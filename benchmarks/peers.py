"""Peers to compare with, each in a virtual environment of its own under build/peers, made once. Never a dependency."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "mergekit": ["mergekit==0.1.5", "torch==2.13.0"],
    "lm-eval": ["lm_eval[hf]==0.4.13", "torch==2.13.0"],
    "math-verify": ["math-verify[antlr4_13_2]==0.9.0"],
}


def environment(peer):
    """The bin folder of the peer's environment; installs it first if it is not there (minutes)."""
    folder = ROOT / "build" / "peers" / peer
    if not (folder / ".ready").is_file():
        print(f"installing {' '.join(PEERS[peer])} into build/peers/{peer}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEERS[peer]], check=True)
        (folder / ".ready").touch()
    return folder / "bin"
