"""The index of a profile's experts, conditions scored with the right pair, and what a figure says of its weights."""

import json

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer, write_checkpoint
from transformers import AutoModelForCausalLM

from layerswap import checkpoint, experts, lab, mgsm, plots
from layerswap.generate import generate
from layerswap.paths import UserError
from layerswap.plan import uniform


@pytest.fixture
def index(tmp_path, monkeypatch):
    """base, math, sw and te under a project of their own; the index is saved as profile "p"."""
    for module in (experts, plots):
        for name in {"ROOT", "BUILD", "FIGURES"} & vars(module).keys():
            monkeypatch.setattr(module, name, tmp_path / name.lower() if name != "ROOT" else tmp_path)
    folders = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(["base", "math", "sw", "te"])}
    index = {"source": "lab", "seeds": [1], "base": folders.pop("base"), "math": [folders.pop("math")]}
    index["languages"] = {code: [folder] for code, folder in folders.items()}
    experts.save("p", index)
    return index


def figure():
    """A figure with one point, and its table."""
    fig, axis = plots.plt.subplots()
    axis.plot([0.5], [0.25], "o")
    return fig, pd.DataFrame({"x": [0.5], "y": [1 / 3]})


def test_index_round_trip(index, tmp_path):
    loaded = experts.load("p")
    assert loaded["note"] == "" and {k: loaded[k] for k in index} == index
    stored = json.loads((tmp_path / "build" / "p" / "experts.json").read_text())
    assert stored["folders"]["sw"] == ["sw"], "folders are relative to the project"
    assert stored["digests"] == {name: [checkpoint.digest(tmp_path / name)] for name in ("base", "math", "sw", "te")}
    assert experts.n_layers(loaded) == 4


def test_without_an_index_the_notebook_to_run_is_named(index):
    with pytest.raises(UserError, match="build/q/experts.json is missing: run notebook 01_experts"):
        experts.load("q")


def test_each_language_is_scored_with_its_own_pair(index):
    plans = [uniform(4, 0.0, "math expert"), uniform(4, 1.0, "language expert")]
    settings = dict(split="test", n_problems=3, style="lab", exemplars=0, max_new_tokens=4)
    frame = experts.score("p", plans, languages=["en", "sw", "te"], base=True, **settings)
    assert frame.groupby(["language", "condition"]).size().eq(3).all() and len(frame) == 27
    folders = {"base": {}, "math expert": {}, "language expert": {}}
    for code in ("en", "sw", "te"):
        folders["base"][code], folders["math expert"][code] = index["base"], index["math"][0]
        folders["language expert"][code] = index["languages"].get(code, index["math"])[0]
    for (condition, code), part in frame.groupby(["condition", "language"]):
        model = AutoModelForCausalLM.from_pretrained(folders[condition][code])
        prompts = [mgsm.prompt(problem, [], "lab") for problem in lab.problems(code, "test", 3)]
        expected = [answer.text for answer in generate(model, word_tokenizer(), prompts, 4)]
        assert list(part.text) == expected, (condition, code)


def by_hand(folder, prompt, completion):
    """Nats a token of a completion, from one unbatched forward of transformers."""
    tokenizer, model = word_tokenizer(), AutoModelForCausalLM.from_pretrained(folder)
    head, tail = tokenizer(prompt).input_ids, tokenizer(completion).input_ids
    log_p = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)  # [length, vocabulary]
    return -sum(log_p[len(head) + i - 1, token].item() for i, token in enumerate(tail)) / len(tail)


def test_losses_are_of_base_and_expert(index):
    row = {"prompt": "one plus", "completion": " two is three"}
    frame = experts.losses(index, {"math": [row], "sw": [row]}).set_index(["language", "condition"]).loss
    for code, condition, folder in (
        ("en", "base", index["base"]),
        ("en", "math expert", index["math"][0]),
        ("sw", "base", index["base"]),
        ("sw", "language expert", index["languages"]["sw"][0]),
    ):
        assert frame[code, condition] == pytest.approx(by_hand(folder, **row), rel=1e-5)
    assert len(frame) == 4


def test_solution_losses_are_of_each_solution_after_the_others(index):
    plans = [uniform(4, 1.0, "language expert")]
    frame = experts.solution_losses("p", plans, languages=["sw"], style="lab", exemplars=1, base=True)
    solved = mgsm.exemplars("lab", "sw", 8, "lab")
    assert list(frame.condition) == ["base"] * 8 + ["language expert"] * 8
    for condition, folder in (("base", index["base"]), ("language expert", index["languages"]["sw"][0])):
        losses = frame[frame.condition == condition].set_index("id").loss
        for i, other in ((0, 1), (5, 0)):
            prompt = (
                f"{lab.prompt(solved[other].question)} {solved[other].answer} <eos> {lab.prompt(solved[i].question)}"
            )
            assert losses[i] == pytest.approx(by_hand(folder, prompt, f" {solved[i].answer}"), rel=1e-5)


def test_files_of_a_figure_are_equal_between_runs(index, tmp_path):
    runs = []
    for _ in range(2):
        plots.style()
        plots.save(*figure(), "dot", "p")
        runs.append({path.name: path.read_bytes() for path in (tmp_path / "figures" / "p").iterdir()})
    assert runs[0] == runs[1] and set(runs[0]) == {"dot.png", "dot.svg", "dot.csv"}
    assert runs[0]["dot.csv"] == b"x,y\n0.5,0.333333\n"


@pytest.mark.parametrize("note", ["", "dequantised from 4 bit"])
def test_stamp_names_profile_and_weights(index, note):
    (index["base"] / "provenance.json").write_text(json.dumps({"note": note}))
    experts.save("p", index)
    fig, table = figure()
    plots.save(fig, table, "dot", "p")
    assert fig.texts[0].get_text() == "layerswap, profile p" + (f", weights {note}" if note else "")


@pytest.mark.parametrize("text", ["ప్రశ్న", "প্রশ্ন", "問題", "Swali"])
def test_every_script_has_a_font(text, recwarn):
    plots.style()
    fig, axis = plots.plt.subplots()
    axis.set_title(text)
    fig.canvas.draw()
    assert not [w for w in recwarn if "missing from font" in str(w.message)]


def test_roles_keep_their_colour():
    colours = plots.spare(["base", "ties", "layer swap", "dare"])
    assert colours["base"] == plots.ROLE["base"] and len(set(colours.values())) == 4
