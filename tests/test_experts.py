"""The index of a profile's experts, conditions scored with the right pair, and what a figure says of its weights."""

import json
from dataclasses import replace
from itertools import islice

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer, write_checkpoint
from transformers import AutoModelForCausalLM

from layerswap import checkpoint, experts, lab, mgsm, plots, stats
from layerswap.generate import generate
from layerswap.paths import UserError
from layerswap.plan import Plan, uniform
from layerswap.resident import Resident
from layerswap.vectors import TaskVectors


@pytest.fixture
def index(tmp_path, monkeypatch):
    """base, math, sw and te under a project of their own; the index is saved as profile "p"."""
    for module in (experts, plots):
        for name in {"ROOT", "BUILD", "FIGURES"} & vars(module).keys():
            monkeypatch.setattr(module, name, tmp_path / name.lower() if name != "ROOT" else tmp_path)
    folders = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(["base", "math", "sw", "te"])}
    index = {"source": "lab", "seeds": [1], "base": folders.pop("base"), "joint": {}, "frozen": {}}
    index["experts"] = {name: [folder] for name, folder in folders.items()}
    experts.save("p", index)
    return index


SETTINGS = dict(split="test", n_problems=3, style="lab", exemplars=0, max_new_tokens=4)


def figure():
    """A figure with one point, and its table."""
    fig, axis = plots.plt.subplots()
    axis.plot([0.5], [0.25], "o")
    return fig, pd.DataFrame({"x": [0.5], "y": [1 / 3]})


def test_index_round_trip(index, tmp_path):
    loaded = experts.load("p")
    assert loaded["note"] == "" and {k: loaded[k] for k in index} == index
    stored = json.loads((tmp_path / "build" / "p" / "experts.json").read_text())
    assert stored["folders"]["experts"]["sw"] == ["sw"], "folders are relative to the project"
    digests = {name: [checkpoint.digest(tmp_path / name)] for name in ("base", "math", "sw", "te")}
    assert stored["digests"]["base"] | stored["digests"]["experts"] == digests
    assert experts.n_layers(loaded) == 4


def test_without_an_index_the_notebook_to_run_is_named(index):
    with pytest.raises(UserError, match="build/q/experts.json is missing: run notebook 01_experts"):
        experts.load("q")


def test_each_language_is_scored_with_its_own_pair(index):
    plans = [uniform(4, 0.0, "base"), uniform(4, 0.0, "math expert"), uniform(4, 1.0, "language expert")]
    frame = experts.score("p", plans, languages=["en", "sw", "te"], **SETTINGS)
    assert frame.groupby(["language", "condition"]).size().eq(3).all() and len(frame) == 27
    folders = {"base": {}, "math expert": {}, "language expert": {}}
    for code in ("en", "sw", "te"):
        folders["base"][code], folders["math expert"][code] = index["base"], index["experts"]["math"][0]
        folders["language expert"][code] = index["experts"].get(code, index["experts"]["math"])[0]
    for (condition, code), part in frame.groupby(["condition", "language"]):
        model = AutoModelForCausalLM.from_pretrained(folders[condition][code])
        prompts = [mgsm.prompt(problem, [], "lab") for problem in lab.problems(code, "test", 3)]
        expected = [answer.text for answer in generate(model, word_tokenizer(), prompts, 4)]
        assert list(part.text) == expected, (condition, code)


@pytest.fixture
def many(index, tmp_path):
    """The index with two seeds, joint and frozen models; te is left out."""
    index["seeds"], index["experts"] = [5, 7], {name: index["experts"][name] for name in ("math", "sw")}
    made = iter(range(10, 20))

    def more(n):
        return [write_checkpoint(tmp_path / f"more-{seed}", seed) for seed in islice(made, n)]

    index["experts"] = {name: [*some, *more(1)] for name, some in index["experts"].items()}
    index |= {"joint": {"sw": more(2)}, "frozen": {"math": more(2), "sw": more(2)}}
    experts.save("p", index)
    return index


def test_pairs_and_sides(many):
    """Every condition of every pair answers as the models do that its name stands for, merged on disk or alone."""
    swap = Plan("layer swap", (1.0, 0.0, 0.0, 1.0), 0.0)
    plans = [swap, uniform(4, 0.0, "joint SFT"), replace(swap, name="freeze in training"), uniform(4, 0.0, "base"),
             replace(swap, name="revert after training"), TaskVectors("TIES", "ties", density=0.5)]  # fmt: skip
    frame = experts.score("p", plans, languages=["sw"], pairs="2x2", **SETTINGS)
    stats.check_complete(frame, [each.name for each in plans], ["sw"], 4, 3)
    assert list(dict.fromkeys(frame.condition)) == [each.name for each in plans], "in the plans' order"
    prompts = [mgsm.prompt(problem, [], "lab") for problem in lab.problems("sw", "test", 3)]
    for (condition, m, s), part in frame.groupby(["condition", "math_seed", "language_seed"]):
        i, j = many["seeds"].index(m), many["seeds"].index(s)
        math, language, base = many["experts"]["math"][i], many["experts"]["sw"][j], many["base"]
        alone = {"joint SFT": many["joint"]["sw"][j], "base": base}.get(condition)
        sides = {"freeze in training": (many["frozen"]["math"][i], many["frozen"]["sw"][j]),
                 "revert after training": (math, base)}.get(condition, (math, language))  # fmt: skip
        if alone is None:
            two = Resident(*sides, base if condition == "TIES" else None)
            model = two.apply(next(each for each in plans if each.name == condition))
        else:
            model = AutoModelForCausalLM.from_pretrained(alone)
        assert list(part.text) == [a.text for a in generate(model, word_tokenizer(), prompts, 4)], (condition, m, s)


@pytest.mark.parametrize(
    ("role", "language", "message"),
    [("language", "te", "language 'te' has no expert, expected one of sw"), ("joint", "te", "'te' has no expert")],
)
def test_a_side_that_is_not_there(many, role, language, message):
    with pytest.raises(UserError, match=message):
        experts.side(many, role, language)
    many["joint"] = {}
    with pytest.raises(UserError, match="joint models were not trained: add 'joint' to `baselines` of 01_experts"):
        experts.side(many, "joint", "sw")


def test_validation_and_test_problems_are_disjoint(index, tmp_path, monkeypatch):
    experts.check_disjoint(index, ["sw", "te"], 100, "test", 320)
    folder = tmp_path / "data" / "mgsm"
    folder.mkdir(parents=True)
    (folder / "mgsm_sw.tsv").write_text("".join(f"question {i}\t{i}\n" for i in range(250)))
    monkeypatch.setenv("LAYERSWAP_DATA", str(folder.parent))
    local = index | {"source": "local"}
    experts.check_disjoint(local, ["sw"], 50, "test", 200)
    assert [each.number for each in mgsm.load("local", "sw", "validation", 2)] == [200, 201]
    with pytest.raises(UserError, match="1 of 50 validation problems in sw are also tested, such as mgsm-200"):
        experts.check_disjoint(local, ["sw"], 50, "test", 201)
    with pytest.raises(UserError, match="5 of 5 validation problems in sw are also tested"):
        experts.check_disjoint(local, ["sw"], 5, "validation", 10)
    with pytest.raises(UserError, match="n_validation is 51, but sw has 50 validation problems"):
        experts.check_disjoint(local, ["sw"], 51, "test", 10)


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
        ("en", "math expert", index["experts"]["math"][0]),
        ("sw", "base", index["base"]),
        ("sw", "language expert", index["experts"]["sw"][0]),
    ):
        assert frame[code, condition] == pytest.approx(by_hand(folder, **row), rel=1e-5)
    assert len(frame) == 4


def test_solution_losses_are_of_each_solution_after_the_others(index):
    plans = [uniform(4, 0.0, "base"), uniform(4, 1.0, "language expert")]
    frame = experts.solution_losses("p", plans, languages=["sw"], style="lab", exemplars=1)
    solved = mgsm.exemplars("lab", "sw", 8, "lab")
    assert list(frame.condition) == ["base"] * 8 + ["language expert"] * 8
    for condition, folder in (("base", index["base"]), ("language expert", index["experts"]["sw"][0])):
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


def test_forest_puts_every_estimate_where_the_table_says():
    table = pd.DataFrame({"condition": ["a", "b"] * 2, "language": ["sw", "sw", "te", "te"],
                          "difference": [0.1, 0.2, 0.3, 0.4], "low": 0.0, "high": 0.5})  # fmt: skip
    axes = plots.forest(table, "difference", "x", zero=True).axes
    assert [axis.get_title() for axis in axes] == ["Swahili", "Telugu"]
    found = [[(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if len(line.get_xdata()) == 1]
             for axis in axes]  # fmt: skip
    assert found == [[(0.1, 0), (0.2, 1)], [(0.3, 0), (0.4, 1)]]
