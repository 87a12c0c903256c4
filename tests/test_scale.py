"""The five notebooks, unchanged, on a model built like Llama 3.1 8B: its 32 layers, head ratios and rope, in bfloat16
shards; LoRA experts of two seeds, trained on a file of the user's. Only the width is small."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from layerswap.files import ROOT
from layerswap.lab.task import LabTask
from layerswap.lab.world import BASE
from layerswap.run.profiles import Project, metadata

PROJECT = Project()
PROFILE = {
    "all": {"base": "tall", "languages": ["sw"], "n_problems": 2, "max_new_tokens": 3, "eval_dtype": "bfloat16"},
    "01_experts": {
        "seeds": [1, 2], "n_held_out": 8,
        "fine_tuning": {
            "math_data": ["own:1", "math.jsonl:1"], "math_steps": 1, "language_steps": 3, "math_learning_rate": 0.001,
            "language_learning_rate": 0.01, "batch_size": 2, "micro_batch": 1, "packing": True, "lora_rank": 4,
            "dtype": "bfloat16",
        },
    },
    "02_swap": {"n_problems": 2},
    "03_transition": {"zone_widths": [1], "zone_weights": [0.25], "n_sweep": 2, "pairs": "1x2"},
    "04_top_bottom": {"map_widths": [0], "probed_layers": [0, 31], "n_map": 2, "pairs": "2x1"},
    "05_mgsm": {"pairs": "2x2", "n_validation": 2},
}  # fmt: skip


def write_base(folder):
    """A random model of Llama 3.1 8B's shape, a 64th as wide, with the lab's tokenizer."""
    tokens = json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"]
    eos = tokens["<eos>"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=224, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, initializer_range=0.1,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        bos_token_id=None, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    for file in BASE.glob("token*"):
        shutil.copyfile(file, folder / file.name)


def test_all_notebooks_on_a_model_built_like_llama_31_8b(tmp_path):
    for name in ("layerswap", "notebooks", "params"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", tmp_path / "requirements.lock")
    write_base(tmp_path / "tall")
    rows = [
        {"prompt": row["prompt"], "completion": row["completion"]} for row in LabTask().training_rows("math", 40, 7)
    ]
    (tmp_path / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "params" / "tall.yml").write_text(yaml.safe_dump(PROFILE))
    command = [sys.executable, "-m", "layerswap.run", "run", "--profile", "tall"]
    for expected in (("s", "s", "s", "s", "s"), ("unchanged",) * 5):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert tuple(line.split()[-1] for line in done.stdout.splitlines()) == expected
    figures, build = tmp_path / "figures" / "tall", tmp_path / "build"
    sections = [metadata(PROJECT, name) for name in PROJECT.notebook_names()]
    declared = [figure for section in sections if not section.get("on_request") for figure in section["figures"]]
    assert sorted(file.stem for file in figures.glob("*.png")) == sorted(declared)
    merged = [file.parent.name for file in (build / "models").glob("*/model.safetensors.index.json")]
    assert {name.rpartition("-")[0] for name in merged} == {
        f"{prefix}{name}-{seed}"
        for prefix, names in (("", ("math", "sw")), ("frozen-", ("math", "sw")), ("joint-", ("sw",)))
        for name in names
        for seed in (1, 2)
    }
    assert set(pd.read_csv(figures / "mgsm.csv").pairs) == {4}
    assert pd.read_csv(figures / "mgsm.csv").n.eq(4 * 2).all()
    change = pd.read_csv(figures / "parameter_change.csv")
    assert set(change.seed) == {1, 2} and change.layer.max() == 31
    assert (change[change.matrix == "norm"].relative == 0).all() and (change[change.matrix == "q"].relative > 0).all()
    maps = pd.read_csv(figures / "layer_map.csv").set_index("plan")
    assert list(maps.loc["layer swap"]) == [1.0] * 5 + [0.5] + [0.0] * 23 + [0.5] + [1.0] * 2 + [0.5]
