"""Figures: points lie where the table says, files are equal between runs, and the stamp names profile and weights."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import write_checkpoint
from matplotlib.colors import to_hex

from layerswap.analysis import plots
from layerswap.analysis.error_analysis import ERROR_CLASSES
from layerswap.experts import index as index_module
from layerswap.merging.plans import layer_swap, soup

LANGUAGES = ["sw", "te", "pooled"]


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    plots.plt.close("all")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index of profile "p", of a base and nothing else, in a project of its own."""
    for name, folder in {"ROOT": tmp_path, "BUILD": tmp_path / "build"}.items():
        monkeypatch.setattr(index_module, name, folder)
    monkeypatch.setattr(plots, "FIGURES", tmp_path / "figures")
    index = index_module.ExpertIndex(source="lab", seeds=[1], base=write_checkpoint(tmp_path / "base"), experts={})
    index_module.save_index("p", index)
    return index


def dot():
    """A figure with one point, and its table."""
    figure, axis = plots.plt.subplots()
    axis.plot([0.5], [0.25], "o")
    return figure, pd.DataFrame({"x": [0.5], "y": [1 / 3]})


def differences(conditions, languages=LANGUAGES, **columns):
    """A table as ``statistics.compare`` gives it: differences 0.0, 0.1, 0.2, ... in intervals of 0.1."""
    rows = [(condition, language) for condition in conditions for language in languages]
    table = pd.DataFrame(rows, columns=["condition", "language"]).assign(reference="neither", n=20)
    table["difference"] = np.arange(len(table)) / 10
    return table.assign(low=table.difference - 0.05, high=table.difference + 0.05, **columns)


def points(axis):
    """[(x, y)] of an axis's single points, and of the points of its lines with a marker."""
    return [
        (round(x, 6), round(y, 6))
        for line in axis.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def test_files_of_a_figure_are_equal_between_runs(index, tmp_path):
    contents = []
    for _ in range(2):
        plots.set_style()
        plots.save_figure(*dot(), "dot", "p")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "figures" / "p").iterdir()})
    assert contents[0] == contents[1] and set(contents[0]) == {"dot.png", "dot.svg", "dot.csv"}
    assert contents[0]["dot.csv"] == b"x,y\n0.5,0.333333\n"


@pytest.mark.parametrize("note", ["", "dequantised from 4 bit"])
def test_stamp_names_profile_and_weights(index, note):
    (index.base / "provenance.json").write_text(json.dumps({"note": note}))
    index_module.save_index("p", index)
    figure, table = dot()
    plots.save_figure(figure, table, "dot", "p")
    assert figure.texts[0].get_text() == "layerswap, profile p" + (f", weights {note}" if note else "")


@pytest.mark.parametrize("text", ["ప్రశ్న", "প্রশ্ন", "問題", "Swali"])
def test_every_script_has_a_font(text, recwarn):
    plots.set_style()
    figure, axis = plots.plt.subplots()
    axis.set_title(text)
    figure.canvas.draw()
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


def test_forest_puts_every_estimate_where_the_table_says():
    table = pd.DataFrame({"condition": ["a", "b"] * 2, "language": ["sw", "sw", "te", "te"],
                          "difference": [0.1, 0.2, 0.3, 0.4], "low": 0.0, "high": 0.5})  # fmt: skip
    axes = plots.forest_plot(table, "difference", "x", zero=True).axes
    assert [axis.get_title() for axis in axes] == ["Swahili", "Telugu"]
    drawn_points = [[(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if len(line.get_xdata()) == 1]
                    for axis in axes]  # fmt: skip
    assert drawn_points == [[(0.1, 0), (0.2, 1)], [(0.3, 0), (0.4, 1)]]


def test_colours_go_by_group():
    table = differences(["TIES", "layer swap", "widths chosen"], ["sw"])
    figure = plots.difference_plot(table, "exact match minus the soup's", 20, 9, {"TIES": "other merge"})
    colours = [to_hex(line.get_color()) for line in figure.axes[0].lines if line.get_marker() == "o"]
    expected = [plots.METHOD_COLOURS[group] for group in ("other merge", "layer swap", "other swap")]
    assert colours == [colour.lower() for colour in expected]


def test_captions_say_of_how_many_problems_and_pairs():
    table = differences(["a"]).assign(accuracy=0.5, maximum=0.5)
    ending = "\n(n = 20 problems a language, {} of experts, 95 % interval)"
    for figure, expected in (
        (plots.difference_plot(table, "loss minus a", 20, 1), "loss minus a" + ending.format("1 pair")),
        (plots.accuracy_plot(table, 20, 9), "mean exact match" + ending.format("9 pairs")),
        (plots.accuracy_plot(table, 20, 9, value="maximum"),
         "exact match of the best pair" + ending.format("9 pairs")),
        (plots.paired_panels({"exact match": table}, {"a": "k"}, "minus a", 20, 9)[0],
         "minus a" + ending.format("9 pairs")),
    ):  # fmt: skip
        assert figure.get_supxlabel() == expected


def test_panels_of_several_measures():
    tables = {"exact match": differences(["a", "b"]), "answer loss": differences(["a", "b"])}
    figure, table = plots.paired_panels(tables, {"a": "k", "b": "r"}, "minus neither", 20, 1)
    assert list(table.measure) == ["exact match"] * 6 + ["answer loss"] * 6
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Swahili", "Telugu", "pooled"]
    for axis in figure.axes:
        assert points(axis) == [(0.0, -0.18), (0.1, 0.82), (0.2, 1.82), (0.3, 0.18), (0.4, 1.18), (0.5, 2.18)]


def test_panels_of_conditions_keep_what_one_measure_alone_has():
    def table(*conditions):
        return pd.DataFrame({"condition": conditions, "language": "sw", "n": 9, "mean": 0.5, "low": 0.4, "high": 0.6})

    tables = {"exact match": table("a"), "ranked first": table("a", "blind")}
    figure, every = plots.measure_panels(tables, "mean", {"ranked first": 0.25}, "proportion")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "blind"]
    assert len(every) == 3 and list(every.measure.unique()) == list(tables)
    dotted = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] for axis in (left, right)]
    assert dotted == [[], [0.25]]


def test_a_sweep_of_one_line_and_of_several():
    table = differences(["weight 0.5", "weight 0.25"], ["sw"], weight=[0.5, 0.25])
    (axis,) = plots.sweep_panels(table, "weight", "weight", [0, 0.5, 1], "removed", 20).axes
    assert points(axis) == [(0.25, 0.1), (0.5, 0.0), (0, 0)]
    assert axis.get_ylabel() == "exact match, minus\nremoved (n = 20)"
    table = differences(["b1", "b2", "t1", "t2"], ["sw"], end=["bottom", "bottom", "top", "top"], width=[1, 2, 1, 2])
    colours = {"bottom": "k", "top": "r", "both": "g"}
    (axis,) = plots.sweep_panels(table, "width", "width", [0, 1, 2], "removed", 20, "end", colours).axes
    assert points(axis) == [(0.94, 0.0), (1.94, 0.1), (1.06, 0.2), (2.06, 0.3), (0, 0)]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["bottom", "top"]


def test_doses():
    tables = [differences(["a", "b"], ["sw", "te"], line=["a", "a", "b", "b"], amount=amount, dose=dose,
                          n=20 + (dose == "words") * int(amount))
              for dose in ("words", "both") for amount in ("0", "1")]  # fmt: skip
    figure = plots.dose_panels(pd.concat(tables), {"a": "k", "b": "r"}, 9)
    assert [axis.get_xlabel() for axis in figure.axes] == ["words", "words", "both\n(n = 20)", "both\n(n = 20)"]
    assert points(figure.axes[0]) == [(-0.06, 0.0), (0.94, 0.0), (0.06, 0.2), (1.06, 0.2)]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0\n(n = 20)", "1\n(n = 21)"]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0", "1"]
    assert figure.get_supylabel() == "exact match, difference (9 pairs of experts, 95 % interval)"


def test_layers_one_by_one():
    table = pd.concat([differences(["0", "7", "non-layer"], ["sw", "te"], measure=measure)
                       for measure in ("exact match", "answer loss")])  # fmt: skip
    axes = plots.layer_panels(table).axes
    assert [points(axis) for axis in axes] == [[(0, 0.0), (1, 0.2), (2, 0.4)], [(0, 0.1), (1, 0.3), (2, 0.5)]] * 2
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["0", "7", "N"]


def test_the_map_of_widths():
    rows = [(language, b, u, 30, b / 10, u / 10) for language in ("sw", "te") for b in (0, 1) for u in (0, 1, 2)]
    table = pd.DataFrame(rows, columns=["language", "bottom", "top", "n", "accuracy", "loss"])
    axes = plots.map_panels(table).axes
    cells = [[text.get_text() for text in axis.texts] for axis in axes]
    assert cells == [["0.00"] * 3 + ["0.10"] * 3] * 2 + [["0.00", "0.10", "0.20"] * 2] * 2


@pytest.mark.parametrize("objectives", [[], [0.5, 0.4, 0.6]])
def test_what_was_selected(objectives):
    trials = pd.DataFrame({"objective": objectives, "best": np.maximum.accumulate(np.array(objectives, float))})
    figure = plots.search_plot([layer_swap(8, 1, 1, name="swap"), soup(8)], trials, "exact match", 20)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", *"000000", "1", "0.5", *["0.5"] * 9]
    assert len(figure.axes) == (2 if objectives else 1)
    if objectives:
        best, trial, start = (list(line.get_ydata()) for line in figure.axes[1].lines)
        assert (best, trial, start) == ([0.5, 0.5, 0.6], objectives, [0.5, 0.5])


def test_where_the_experts_changed():
    rows = [(layer, matrix, 0.1 * layer + 0.2, expert, seed) for expert in ("math", "sw") for seed in (1, 2)
            for layer in (-1, 0, 1) for matrix in ("q", "norm")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["layer", "matrix", "relative", "expert", "seed"])
    axes = plots.weight_change_heatmaps(table).axes
    assert [axis.get_title() for axis in axes[:2]] == ["math expert", "Swahili expert"]
    assert [axis.collections[0].get_array().shape for axis in axes[:2]] == [(2, 2), (2, 2)]
    thirds = pd.DataFrame([(third, value, 1 / 3, expert, seed) for expert, seed, value in
                           (("math", 1, 0.25), ("math", 2, 0.75), ("sw", 1, 0.5), ("sw", 2, 0.5))
                           for third in ("bottom", "middle", "top")],
                          columns=["third", "share", "of_weights", "expert", "seed"])  # fmt: skip
    (axis,) = plots.thirds_plot(thirds).axes
    assert [list(line.get_ydata()) for line in axis.lines[::2]] == [[0.5] * 3, [0.5] * 3, [1 / 3] * 3]
    assert axis.get_legend().get_title().get_text() == "seeds: 2"


def test_errors_and_correlations():
    table = pd.DataFrame([[3, 1, 0], [1, 1, 2]], ["a", "b"], [ERROR_CLASSES[i] for i in (0, 4, 7)])
    (axis,) = plots.error_bars(table).axes
    assert [bar.get_width() for bar in axis.patches] == [0.25, 0.75, 0.25, 0.25, 0.5, 0.0]
    assert axis.get_xlabel() == "share of answers (n = 4 a method)"
    (axis,) = plots.correlation_heatmap(pd.DataFrame([[1, 0.5], [0.5, 1]], ["a", "b"], ["a", "b"]), 4).axes
    assert [text.get_text() for text in axis.texts] == ["1.00", "0.50", "0.50", "1.00"]
    steps = pd.DataFrame({"condition": "a", "steps": ["steps: 1", "steps: 2"], "n_answers": [4, 8], "mean": 0.5,
                          "low": 0.4, "high": 0.6})  # fmt: skip
    assert [axis.get_title() for axis in plots.steps_plot(steps).axes] == ["steps: 1\nn = 4", "steps: 2\nn = 8"]
