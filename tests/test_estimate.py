"""What a profile would cost: against counts by hand and what the notebooks say of themselves, without a connection."""

import re
import socket

import pytest

from layerswap import estimate, nb
from layerswap.paths import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def printed_plans(name):
    """How many layer maps a notebook's stored outputs show."""
    outputs = [out for cell in nb.read(nb.House(), name)["cells"] for out in cell.get("outputs", ())]
    return sum(len(re.findall(r"[LMx]{4,}$", "".join(out.get("text", "")), re.MULTILINE)) for out in outputs)


def test_answers_are_those_of_the_notebooks():
    settings = nb.settings(nb.House(), "ci")
    for p in settings.values():
        p.update(
            {"n_problems": 10} | ({"n_map": 1} if "n_map" in p else {}) | ({"n_sweep": 10} if "n_sweep" in p else {})
        )
    counts = {name: count for name, (count, _) in estimate.answers(settings, 8).items()}
    assert counts["01_experts"] == (2 + 3) * 10, "base and math expert in English; all three in Swahili"
    assert counts["02_swap"] == 3 * 10
    assert counts["03_transition"] == (printed_plans("03_transition") + 2) * 10, (
        "the two conditions are in the sweep too"
    )
    widths = settings["04_top_bottom"]["map_widths"]
    assert counts["04_top_bottom"] == printed_plans("04_top_bottom") * 10 + len(widths) ** 2 + 8 + 2
    grid = len(widths) ** 2 * len(settings["05_mgsm"]["chosen_outside"])
    assert counts["05_mgsm"] == 14 * 10 + (grid + 8) * settings["05_mgsm"]["n_validation"]


@pytest.mark.parametrize("pairs", ["2x1", "1x2", "0x1", "1", "axb", "1x1x1", ""])
def test_pairs_that_are_not_there(pairs):
    settings = nb.settings(nb.House(), "ci")
    settings["05_mgsm"]["pairs"] = pairs
    with pytest.raises(UserError, match="expected numbers of math and of language experts such as 1x1"):
        estimate.answers(settings, 8)


def test_validation_problems_that_are_tested():
    settings = nb.settings(nb.House(), "llama31-8b")
    settings["05_mgsm"]["n_problems"] = 250
    with pytest.raises(UserError, match="05_mgsm: n_problems is above 200, but MGSM's last 50 are its validation"):
        estimate.lines("x", settings)
    settings["05_mgsm"]["n_validation"] = 0
    assert estimate.lines("x", settings)


def test_baselines_cost_too():
    settings = nb.settings(nb.House(), "lab")
    text = "\n".join(estimate.lines("lab", settings))
    assert "1 joint sw expert(s), all weights: 160 steps" in text
    assert "1 frozen math expert(s), all weights: 60 steps" in text
    settings["01_experts"]["baselines"] = []
    assert "joint" not in "\n".join(estimate.lines("lab", settings))
    settings["01_experts"]["baselines"] = ["sft"]
    with pytest.raises(UserError, match="baselines has 'sft', expected of joint, frozen"):
        estimate.lines("lab", settings)


def test_a_model_that_is_not_here():
    """8 billion weights: 16 bytes each to train, 4 to keep, 2 to fetch; 15 experts; 6 operations a weight and token."""
    settings = nb.settings(nb.House(), "llama31-8b")
    settings["01_experts"]["baselines"] = []
    text = "\n".join(estimate.lines("llama31-8b", settings))
    assert "8,000.0 million weights (by its name)" in text
    assert "1 model(s) to fetch from the hub, about 16.0 GB" in text
    assert text.count("3 sw expert(s), all weights: 470 steps of 64 rows, at most 30.8 M tokens") == 1
    assert "memory 128.0 GB, over 8 processes" in text
    seconds = 15 * 6 * 8e9 * 470 * 64 * 1024 / 4e14 / 8
    assert f"at most {seconds / 60:.0f} minutes" in text
    assert "memory 52.8 GB (two experts" in text
    assert f"in all     disk {16 + 15 * 32 + 2 * 128 + 32:.1f} GB" in text


def test_experts_by_reference_are_not_trained():
    settings = nb.settings(nb.House(), "llama31-8b")
    settings["01_experts"] |= {"seeds": [1], "math_experts": ["me/math-8B@v1"], "language_experts": ["a/b@1"] * 4}
    settings["01_experts"]["baselines"] = []
    for p in settings.values():
        p.update({"pairs": "1x1"} if "pairs" in p else {})
    text = "\n".join(estimate.lines("x", settings))
    assert "train" not in text and "expert me/math-8B@v1" in text
    assert "6 model(s) to fetch" in text


def test_lora_costs_less():
    settings = nb.settings(nb.House(), "llama31-8b")
    settings["01_experts"] |= {"lora_rank": 64, "launch": ""}
    text = "\n".join(estimate.lines("x", settings))
    assert "LoRA of rank 64" in text and "memory 32.0 GB, and activations" in text


def test_a_model_that_is_here():
    text = "\n".join(estimate.lines("lab", nb.settings(nb.House(), "lab")))
    assert "1.7 million weights (by its files)" in text and "0 model(s) to fetch" in text


def test_a_name_without_a_size():
    settings = nb.settings(nb.House(), "ci")
    settings["01_experts"] |= {"base": "owner/nameless@main"}
    with pytest.raises(UserError, match="its name does not say how many weights"):
        estimate.lines("x", settings)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "7 seconds"), (119, "119 seconds"), (3600, "60 minutes"), (86400, "24 hours"), (1e6, "12 days")],
)  # fmt: skip
def test_duration(seconds, text):
    assert estimate.duration(seconds) == text


def test_the_command(capsys):
    assert nb.main(["plan", "--profile", "llama31-8b"]) == 0
    assert "nothing is fetched or run" in capsys.readouterr().out
    assert nb.main(["plan", "--profile", "none"]) == 2
    assert "expected one of" in capsys.readouterr().err
