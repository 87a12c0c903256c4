"""Every figure in one style: colours by method, 95 % intervals, native scripts, files that are equal between runs.

A function returns a figure, with its finding (``titles``) as title. ``save_figure`` writes it beside its numbers.
Measures of right and wrong are in percent, their differences in percentage points, losses in nats. A filled point is a
clear difference, a hollow one is not (p < 0.05 after Holm's correction).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from layerswap.analysis import titles
from layerswap.analysis.error_analysis import ERROR_CLASSES, FEWEST
from layerswap.analysis.statistics import MEASURES, NATS, is_higher_better
from layerswap.analysis.titles import CLEAR, language_name, number_of
from layerswap.experts.index import load_index
from layerswap.files import FIGURES, atomic_file, results_name
from layerswap.merging.plans import Plan

COLOURS = sns.color_palette("colorblind").as_hex()
METHOD_COLOURS = {
    "base": "#949494",
    "math expert": COLOURS[0],
    "language expert": COLOURS[1],
    "layer swap": COLOURS[2],
    "transition removed": COLOURS[3],
    "other swap": COLOURS[9],
    "other merge": COLOURS[4],
    "other training": COLOURS[5],
}
# They differ in lightness, so that print and the colour-blind tell them apart.
ERROR_COLOURS = dict(zip(ERROR_CLASSES, ("#595959", "#0b3c5d", "#7b5aa6", "#c3b1e1", "#b3450b", "#66a9cf", "#f4c27a",
                                         "#e0e0e0"), strict=True))  # fmt: skip
# Groups that stand together, with a gap before the next.
FAMILIES = {"base": "experts", "math expert": "experts", "language expert": "experts", "other training": "training",
            "other merge": "merges"}  # fmt: skip
POOLED = "0.2"
FONTS = (
    ("justmytype_intl_south_asia", "fonts/ofl/notosansbengali/NotoSansBengali[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosanstelugu/NotoSansTelugu[wdth,wght].ttf"),
    ("matplotlib_fontja", "fonts/ipaexg.ttf"),
)
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # a legend to the right of its axis
MOST_CELLS = 16  # layers that have a cell each; more are drawn as bands of equal weight
PRIMARY = "ranked first, calibrated"  # the measure that a title speaks of, where it was measured
MOST_CHARACTERS = 110  # of labels across a map of bands
RARE = 0.02  # share of answers that an error class needs in some method, to be drawn by itself


def set_style() -> None:
    """Set the style of all figures of a notebook: seaborn's paper context, fonts for every script of the project."""
    names = []
    for package, font in FONTS:
        path = str(files(package) / font)
        font_manager.fontManager.addfont(path)
        names.append(font_manager.FontProperties(fname=path).get_name())
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    plt.rcParams.update({
        "font.family": ["DejaVu Sans", *names], "figure.dpi": 110, "savefig.dpi": 160, "savefig.bbox": "tight",
        "svg.hashsalt": "layerswap", "svg.fonttype": "path", "axes.titlesize": 9,
        "figure.constrained_layout.use": True,
    })  # fmt: skip


def save_figure(figure: Figure, table: pd.DataFrame, name: str, profile: str) -> None:
    """Write ``figures/<profile>/<name>`` as png and svg, and the plotted numbers as csv, with the profile's stamp.

    In a notebook that is run by hand they go to ``figures/draft``. The stamp names the profile and what is to be known
    of its models' weights. The bytes depend on the content alone.

    Args:
        figure: what is written.
        table: the numbers that were plotted.
        name: of the files.
        profile: whose results they are; its index of experts says what is to be known of the weights.
    """
    note, results = load_index(profile).note, results_name(profile)
    stamp = f"layerswap, profile {results}" + (f", weights {note}" if note else "")
    figure.text(1.0, -0.012, stamp, ha="right", va="top", fontsize=6, color="0.55")
    folder = FIGURES / results
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with atomic_file(folder / f"{name}.{suffix}", "wb") as file:
            figure.savefig(file, format=suffix, metadata=metadata)
    with atomic_file(folder / f"{name}.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


def caption(text: str, n: int | str, n_pairs: int) -> str:
    """What a figure of intervals shows, and of how many problems a language and pairs of experts."""
    return f"{text}\n(n = {n} problems a language, {number_of(n_pairs, 'pair')} of experts, 95 % interval)"


def language_colours(n: int) -> list[str]:
    """So many colours that differ."""
    return list(sns.color_palette("colorblind" if n <= len(COLOURS) else "husl", n).as_hex())


def unit_of(column: str, value: str = "difference") -> str:
    """The unit that a measure, by its column of results, or its difference is drawn in."""
    if column in NATS:
        return "nats" if column == "log_probability" else "nats a token"
    return "percentage points" if value == "difference" else "%"


def distances(table: pd.DataFrame, value: str) -> np.ndarray:
    """How far the 95 % interval reaches to both sides of ``value``: [2, rows], as ``errorbar`` takes it."""
    return np.abs(table[["low", "high"]].to_numpy().T - table[value].to_numpy())


def add_title(figure: Figure, title: str) -> None:
    """Write a finding above a figure, in lines that are not wider than it."""
    title = title[:1].upper() + title[1:]
    lines = textwrap.fill(title, int(12 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(lines, x=0.01, ha="left", fontsize=10)


def scale_axis(axis: Axes, unit: str, along: str = "x", bins: int = 5) -> None:
    """Ticks of an axis of values: at round numbers, those of percentages as whole percent where that tells them apart.

    Args:
        axis: whose ticks.
        unit: of ``unit_of``.
        along: "x" or "y".
        bins: intervals between ticks, at most.
    """
    scale = getattr(axis, f"{along}axis")
    is_percent = unit in ("%", "percentage points")
    low, high = scale.get_view_interval()
    step = max(100 * (high - low) / bins, 1e-9)  # of percent
    steps = [1, 2, 5, 10] if is_percent and step < 10 else [1, 2, 2.5, 5, 10]  # 2.5 % would need a digit
    scale.set_major_locator(MaxNLocator(nbins=bins, steps=steps))
    if is_percent:
        scale.set_major_formatter(PercentFormatter(1, decimals=max(0, -math.floor(math.log10(step))), symbol=""))


def draw_interval(axis: Axes, row: pd.DataFrame, value: str, position: float, colour: str, along: str = "x") -> None:
    """A point of a table's row with its interval along "x" or "y", hollow if the row says that it is not clear."""
    is_clear = "p_holm" not in row or row.p_holm.item() < CLEAR
    style: dict[str, Any] = {"fmt": "o", "color": colour, "mfc": colour if is_clear else "white"}
    if along == "x":
        axis.errorbar(row[value], [position], xerr=distances(row, value), ms=3.5, lw=1.3, **style)
    else:
        axis.errorbar([position], row[value], yerr=distances(row, value), ms=4, lw=1.2, **style)


def better_side(column: str) -> str:
    """Which way a difference in a measure, by its column of results, is better."""
    return "better →" if is_higher_better(column) else "← better"


def empty_figure(text: str) -> Figure:
    """A figure that only says what would be shown."""
    figure, axis = plt.subplots(figsize=(4.6, 0.7))
    axis.set_axis_off()
    figure.supxlabel(text, fontsize=8)
    return figure


# --- accuracies and differences with their intervals ------------------------------------------------------------------


def forest_plot(
    table: pd.DataFrame, value: str, text: str, unit: str, column: str = "language",
    groups: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Points with their 95 % interval: a panel for each value of ``column``, a row for each condition.

    The last panel's numbers stand beside it where that is the pooled or the only one.

    Args:
        table: columns ``condition``, ``column``, ``value``, ``low`` and ``high``; p_holm, if a point can be unclear;
            ``maximum``, where a second mark shall be.
        value: column of the points. Zero is marked where they are differences.
        text: what is shown, below the panels.
        unit: of ``unit_of``.
        column: what the panels go by.
        groups: condition -> one of METHOD_COLOURS. A condition that is not in it is its own group if there is such a
            group, else "other swap". Where the conditions' families change there is a gap.
        labels: condition -> what its row is called, if not by its name.

    Returns:
        The figure.
    """
    if table.empty:
        return empty_figure(text)
    conditions, panels = list(dict.fromkeys(table.condition)), list(table.groupby(column, sort=False))
    family = [FAMILIES.get((groups or {}).get(name, name), "swaps") for name in conditions]
    gaps = np.cumsum([0, *(0.45 * (above != below) for above, below in pairwise(family))])
    positions = np.arange(len(conditions)) + gaps
    rows = [(labels or {}).get(name, name) for name in conditions]
    size = (0.07 * max(map(len, rows)) + max(1.45 * len(panels), 2.4) + 1, 0.17 * (positions[-1] + 1) + 1.3)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis, (name, panel) in zip(axes[0], panels, strict=True):
        panel = panel.set_index("condition").reindex(conditions)
        for i, condition in enumerate(conditions):
            colour = method_colour(condition, groups or {})
            draw_interval(axis, panel.iloc[[i]], value, positions[i], colour)
            if "maximum" in panel:
                axis.plot(panel.maximum.iloc[i], positions[i], "D", ms=3, mfc="white", color=colour)
        if value == "difference":
            axis.axvline(0, color="0.4", lw=0.8)
        axis.set_title(language_name(str(name)))
        scale_axis(axis, unit, bins=5 if unit.startswith("nats") else 6)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(positions, rows)
    axes[0, 0].set_ylim(positions[-1] + 0.6, -0.6)
    if len(panels) == 1 or str(panels[-1][0]).startswith(("pooled", "all")):
        write_numbers(axes[0, -1], panels[-1][1].set_index("condition").reindex(conditions), value, positions, unit)
    figure.supxlabel(text, fontsize=8)
    return figure


def write_numbers(axis: Axes, rows: pd.DataFrame, value: str, positions: np.ndarray, unit: str) -> None:
    """Write each row's value with its interval to the right of an axis."""
    number = "{:.3f}" if unit.startswith("nats") else "{:.1f}"
    if value == "difference":
        number = number.replace(":", ":+")
    factor = 1 if unit.startswith("nats") else 100
    for position, (_, row) in zip(positions, rows.iterrows(), strict=True):
        if row[value] == row[value]:
            texts = [number.format(factor * row[name]) for name in (value, "low", "high")]
            interval = f" ({texts[1]}, {texts[2]})" if row.low == row.low else ""
            axis.text(1.03, position, texts[0] + interval, transform=axis.get_yaxis_transform(), va="center",
                      fontsize=6.5, color="0.25")  # fmt: skip


def method_colour(condition: str, groups: Mapping[str, str]) -> str:
    """The colour of a condition's group (by default its own name), or of "other swap"."""
    return METHOD_COLOURS.get(groups.get(condition, condition), METHOD_COLOURS["other swap"])


def accuracy_plot(
    table: pd.DataFrame, n: int, n_pairs: int, groups: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """``forest_plot`` of exact match.

    Args:
        table: of ``statistics.accuracy`` or ``summarize``; with ``maximum``, that of the best pair.
        n: problems a language.
        n_pairs: pairs of experts.
        groups: as in ``forest_plot``.
        labels: as in ``forest_plot``.
    """
    text = "exact match, %" + ("; diamond: of the best pair" if n_pairs > 1 and "maximum" in table else "")
    rows = table if n_pairs > 1 else table.drop(columns="maximum", errors="ignore")
    figure = forest_plot(rows, "accuracy", caption(text, n, n_pairs), "%", groups=groups, labels=labels)
    add_title(figure, titles.level_title(table))
    return figure


def difference_plot(
    table: pd.DataFrame, text: str, n: int, n_pairs: int, groups: Mapping[str, str] | None = None,
    reference: str = "", column: str = "correct", labels: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """``forest_plot`` of differences.

    Args:
        table: of ``statistics.compare``.
        text: what differs, such as "exact match minus the soup's".
        n: problems a language.
        n_pairs: pairs of experts.
        groups: as in ``forest_plot``.
        reference: what all differences are taken from, such as "the soup"; empty: each row has its own.
        column: of the results, that was compared.
        labels: as in ``forest_plot``.
    """
    unit = unit_of(column)
    text = f"{text}, {unit} ({better_side(column)}; filled: clear)"
    figure = forest_plot(table, "difference", caption(text, n, n_pairs), unit, groups=groups, labels=labels)
    add_title(figure, titles.difference_title(table, reference, is_higher_better(column), labels))
    return figure


def held_out_plot(table: pd.DataFrame, n: int, seed: int) -> Figure:
    """``forest_plot`` of held-out losses, a row for each text.

    Args:
        table: of ``run.held_out_differences``.
        n: rows of a text.
        seed: of the experts.
    """
    rows = table.assign(condition=table.language, panel="minus the base's")
    groups = dict(zip(table.language, table.condition, strict=True))
    text = f"loss of the expert of seed {seed} on held-out text, nats a token (← better; filled: clear)"
    figure = forest_plot(rows, "difference", f"{text}\n(n = {n} rows, 95 % interval)", "nats a token", "panel", groups)
    add_title(figure, titles.held_out_title(table))
    return figure


def steps_plot(
    table: pd.DataFrame, groups: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
) -> Figure:
    """``forest_plot`` of exact match by steps of the solution: table of ``error_analysis.accuracy_by_steps``."""
    panels = table.steps + "\nn = " + table.n_answers.astype(str)
    text = "exact match by steps of the solution, %\n(over languages and pairs; n answers a method; 95 % interval)"
    figure = forest_plot(table.assign(steps=panels), "mean", text, "%", "steps", groups, labels)
    add_title(figure, titles.steps_title(table))
    return figure


def layer_panels(table: pd.DataFrame, n: int, n_pairs: int) -> Figure:
    """Differences by the one layer that was replaced: a panel for each measure (rows) and language (columns).

    Args:
        table: of ``statistics.compare``, with a column ``measure``, one of MEASURES; a condition is the layer's number,
            or any other name for the non-layer parameters.
        n: problems a language.
        n_pairs: pairs of experts.

    Returns:
        The figure.
    """
    languages, panel_rows, layers = (
        list(dict.fromkeys(table[column])) for column in ("language", "measure", "condition")
    )
    size = (max(2 * len(languages) + 0.8, 4), 4.4)
    figure, axes = plt.subplots(len(panel_rows), len(languages), figsize=size, sharey="row", sharex=True,
                                squeeze=False)  # fmt: skip
    for (i, j), axis in np.ndenumerate(axes):
        rows = table[(table.measure == panel_rows[i]) & (table.language == languages[j])].set_index("condition")
        colour = METHOD_COLOURS["language expert"]
        for position, layer in enumerate(layers):
            draw_interval(axis, rows.loc[[layer]], "difference", position, colour, "y")
        axis.axhline(0, color="0.4", lw=0.8)
        every = math.ceil(len(layers) / MOST_CELLS)  # a label for each so many
        names = [layer if layer.isdigit() else "N" for layer in layers]
        axis.set_xticks(range(len(layers)), ["" if i % every and name != "N" else name for i, name in enumerate(names)])
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title("" if i else language_name(languages[j]))
        axis.grid(axis="x", visible=False)
    for axis, measure in zip(axes[:, 0], panel_rows, strict=True):
        unit = unit_of(MEASURES[measure])
        scale_axis(axis, unit, "y")
        better = "↑" if is_higher_better(MEASURES[measure]) else "↓"
        axis.set_ylabel(f"{measure.partition(',')[0]}\n{unit}\n(better {better})", fontsize=8)
    text = "layer replaced (N: the non-layer parameters), minus the math expert; filled: clear"
    figure.supxlabel(caption(text, n, n_pairs), fontsize=8)
    add_title(figure, titles.layer_title(table))
    return figure


def measure_panels(
    tables: Mapping[str, pd.DataFrame], value: str, text: str, lines: Mapping[str, float] | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Conditions in rows, a panel for each measure, a colour for each language.

    Args:
        tables: measure, one of MEASURES -> table with condition, language, ``value``, low and high.
        value: column of the points; zero is marked where they are differences.
        text: what is shown, below all panels.
        lines: measure -> where a dotted line is drawn, such as what chance gives.

    Returns:
        The figure, and the tables as one, with a column ``measure``.
    """
    every = pd.concat([table.assign(measure=measure) for measure, table in tables.items()])
    conditions, languages = (list(dict.fromkeys(every[column])) for column in ("condition", "language"))
    colours = dict(zip(languages, language_colours(len(languages)), strict=True)) | {"pooled": POOLED}
    step = 0.8 / len(languages)
    size = (1.9 * len(tables) + 3.2, (0.12 * len(languages) + 0.1) * len(conditions) + 1.5)
    figure, axes = plt.subplots(1, len(tables), figsize=size, sharey=True, squeeze=False)
    for axis, (measure, table) in zip(axes[0], tables.items(), strict=True):
        for i, condition in enumerate(conditions):
            of_condition = table[table.condition == condition]
            for j, language in enumerate(languages):
                row = of_condition[of_condition.language == language]
                if len(row):
                    position = i + (j - (len(languages) - 1) / 2) * step
                    draw_interval(axis, row, value, position, colours[language])
        if value == "difference":
            axis.axvline(0, color="0.4", lw=0.8)
        if lines and measure in lines:
            axis.axvline(lines[measure], color="0.4", lw=1, ls=":")
        unit = unit_of(MEASURES[measure], value)
        scale_axis(axis, unit)
        better = f"\n{better_side(MEASURES[measure])}" if value == "difference" else ""
        axis.set_title(textwrap.fill(measure.partition(",")[0] if unit.startswith("nats") else measure, 24))
        axis.set_xlabel(unit + better, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(conditions)), [textwrap.fill(name, 24) for name in conditions])
    axes[0, 0].set_ylim(len(conditions) - 0.5, -0.5)
    for i in range(len(conditions) - 1):
        for axis in axes[0]:
            axis.axhline(i + 0.5, color="0.92", lw=0.8, zorder=0)
    if len(languages) > 1:
        handles = [plt.Line2D([], [], marker="o", ms=3.5, color=colours[code]) for code in languages]
        axes[0, -1].legend(handles, [language_name(code) for code in languages], **BESIDE)
    figure.supxlabel(text, fontsize=8)
    name = PRIMARY if PRIMARY in tables else next(iter(tables))
    write_title = titles.difference_title if value == "difference" else titles.level_title
    title = write_title(tables[name])
    add_title(figure, f"{name}: {title[:1].lower()}{title[1:]}")
    return figure, every


def dose_panels(table: pd.DataFrame, colours: Mapping[str, str], n_pairs: int) -> Figure:
    """Differences in exact match by dose: a row of panels for each kind of dose, a column for each language.

    Args:
        table: of ``statistics.compare``, with columns ``dose`` (what is varied), ``amount`` (how much of it, in order)
            and ``line`` (what is compared).
        colours: line -> colour.
        n_pairs: pairs of experts.

    Returns:
        The figure.
    """
    languages, doses = (list(dict.fromkeys(table[column])) for column in ("language", "dose"))
    size = (2.7 * len(languages) + 1.6, 1.6 * len(doses) + 1)
    figure, axes = plt.subplots(len(doses), len(languages), figsize=size, sharey=True, squeeze=False)
    for (i, j), axis in np.ndenumerate(axes):
        panel = table[(table.dose == doses[i]) & (table.language == languages[j])]
        amounts = list(dict.fromkeys(panel.amount))
        for k, (line, colour) in enumerate(colours.items()):
            rows = panel[panel.line == line].set_index("amount").reindex(amounts)
            positions = np.arange(len(amounts)) + 0.12 * (k - (len(colours) - 1) / 2)
            for position, amount in zip(positions, amounts, strict=True):
                draw_interval(axis, rows.loc[[amount]], "difference", position, colour, "y")
        axis.axhline(0, color="0.4", lw=0.8)
        n = panel.groupby("amount", sort=False).n.max() // n_pairs
        is_same = n.nunique() == 1
        axis.set_xticks(range(len(amounts)), amounts if is_same else [f"{key}\n(n = {n[key]})" for key in amounts])
        axis.set_title("" if i else language_name(languages[j]))
        axis.set_xlabel(f"{doses[i]}\n(n = {n.iloc[0]})" if is_same else doses[i])
        axis.grid(axis="x", visible=False)
        scale_axis(axis, "percentage points", "y", bins=6)
    handles = [plt.Line2D([], [], marker="o", ms=4, color=colour) for colour in colours.values()]
    axes[0, -1].legend(handles, list(colours), **BESIDE)
    sample = f"(filled: clear; n problems, {number_of(n_pairs, 'pair')} of experts, 95 % interval)"
    figure.supylabel(f"exact match, difference in percentage points\n{sample}", fontsize=8)
    add_title(figure, titles.dose_title(table))
    return figure


# --- weights ----------------------------------------------------------------------------------------------------------


def layer_map(plans: Sequence[Plan]) -> Figure:
    """Plans as rows: the language expert's weight in each layer, and in the non-layer parameters."""
    figure, axis = plt.subplots(figsize=(map_width(len(plans[0].layers)), 0.27 * len(plans) + 1.1))
    plan_rows(axis, plans)
    add_title(figure, f"{plans[0].name}: {titles.plan_text(plans[0])}")
    return figure


def provenance_map(table: pd.DataFrame) -> Figure:
    """The language expert's weight in each matrix of a merged checkpoint, a row each.

    table: columns tensor, layer (its number, or "non-layer"), source and weight.
    """
    matrix = table.tensor.str.extract(r"(\w+)\.weight$", expand=False)
    grid = table.assign(matrix=matrix).pivot_table(index="matrix", columns="layer", values="weight", sort=False)
    columns = [*map(str, range(sum(name != "non-layer" for name in grid.columns))), "non-layer"]
    figure, axis = plt.subplots(figsize=(map_width(len(columns) - 1), 0.2 * len(grid) + 1.2))
    weight_rows(axis, grid.reindex(columns=columns).to_numpy(), list(grid.index))
    add_title(figure, titles.provenance_title(table.source))
    return figure


def map_width(n_layers: int) -> float:
    """Inches of a map of so many layers."""
    return min(0.42 * n_layers + 2.6, 7.6)


def plan_rows(axis: Axes, plans: Sequence[Plan]) -> None:
    """``weight_rows`` of plans."""
    weights = np.array([[*plan.layers, plan.non_layer_weight] for plan in plans])  # [plans, layers + 1]
    weight_rows(axis, weights, [plan.name for plan in plans])


def weight_rows(axis: Axes, weights: np.ndarray, rows: Sequence[str]) -> None:
    """Draw language weights from math (0) to language (1): a cell a layer, or of many layers a band of equal ones.

    Args:
        axis: where to draw.
        weights: [rows, layers + 1], in [0, 1]; the last column is the non-layer parameters'; nan is left out.
        rows: labels.
    """
    ends = METHOD_COLOURS["math expert"], METHOD_COLOURS["language expert"]
    colours = sns.blend_palette([ends[0], COLOURS[8], ends[1]], as_cmap=True)
    n_layers = weights.shape[1] - 1
    has_cells, gap = n_layers <= MOST_CELLS, max(1, n_layers // 15)  # the gap stands before the non-layer cell
    for y, row in enumerate(weights):
        cells = [(weight, 1) for weight in row[:-1]] if has_cells else titles.bands(row[:-1])
        cells.append((row[-1], gap))
        lefts = np.cumsum([0, *(width for _, width in cells[:-1])]) + [*[0] * (len(cells) - 1), gap]
        texts = [f"{weight:.2g}" if has_cells else band_label(weight, count) for weight, count in cells[:-1]]
        bars = axis.barh(y, [width for _, width in cells], left=lefts, height=0.86, edgecolor="white", lw=1.2,
                         color=[colours(weight) if weight == weight else "none" for weight, _ in cells])  # fmt: skip
        labels = axis.bar_label(bars, [*texts, f"{row[-1]:.2g}"], label_type="center", fontsize=6.5)
        for label, (weight, width) in zip(labels, cells, strict=True):
            has_room = len(label.get_text()) <= MOST_CHARACTERS * width / (n_layers + 2 * gap)
            label.set(color="0.1" if 0.2 < weight < 0.8 else "white", visible=weight == weight and has_room)
    ticks = np.arange(0, n_layers, 1 if has_cells else 5)
    axis.set_xticks([*(ticks + 0.5), n_layers + 1.5 * gap], [*map(str, ticks), "non-layer"])
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlim=(0, n_layers + 2 * gap), ylim=(len(rows) - 0.5, -0.5))
    numbers = "numbers: the language expert's weight"
    if not has_cells:
        numbers = "L: the language expert's, M: the math expert's, a number: averaged"
    axis.set_xlabel(f"layer (0 = bottom); {numbers}")
    axis.grid(visible=False)
    sns.despine(ax=axis, left=True, bottom=True)


def band_label(weight: float, count: int) -> str:
    """A band of layers of one weight: "5 L", "21 M", or where they are averaged the weight, "0.5"."""
    if weight in (0, 1):
        return f"{count} {'ML'[int(weight)]}"
    return f"{weight:.2g}" if count == 1 else f"{count} × {weight:.2g}"


def search_plot(plans: Sequence[Plan], trials: pd.DataFrame, criterion: str, n: int) -> Figure:
    """What validation problems selected: the plans' layers above, the search (if there was one) below.

    Args:
        plans: in the order of rows, the default one first.
        trials: of ``selection.search_weights``, which started from the best widths; empty: no search.
        criterion: what was maximised.
        n: validation problems a language.

    Returns:
        The figure.
    """
    heights = [0.27 * len(plans) + 0.6, 1.7][: 1 if trials.empty else 2]  # inches
    size = (map_width(len(plans[0].layers)), sum(heights) + 0.6)
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, squeeze=False)
    plan_rows(axes[0, 0], plans)
    if len(trials):
        axis, start = axes[1, 0], trials.objective.iloc[0]
        axis.plot(range(len(trials)), trials.best, color=METHOD_COLOURS["other swap"], label="search, best so far")
        axis.plot(range(len(trials)), trials.objective, ".", ms=4, color="0.5", label="each plan")
        axis.axhline(start, color=METHOD_COLOURS["layer swap"], lw=1, ls="--", label="best widths")
        unit = "%" if criterion == "exact match" else "negative, nats a token"
        axis.set(xlabel="plans tried", ylabel=f"{criterion}, {unit}\n(validation, n = {n})")
        scale_axis(axis, unit, "y")
        axis.legend(**BESIDE, fontsize=7)
    add_title(figure, titles.selection_title(plans, trials, criterion))
    return figure


def map_panels(table: pd.DataFrame, default: str, n_pairs: int) -> Figure:
    """Exact match (above) and answer loss (below) for numbers of bottom and top layers, a column for each language.

    Args:
        table: columns language, bottom, top, n, accuracy, loss, and is_clear: whether the cell's exact match differs
            clearly from that of the default widths, which a star says. Darker is better in both.
        default: the default widths, in words.
        n_pairs: pairs of experts.
    """
    panels = list(table.groupby("language", sort=False))
    size = (max(1.7 * len(panels) + 1.6, 3.6), 4.6)
    figure, axes = plt.subplots(2, len(panels), figsize=size, squeeze=False, sharey=True, sharex=True)
    for (measure, label, factor, digits, colours), row in zip(
        (("accuracy", "exact match, %", 100, 1, "mako_r"), ("loss", "answer loss, nats a token", 1, 2, "mako")),
        axes, strict=True,
    ):  # fmt: skip
        limits = factor * table[measure].min(), factor * table[measure].max() or 1  # 1 %, where nothing is right
        for axis, (language, rows) in zip(row, panels, strict=True):
            cells = factor * rows.pivot(index="bottom", columns="top", values=measure)
            stars = rows.pivot(index="bottom", columns="top", values="is_clear") & (measure == "accuracy")
            texts = cells.map(f"{{:.{digits}f}}".format) + np.where(stars, "*", "")
            sns.heatmap(cells, ax=axis, annot=texts, fmt="", annot_kws={"size": 7}, cbar=False, square=True,
                        vmin=limits[0], vmax=limits[1], cmap=colours)  # fmt: skip
            axis.set(xlabel="", ylabel="bottom layers\nreplaced" if axis is row[0] else "",
                     title=language_name(language) if measure == "accuracy" else "")  # fmt: skip
            axis.tick_params(axis="y", rotation=0)
        bar = figure.colorbar(row[-1].collections[0], ax=row.tolist(), shrink=0.8, pad=0.02)
        bar.set_label(label, fontsize=8)
        if measure == "loss":
            bar.ax.invert_yaxis()  # better is up, as above
    text = f"top layers replaced\n*: exact match clearly unlike that of {default}"
    figure.supxlabel(caption(text, table.n.max() // n_pairs, n_pairs), fontsize=8)
    add_title(figure, titles.map_title(table))
    return figure


# --- where the experts changed ----------------------------------------------------------------------------------------


def weight_change_heatmaps(table: pd.DataFrame) -> Figure:
    """Relative change of each matrix in each layer, a column for each expert of the first seed.

    Above on one scale, which tells how far an expert went; below each against its own mean, which tells where.

    table: of ``experts.weight_change``, with columns ``expert`` and ``seed``.
    """
    seed = table.seed.iloc[0]
    table = table[(table.layer >= 0) & (table.seed == seed)]
    panels = list(table.groupby("expert", sort=False))
    size = (max(1.7 * len(panels) + 1.6, 4.4), 4.4)
    figure, axes = plt.subplots(2, len(panels), figsize=size, sharey=True, sharex=True, squeeze=False)
    for j, (expert, rows) in enumerate(panels):
        cells = rows.pivot(index="matrix", columns="layer", values="relative").reindex(rows.matrix.unique())
        ratios = cells / np.nanmean(cells.to_numpy())
        sns.heatmap(100 * cells, ax=axes[0, j], vmin=0, vmax=100 * table.relative.max() or 1, cmap="mako_r", cbar=False)
        sns.heatmap(ratios, ax=axes[1, j], vmin=0, vmax=2, cmap="vlag", cbar=False)
        axes[0, j].set(title=f"{language_name(expert)} expert", ylabel="", xlabel="")
        axes[1, j].set(ylabel="", xlabel="layer")
        axes[1, j].tick_params(axis="x", rotation=0)
        axes[1, j].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes[1, j].set_xticks(axes[1, j].get_xticks() + 0.5, [f"{tick:.0f}" for tick in axes[1, j].get_xticks()])
        axes[1, j].set_xlim(0, cells.shape[1])
    for row, label in zip(axes, ("change, % of the norm", "times its own mean"), strict=True):
        figure.colorbar(row[0].collections[0], ax=row.tolist(), pad=0.02).set_label(label, fontsize=8)
    figure.supxlabel(f"relative change of each matrix against the base (seed {seed})", fontsize=8)
    add_title(figure, titles.change_title(table))
    return figure


def thirds_plot(table: pd.DataFrame) -> Figure:
    """Each expert's share of change in a third of the layers, by that third's share of the weights.

    One is what no preference gives. A point for each seed, a bar at their mean.

    table: of ``experts.thirds``, with columns ``expert`` (the math expert first), ``seed`` and ``ratio``.
    """
    experts, thirds = list(dict.fromkeys(table.expert)), list(dict.fromkeys(table.third))
    figure, axis = plt.subplots(figsize=(4.8, 2.8))
    for i, (expert, colour) in enumerate(zip(experts, language_colours(len(experts)), strict=True)):
        rows = table[table.expert == expert]
        positions = rows.third.map(thirds.index) + 0.7 * ((i + 0.5) / len(experts) - 0.5)
        axis.plot(positions, rows.ratio, "o", ms=3.5, color=colour, label=f"{language_name(expert)} expert")
        means = rows.ratio.groupby(positions).mean()
        axis.plot(means.index, means, "_", ms=11, mew=1.6, color=colour)
    axis.axhline(1, ls="--", lw=0.8, color="0.4")
    axis.set_xticks(range(len(thirds)), thirds)
    axis.set(xlabel=f"third of the layers ({number_of(table.seed.nunique(), 'seed')}; bar: mean)",
             ylabel="share of the change\nby share of the weights", xlim=(-0.5, len(thirds) - 0.5))  # fmt: skip
    axis.grid(axis="x", visible=False)
    axis.legend(**BESIDE)
    add_title(figure, titles.thirds_title(table))
    return figure


# --- errors -----------------------------------------------------------------------------------------------------------


def error_bars(table: pd.DataFrame) -> Figure:
    """Each method's answers by error class, as a bar of percentages: table of ``error_analysis.count_errors``.

    The most frequent errors come first; those that are rare in every method are counted as "other".
    """
    percent = 100 * table.div(table.sum(axis=1), axis=0)
    rare = [name for name in percent if name not in ("correct", "other") and percent[name].max() < 100 * RARE]
    percent["other"] = percent.get("other", 0) + percent[rare].sum(axis=1)
    errors = percent.drop(columns=[*rare, "correct", "other"], errors="ignore")
    columns = ["correct", *errors.sum().sort_values(ascending=False, kind="stable").index, "other"]
    percent = percent.reindex(columns=columns, fill_value=0)
    figure, axis = plt.subplots(figsize=(6.8, 0.24 * len(table) + 1.3))
    left = np.zeros(len(percent))
    for name, values in percent.items():
        background = ERROR_COLOURS[str(name)]
        axis.barh(percent.index, values, left=left, color=background, edgecolor="white", lw=0.8, label=name)
        for y, (value, start) in enumerate(zip(values, left, strict=True)):
            if value >= 6:
                colour = "white" if sum(to_rgb(background)) < 1.6 else "0.1"
                axis.text(start + value / 2, y, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        left += values.to_numpy()
    axis.set(xlabel=f"% of answers (n = {table.sum(axis=1).max()} a method)", xlim=(0, 100))
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.legend(**BESIDE)
    add_title(figure, titles.error_title(percent))
    return figure


def correlation_heatmap(table: pd.DataFrame, n: int) -> Figure:
    """The correlations of methods' correct answers: table of ``error_analysis.agreement``, of n answers each.

    The colours are centred on the mean of all pairs: darker pairs agree more than methods do in general.
    """
    is_upper = np.triu(np.ones(table.shape, bool))
    lower = table.mask(is_upper)
    values = lower.to_numpy()[~np.isnan(lower.to_numpy())]
    text = f"correlation of right answers (n = {n} answers a method; blank: fewer than {FEWEST} right, or all)"
    if len(values):
        figure, axis = plt.subplots(figsize=(0.42 * len(table) + 2.2, 0.3 * len(table) + 1.8))
        reach = max(np.abs(values - values.mean()).max(), 0.05)
        sns.heatmap(lower.iloc[1:, :-1], ax=axis, vmin=values.mean() - reach, vmax=values.mean() + reach, cmap="vlag",
                    annot=True, fmt=".2f", annot_kws={"size": 6}, linewidths=0.5,
                    cbar_kws={"label": "phi (white: mean of all pairs)"})  # fmt: skip
        axis.set(xlabel="", ylabel="")
        axis.grid(visible=False)
        figure.supxlabel(text, fontsize=8)
    else:
        figure = empty_figure(text)
    add_title(figure, titles.agreement_title(table))
    return figure
