"""Figures: points lie where the table says, files are equal between runs, and the stamp names profile and weights."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import write_checkpoint
from matplotlib.colors import to_hex

from layerswap.analysis import plots
from layerswap.analysis.statistics import compare
from layerswap.experts import index as index_module
from layerswap.merging.plans import Plan, layer_swap, soup

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


def drawn_points(axis):
    """[(x, y, whether it is filled)] of an axis's points with an interval."""
    lines = [line for line in axis.lines if line.get_marker() == "o"]
    return [(*xy, line.get_mfc() != "white") for line in lines for xy in zip(*line.get_data(), strict=True)]


def test_forest_puts_every_estimate_where_the_table_says():
    table = differences(["a", "b"], ["sw", "te"], p_holm=[0.04, 0.05, 0.5, 0.01])
    axes = plots.forest_plot(table, "difference", "x", "percentage points", labels={"b": "b = c"}).axes
    assert [axis.get_title() for axis in axes] == ["Swahili", "Telugu"]
    assert list(map(drawn_points, axes)) == [[(0.0, 0, True), (0.2, 1, False)], [(0.1, 0, False), (0.3, 1, True)]]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b = c"]
    assert not axes[1].texts, "numbers of one of several languages would pass for those of all"


def test_the_last_panels_numbers_stand_beside_it_where_it_is_pooled():
    table = differences(["a", "b"], ["sw", "pooled"])
    (_, pooled) = plots.forest_plot(table, "difference", "x", "percentage points").axes
    assert [text.get_text() for text in pooled.texts] == ["+10.0 (+5.0, +15.0)", "+30.0 (+25.0, +35.0)"]
    (only,) = plots.forest_plot(table[:1], "difference", "x", "nats a token").axes
    assert [text.get_text() for text in only.texts] == ["+0.000 (-0.050, +0.050)"]


def test_families_stand_apart_and_colours_go_by_group():
    table = differences(["base", "TIES", "layer swap", "widths chosen"], ["sw"], p_holm=0.01)
    groups = {"TIES": "other merge"}
    (axis,) = plots.difference_plot(table, "exact match minus the soup's", 20, 9, groups).axes
    assert [y for _, y, _ in drawn_points(axis)] == pytest.approx([0, 1.45, 2.9, 3.9])
    colours = [to_hex(line.get_color()) for line in axis.lines if line.get_marker() == "o"]
    expected = [plots.METHOD_COLOURS[group] for group in ("base", "other merge", "layer swap", "other swap")]
    assert colours == [colour.lower() for colour in expected]


def ticks(axis):
    axis.figure.canvas.draw()
    return [label.get_text() for label in axis.get_xticklabels()]


@pytest.mark.parametrize(
    ("table", "column", "expected", "text"),
    [
        (differences(["a", "b"], ["sw"]), "correct", ["0", "10"], "x, percentage points (better →; filled: clear)"),
        (differences(["a", "b"], ["sw"]), "loss", ["0.00", "0.10"], "x, nats a token (← better; filled: clear)"),
    ],
)
def test_percent_and_nats(table, column, expected, text):
    figure = plots.difference_plot(table.assign(p_holm=1.0), "x", 20, 1, column=column)
    assert set(expected) <= set(ticks(figure.axes[0]))
    assert figure.get_supxlabel().startswith(text)


def test_captions_say_of_how_many_problems_and_pairs():
    table = differences(["a"], p_holm=1.0).assign(accuracy=0.5, maximum=0.6)
    ending = "\n(n = 20 problems a language, {} of experts, 95 % interval)"
    for figure, expected in (
        (plots.accuracy_plot(table, 20, 1), "exact match, %" + ending.format("one pair")),
        (plots.accuracy_plot(table, 20, 9), "exact match, %; diamond: of the best pair" + ending.format("9 pairs")),
        (plots.layer_panels(table.assign(condition="0", measure="exact match"), 20, 9),
         "layer replaced (N: the non-layer parameters), minus the math expert; filled: clear"
         + ending.format("9 pairs")),
    ):  # fmt: skip
        assert figure.get_supxlabel() == expected


def test_the_best_pair_is_marked_where_there_are_several():
    table = differences(["a"], ["sw"]).assign(accuracy=0.5, maximum=0.6)
    for n_pairs, marks in ((1, []), (9, [0.6])):
        lines = plots.accuracy_plot(table, 20, n_pairs).axes[0].lines
        assert [line.get_xdata()[0] for line in lines if line.get_marker() == "D"] == marks


def test_panels_of_several_measures():
    tables = {"exact match": differences(["a", "b"], p_holm=0.01),
              "answer loss, nats a token": differences(["a", "b"], p_holm=0.2)}  # fmt: skip
    figure, table = plots.measure_panels(tables, "difference", "minus neither")
    assert list(table.measure) == ["exact match"] * 6 + ["answer loss, nats a token"] * 6
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["percentage points\nbetter →", "nats a token\n← better"]
    for axis, is_clear in zip(figure.axes, (True, False), strict=True):
        assert [x for x, _, _ in drawn_points(axis)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
        assert [y for _, y, _ in drawn_points(axis)] == pytest.approx([-4 / 15, 0, 4 / 15, 11 / 15, 1, 19 / 15])
        assert {is_filled for *_, is_filled in drawn_points(axis)} == {is_clear}
    assert figure.get_suptitle() == "Exact match: clearly above zero: a; b"


def test_panels_of_conditions_keep_what_one_measure_alone_has():
    def table(*conditions):
        return pd.DataFrame(
            {"condition": conditions, "language": "sw", "n": 9, "accuracy": 0.5, "low": 0.4, "high": 0.6}
        )

    tables = {"exact match": table("a"), "ranked first": table("a", "blind")}
    figure, every = plots.measure_panels(tables, "accuracy", "proportion", {"ranked first": 0.25})
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "blind"]
    assert len(every) == 3 and list(every.measure.unique()) == list(tables)
    dotted = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] for axis in (left, right)]
    assert dotted == [[], [0.25]]


def test_nothing_to_compare_is_no_failure():
    figure = plots.difference_plot(compare(pd.DataFrame(), {}), "x", 20, 1, reference="the soup")
    assert figure.get_suptitle() == "Nothing to compare"


def test_doses():
    tables = [differences(["a", "b"], ["sw", "te"], line=["a", "a", "b", "b"], amount=amount, dose=dose, p_holm=1.0,
                          n=18 + 9 * (dose == "words") * int(amount))
              for dose in ("words", "both") for amount in ("0", "1")]  # fmt: skip
    figure = plots.dose_panels(pd.concat(tables), {"a": "k", "b": "r"}, 9)
    assert [axis.get_xlabel() for axis in figure.axes] == ["words", "words", "both\n(n = 2)", "both\n(n = 2)"]
    assert points(figure.axes[0]) == [(-0.06, 0.0), (0.94, 0.0), (0.06, 0.2), (1.06, 0.2)]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0\n(n = 2)", "1\n(n = 3)"]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0", "1"]
    text = (
        "exact match, difference in percentage points\n(filled: clear; n problems, 9 pairs of experts, 95 % interval)"
    )
    assert figure.get_supylabel() == text


def test_layers_one_by_one():
    table = pd.concat([differences(["0", "7", "non-layer"], ["sw", "te"], measure=measure, p_holm=1.0)
                       for measure in ("exact match", "answer loss, nats a token")])  # fmt: skip
    axes = plots.layer_panels(table, 20, 1).axes
    assert [points(axis) for axis in axes] == [[(0, 0.0), (1, 0.2), (2, 0.4)], [(0, 0.1), (1, 0.3), (2, 0.5)]] * 2
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["0", "7", "N"]
    assert axes[0].get_ylabel() == "exact match\npercentage points\n(better ↑)"


def test_the_map_of_widths():
    rows = [
        (language, b, u, 30, b / 10, u / 10, u == 2) for language in ("sw", "te") for b in (0, 1) for u in (0, 1, 2)
    ]
    table = pd.DataFrame(rows, columns=["language", "bottom", "top", "n", "accuracy", "loss", "is_clear"])
    figure = plots.map_panels(table, "2 bottom, 1 top", 3)
    cells = [[text.get_text() for text in axis.texts] for axis in figure.axes[:4]]
    assert cells == [["0.0", "0.0", "0.0*", "10.0", "10.0", "10.0*"]] * 2 + [["0.00", "0.10", "0.20"] * 2] * 2
    assert "n = 10 problems a language" in figure.get_supxlabel() and "2 bottom, 1 top" in figure.get_supxlabel()
    bars = [axis.get_ylabel() for axis in figure.axes[4:]]
    assert bars == ["exact match, %", "answer loss, nats a token"] and figure.axes[5].yaxis_inverted()


@pytest.mark.parametrize("objectives", [[], [0.5, 0.4, 0.6]])
def test_what_was_selected(objectives):
    trials = pd.DataFrame({"objective": objectives, "best": np.maximum.accumulate(np.array(objectives, float))})
    figure = plots.search_plot([layer_swap(8, 1, 1, name="swap"), soup(8)], trials, "exact match", 20)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", *"000000", "1", "0.5", *["0.5"] * 9]
    assert figure.get_suptitle().startswith("Chosen on validation problems: from the bottom 8 averaged layers")
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
    assert [axis.collections[0].get_array().shape for axis in axes[:4]] == [(2, 2)] * 4
    changes, ratios = (np.asarray(axes[i].collections[0].get_array()) for i in (0, 2))
    assert changes == pytest.approx(np.array([[20, 30]] * 2)) and ratios.mean() == pytest.approx(1)
    thirds = pd.DataFrame([(third, value, 1 / 3, expert, seed) for expert, seed, value in
                           (("math", 1, 0.25), ("math", 2, 0.75), ("sw", 1, 0.5), ("sw", 2, 0.5))
                           for third in ("bottom", "middle", "top")],
                          columns=["third", "share", "of_weights", "expert", "seed"])  # fmt: skip
    (axis,) = plots.thirds_plot(thirds.assign(ratio=3 * thirds.share)).axes
    assert [list(line.get_ydata()) for line in axis.lines[1::2]] == [[1.5] * 3, [1.5] * 3]
    assert axis.get_xlabel() == "third of the layers (2 seeds; bar: mean)"


def test_errors_and_correlations():
    answers = {"correct": [75, 25], "no answer": [1, 0], "arithmetic": [24, 25], "other": [0, 50]}
    (axis,) = plots.error_bars(pd.DataFrame(answers, ["a", "b"])).axes
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["correct", "arithmetic", "other"], "what is rare is counted as other"
    assert [round(bar.get_width(), 6) for bar in axis.patches] == [75, 25, 24, 25, 1, 50]
    assert axis.get_xlabel() == "% of answers (n = 100 a method)"
    table = pd.DataFrame([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]], list("abc"), list("abc"))
    axis, bar = plots.correlation_heatmap(table, 4).axes
    assert [text.get_text() for text in axis.texts] == ["0.50", "0.20", "0.30"], "each pair once"
    assert np.mean(bar.get_ylim()) == pytest.approx(1 / 3)
    rare = pd.DataFrame({"correct": [99.0], "arithmetic": [1.0]}, ["a"])
    assert plots.error_bars(rare).get_suptitle() == "A: 99 % correct, most frequent error: other (1 %)"
    blank = plots.correlation_heatmap(table * np.nan, 4)
    assert blank.get_suptitle() == "Too few right answers to correlate"
    steps = pd.DataFrame({"condition": "a", "steps": ["steps: 1", "steps: 2"], "n_answers": [4, 8], "mean": 0.5,
                          "low": 0.4, "high": 0.6})  # fmt: skip
    assert [axis.get_title() for axis in plots.steps_plot(steps).axes] == ["steps: 1\nn = 4", "steps: 2\nn = 8"]


def test_many_layers_are_bands_and_few_are_cells():
    plans = [layer_swap(32, 5, 2, 1, 1, name="swap"), soup(32)]
    figure = plots.layer_map(plans)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["5 L", "0.5", "23 M", "0.5", "2 L", "0.5", "32 × 0.5", "0.5"]
    expected = (
        "Swap: from the bottom 5 language, 1 averaged, 23 math, 1 averaged, 2 language layers; non-layer weight 0.5"
    )
    assert figure.get_suptitle().replace("\n", " ") == expected and figure.get_figwidth() <= 8
    assert len(plots.layer_map([soup(8)]).axes[0].texts) == 9
    unequal = plots.layer_map([Plan("searched", tuple((0, 0.5, 1)[i % 3] for i in range(40)), 1.0)])
    assert (
        unequal.get_suptitle().replace("\n", " ")
        == "Searched: 13 averaged, 13 language, 14 math layers; non-layer weight 1"
    )
    assert not any(text.get_visible() for text in unequal.axes[0].texts[:40]), "no room in bands of one layer of 40"


def test_where_tensors_came_from():
    table = pd.DataFrame({"tensor": ["embed.weight", "0.q.weight", "1.q.weight"], "layer": ["non-layer", "0", "1"],
                          "source": ["math+language", "language", "math"], "weight": [0.5, 1, 0]})  # fmt: skip
    figure = plots.provenance_map(table)
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_visible()]
    assert texts == ["0.5", "1", "0"], "blank where there is no such tensor"
    assert "1 averaged" in figure.get_suptitle().replace("\n", " ")


def test_what_was_held_out():
    table = pd.DataFrame({"condition": ["math expert", "language expert"], "language": ["solutions", "Swahili text"],
                          "difference": [-0.2, -0.1], "low": [-0.3, -0.3], "high": [-0.1, 0.1]})  # fmt: skip
    figure = plots.held_out_plot(table, 60, 1)
    assert figure.get_suptitle().replace("\n", " ") == "Not clearly better known than by the base: Swahili text"
    nothing = plots.held_out_plot(table[:0], 60, 1)
    assert nothing.get_suptitle() == "Nothing was measured, for want of text"
    assert "seed 1" in figure.get_supxlabel() and "n = 60 rows" in figure.get_supxlabel()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["solutions", "Swahili text"]
