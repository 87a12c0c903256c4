"""Every figure in one style: colours by method, 95 % intervals, native scripts, files that are equal between runs.

Functions that take an axis draw on it; the others return a figure. ``save_figure`` writes it beside its numbers.
"""

import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from layerswap.analysis.error_analysis import ERROR_CLASSES
from layerswap.analysis.statistics import BINARY, MEASURES
from layerswap.experts.index import load_index
from layerswap.files import FIGURES, atomic_file, results_name
from layerswap.merging.plans import Plan
from layerswap.tasks.extraction import LANGUAGES

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
LANGUAGE_NAMES = {code: language["name"] for code, language in LANGUAGES.items()}
FONTS = (
    ("justmytype_intl_south_asia", "fonts/ofl/notosansbengali/NotoSansBengali[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosanstelugu/NotoSansTelugu[wdth,wght].ttf"),
    ("matplotlib_fontja", "fonts/ipaexg.ttf"),
)
ONE_LINE = {"": METHOD_COLOURS["layer swap"]}
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # a legend to the right of its axis


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
        "svg.hashsalt": "layerswap", "svg.fonttype": "path", "axes.titleweight": "bold", "axes.titlesize": 9,
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


def caption(measure: str, n: int | str, n_pairs: int) -> str:
    """What a figure of intervals shows, and of how many problems a language and pairs of experts."""
    pairs = "1 pair" if n_pairs == 1 else f"{n_pairs} pairs"
    return f"{measure}\n(n = {n} problems a language, {pairs} of experts, 95 % interval)"


def distances(table: pd.DataFrame, value: str) -> np.ndarray:
    """How far the 95 % interval reaches to both sides of ``value``: [2, rows], as ``errorbar`` takes it."""
    return np.abs(table[["low", "high"]].to_numpy().T - table[value].to_numpy())


# --- accuracies and differences with their intervals ------------------------------------------------------------------


def interval_plot(
    axis: Axes, table: pd.DataFrame, value: str, group: str, colours: Mapping[str, str],
    order: Sequence[str] | None = None, rows: str = "language",
) -> None:  # fmt: skip
    """Draw points with their 95 % interval, a row of the axis for each language (or other value of ``rows``).

    Args:
        axis: where to draw.
        table: columns ``language``, ``value``, ``low``, ``high`` and ``group``.
        value: column of the points.
        group: column that sets the colour, and the offset within a language.
        colours: group -> colour, in the order of the offsets.
        order: languages from the top down; None: as they come.
        rows: column that sets the row.
    """
    names = list(order or dict.fromkeys(table[rows]))
    groups = [name for name in colours if name in set(table[group])]
    for i, name in enumerate(groups):
        points = table[table[group] == name].set_index(rows).reindex(names)
        y = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * 0.72 / len(groups)
        axis.errorbar(points[value], y, xerr=distances(points, value), fmt="o", ms=4, lw=1.4, capsize=0,
                      color=colours[name], label=LANGUAGE_NAMES.get(name, name))  # fmt: skip
    axis.set_yticks(range(len(names)), [LANGUAGE_NAMES.get(name, name) for name in names])
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)


def paired_panels(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], comparison: str, n: int, n_pairs: int
) -> tuple[Figure, pd.DataFrame]:
    """Differences in several measures, a panel each.

    Args:
        tables: measure, such as "exact match" -> table of ``statistics.compare``.
        colours: condition -> colour.
        comparison: what is compared, such as "minus neither".
        n: problems a language.
        n_pairs: pairs of experts.

    Returns:
        The figure, and the tables as one, with a column ``measure``.
    """
    first = next(iter(tables.values()))
    languages, n_conditions = list(dict.fromkeys(first.language)), first.condition.nunique()
    height = (0.2 + 0.11 * n_conditions) * len(languages) + 1
    figure, axes = plt.subplots(1, len(tables), figsize=(7.6, height), sharey=True, squeeze=False)
    for axis, (measure, table) in zip(axes[0], tables.items(), strict=True):
        interval_plot(axis, table, "difference", "condition", colours, languages)
        axis.axvline(0, color="0.4", lw=0.8)
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel=measure)
    if n_conditions > 1:
        axes[0, -1].legend(**BESIDE)
    figure.supxlabel(caption(comparison, n, n_pairs), fontsize=8)
    return figure, pd.concat([table.assign(measure=measure) for measure, table in tables.items()])


def forest_plot(
    table: pd.DataFrame, value: str, xlabel: str, zero: bool = False, column: str = "language",
    groups: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Points with their 95 % interval: a panel for each value of ``column``, a row for each condition.

    Args:
        table: columns ``condition``, ``column``, ``value``, ``low`` and ``high``.
        value: column of the points.
        xlabel: below the panels.
        zero: whether to mark zero, the reference that differences are taken from.
        column: what the panels go by.
        groups: condition -> one of METHOD_COLOURS. A condition that is not in it is its own group if there is such a
            group, else "other swap".

    Returns:
        The figure.
    """
    conditions, panels = list(dict.fromkeys(table.condition)), list(table.groupby(column, sort=False))
    size = (1.6 + max(1.35 * len(panels), 2.4), 0.19 * len(conditions) + 0.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis, (name, panel) in zip(axes[0], panels, strict=True):
        panel = panel.set_index("condition").reindex(conditions)
        for i, condition in enumerate(conditions):
            row = panel.iloc[[i]]
            axis.errorbar(row[value], [i], xerr=distances(row, value), fmt="o", ms=3.5, lw=1.3,
                          color=method_colour(condition, groups or {}))  # fmt: skip
        if zero:
            axis.axvline(0, color="0.4", lw=0.8)
        axis.set_title(LANGUAGE_NAMES.get(name, name))
        axis.locator_params(axis="x", nbins=3)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(conditions)), conditions)
    axes[0, 0].set_ylim(len(conditions) - 0.5, -0.5)
    figure.supxlabel(xlabel, fontsize=8)
    return figure


def method_colour(condition: str, groups: Mapping[str, str]) -> str:
    """The colour of a condition's group (by default its own name), or of "other swap"."""
    return METHOD_COLOURS.get(groups.get(condition, condition), METHOD_COLOURS["other swap"])


def accuracy_plot(
    table: pd.DataFrame, n: int, n_pairs: int, groups: Mapping[str, str] | None = None, value: str = "accuracy"
) -> Figure:
    """``forest_plot`` of exact match.

    Args:
        table: of ``statistics.accuracy`` or ``summarize``, or of ``best_pair``.
        n: problems a language.
        n_pairs: pairs of experts.
        groups: as in ``forest_plot``.
        value: "accuracy", or "maximum" for the best pair.
    """
    measure = {"accuracy": "mean exact match", "maximum": "exact match of the best pair"}[value]
    return forest_plot(table, value, caption(measure, n, n_pairs), groups=groups)


def difference_plot(
    table: pd.DataFrame, measure: str, n: int, n_pairs: int, groups: Mapping[str, str] | None = None
) -> Figure:
    """``forest_plot`` of differences.

    Args:
        table: of ``statistics.compare``.
        measure: what differs, such as "exact match minus the soup's".
        n: problems a language.
        n_pairs: pairs of experts.
        groups: as in ``forest_plot``.
    """
    return forest_plot(table, "difference", caption(measure, n, n_pairs), zero=True, groups=groups)


def steps_plot(table: pd.DataFrame, groups: Mapping[str, str] | None = None) -> Figure:
    """``forest_plot`` of exact match by steps of the solution: table of ``error_analysis.accuracy_by_steps``."""
    titles = table.steps + "\nn = " + table.n_answers.astype(str)
    xlabel = "exact match by steps of the solution, over languages and pairs, 95 % interval\n(n answers a method)"
    return forest_plot(table.assign(steps=titles), "mean", xlabel, column="steps", groups=groups)


def sweep_panels(
    table: pd.DataFrame, setting: str, xlabel: str, ticks: Sequence[float], reference: str, n: int,
    line: str = "", colours: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Differences in exact match along a setting, a panel for each language; the open point at 0 is the reference.

    Args:
        table: of ``statistics.compare``, with the columns ``setting`` and ``line``.
        setting: column of the swept numbers.
        xlabel: what they are.
        ticks: of the horizontal axis, from 0.
        reference: what the differences are taken from, such as "removed".
        n: problems a language.
        line: column that says which line a row is of, and the legend's title; empty: there is one line.
        colours: line -> colour, where there are several.

    Returns:
        The figure.
    """
    table = table if line else table.assign(**{line: ""})
    colours = {name: colour for name, colour in (colours or ONE_LINE).items() if name in set(table[line])}
    panels = list(table.groupby("language", sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(1.7 * len(panels) + 1, 2.3), sharey=True, squeeze=False)
    offsets = 0.12 * (np.arange(len(colours)) - (len(colours) - 1) / 2)
    margin = 0.1 * max(ticks) + offsets[-1]
    for axis, (language, panel) in zip(axes[0], panels, strict=True):
        for (name, colour), offset in zip(colours.items(), offsets, strict=True):
            rows = panel[panel[line] == name].sort_values(setting)
            axis.errorbar(rows[setting] + offset, rows.difference, yerr=distances(rows, "difference"), fmt="o-", ms=4,
                          lw=1, color=colour, label=name)  # fmt: skip
        axis.axhline(0, color="0.4", lw=0.8)
        axis.plot(0, 0, "o", ms=4, mfc="white", color="0.4")
        axis.set(title=LANGUAGE_NAMES.get(language, language), xlabel=xlabel, xticks=ticks,
                 xlim=(-margin, max(ticks) + margin))  # fmt: skip
    axes[0, 0].set_ylabel(f"exact match, minus\n{reference} (n = {n})")
    if line:
        axes[0, -1].legend(**BESIDE, title=line)
    return figure


def layer_panels(table: pd.DataFrame) -> Figure:
    """Differences by the one layer that was replaced: a panel for each measure (rows) and language (columns).

    Args:
        table: of ``statistics.compare``, with a column ``measure``; a condition is the layer's number, or any other
            name for the non-layer parameters.

    Returns:
        The figure.
    """
    languages, panel_rows, layers = (
        list(dict.fromkeys(table[column])) for column in ("language", "measure", "condition")
    )
    figure, axes = plt.subplots(len(panel_rows), len(languages), figsize=(2 * len(languages) + 0.8, 4), sharey="row",
                                sharex=True, squeeze=False)  # fmt: skip
    for (i, j), axis in np.ndenumerate(axes):
        rows = table[(table.measure == panel_rows[i]) & (table.language == languages[j])].set_index("condition")
        axis.errorbar(range(len(layers)), rows.difference[layers], yerr=distances(rows.loc[layers], "difference"),
                      fmt="o", ms=4, color=METHOD_COLOURS["language expert"])  # fmt: skip
        axis.axhline(0, color="0.4", lw=0.8)
        axis.set_xticks(range(len(layers)), [layer if layer.isdigit() else "N" for layer in layers])
        axis.set_title("" if i else LANGUAGE_NAMES.get(languages[j], languages[j]))
    for axis, measure in zip(axes[:, 0], panel_rows, strict=True):
        axis.set_ylabel(measure)
    figure.supxlabel("layer replaced (N: the non-layer parameters)", fontsize=8)
    title = f"One layer replaced, minus the {table.reference.iloc[0]}\n(n = {table.n.max()}, 95 % interval)"
    figure.suptitle(title, fontsize=9)
    return figure


def measure_panels(
    tables: Mapping[str, pd.DataFrame], value: str, lines: Mapping[str, float], text: str
) -> tuple[Figure, pd.DataFrame]:
    """Conditions in rows, a panel for each measure, a colour for each language.

    Args:
        tables: measure -> table with condition, language, ``value``, low and high.
        value: column of the points.
        lines: measure -> where a dotted line is drawn: what chance gives, or zero.
        text: what is shown, below all panels.

    Returns:
        The figure, and the tables as one, with a column ``measure``.
    """
    every = pd.concat([table.assign(measure=measure) for measure, table in tables.items()])
    rows, languages = (list(dict.fromkeys(every[column])) for column in ("condition", "language"))
    colours = dict(zip(languages, cycle(COLOURS))) | {"pooled": "0.2"}  # noqa: B905 (COLOURS goes round)
    size = (2.2 * len(tables) + 2.6, 0.17 * (1 + len(languages)) * len(rows) + 1)
    figure, axes = plt.subplots(1, len(tables), figsize=size, sharey=True, squeeze=False)
    for axis, (measure, table) in zip(axes[0], tables.items(), strict=True):
        interval_plot(axis, table, value, "language", colours, rows, rows="condition")
        if measure in lines:
            axis.axvline(lines[measure], color="0.4", lw=1, ls=":")
        axis.locator_params(axis="x", nbins=5)
        unit = "nats"
        if MEASURES[measure] in BINARY:
            axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            unit = "percentage points" if value == "difference" else "%"
        axis.set_title(f"{textwrap.fill(measure, 24)}\n{unit}", fontsize=9)
    axes[0, -1].legend(**BESIDE)
    figure.supxlabel(text, fontsize=8)
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
    size = (2.7 * len(languages) + 1.6, 1.6 * len(doses) + 0.8)
    figure, axes = plt.subplots(len(doses), len(languages), figsize=size, sharey=True, squeeze=False)
    for (i, j), axis in np.ndenumerate(axes):
        panel = table[(table.dose == doses[i]) & (table.language == languages[j])]
        amounts = list(dict.fromkeys(panel.amount))
        for k, (line, colour) in enumerate(colours.items()):
            rows = panel[panel.line == line].set_index("amount").reindex(amounts)
            positions = np.arange(len(amounts)) + 0.12 * (k - (len(colours) - 1) / 2)
            axis.errorbar(positions, rows.difference, yerr=distances(rows, "difference"), fmt="o-", ms=4, lw=1,
                          color=colour, label=line)  # fmt: skip
        axis.axhline(0, color="0.4", lw=0.8)
        n = panel.groupby("amount", sort=False).n.max()
        is_same = n.nunique() == 1
        axis.set_xticks(range(len(amounts)), amounts if is_same else [f"{key}\n(n = {n[key]})" for key in amounts])
        axis.set_title("" if i else LANGUAGE_NAMES.get(languages[j], languages[j]))
        axis.set_xlabel(f"{doses[i]}\n(n = {n.iloc[0]})" if is_same else doses[i])
    axes[0, -1].legend(**BESIDE)
    pairs = "1 pair" if n_pairs == 1 else f"{n_pairs} pairs"
    figure.supylabel(f"exact match, difference ({pairs} of experts, 95 % interval)", fontsize=8)
    return figure


# --- weights ----------------------------------------------------------------------------------------------------------


def layer_map(axis: Axes, plans: Sequence[Plan]) -> None:
    """Draw plans as rows of cells: one for each layer, and one for the non-layer parameters."""
    columns = [*map(str, range(len(plans[0].layers))), "non-layer"]
    weights = np.array([[*plan.layers, plan.non_layer_weight] for plan in plans])  # [plans, layers + 1]
    weight_heatmap(axis, weights, columns, [plan.name for plan in plans])
    axis.set_xlabel("layer (0 = bottom); the number is the language expert's weight")


def weight_heatmap(axis: Axes, weights: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Draw language weights as cells, coloured from math (0) to language (1), the last column at a distance.

    Args:
        axis: where to draw.
        weights: [rows, columns], in [0, 1]; nan leaves a cell blank.
        columns: labels.
        rows: labels.
    """
    ends = METHOD_COLOURS["math expert"], METHOD_COLOURS["language expert"]
    colours = sns.blend_palette([ends[0], COLOURS[8], ends[1]], as_cmap=True)
    spaced = np.insert(weights.astype(float), len(columns) - 1, np.nan, axis=1)  # [rows, columns + 1]
    sns.heatmap(spaced, ax=axis, vmin=0, vmax=1, cmap=colours, linewidths=1.5, linecolor="white", cbar=False,
                annot=True, fmt=".2g", annot_kws={"fontsize": 6.5})  # fmt: skip
    axis.set_xticks(np.r_[np.arange(len(columns) - 1), len(columns)] + 0.5, columns, rotation=0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
    axis.grid(visible=False)


def search_plot(plans: Sequence[Plan], trials: pd.DataFrame, criterion: str, n: int) -> Figure:
    """What validation problems selected: the plans' layers on the left, the search (if there was one) on the right.

    Args:
        plans: in the order of rows.
        trials: of ``selection.search_weights``, which started from the best widths; empty: no search.
        criterion: what was maximised.
        n: validation problems a language.

    Returns:
        The figure.
    """
    widths = [0.4 * len(plans[0].layers) + 2.5, 2.6][: 1 if trials.empty else 2]  # inches
    figure, axes = plt.subplots(1, len(widths), figsize=(sum(widths), 2), width_ratios=widths, squeeze=False)
    layer_map(axes[0, 0], plans)
    if len(trials):
        axis, start = axes[0, 1], trials.objective.iloc[0]
        axis.plot(range(len(trials)), trials.best, color=METHOD_COLOURS["other swap"], label="search, best so far")
        axis.plot(range(len(trials)), trials.objective, ".", ms=3, color="0.6", label="each plan")
        axis.axhline(start, color=METHOD_COLOURS["layer swap"], lw=1, ls="--", label="best widths")
        axis.set(xlabel="plans tried", ylabel=f"{criterion}, validation\n(n = {n} a language)")
        axis.legend(fontsize=6)
    return figure


def map_panels(table: pd.DataFrame) -> Figure:
    """Exact match (above) and answer loss (below) for numbers of bottom and top layers, a column for each language.

    table: columns language, bottom, top, n, accuracy and loss. Darker is better in both.
    """
    panels = list(table.groupby("language", sort=False))
    figure, axes = plt.subplots(2, len(panels), figsize=(1.9 * len(panels) + 1, 4.4), squeeze=False, sharey=True)
    for column, (language, rows) in zip(axes.T, panels, strict=True):
        for axis, measure in zip(column, ("accuracy", "loss"), strict=True):
            scale = {"vmin": 0, "vmax": 1, "cmap": "mako_r"} if measure == "accuracy" else {"cmap": "mako"}
            cells = rows.pivot(index="bottom", columns="top", values=measure)
            sns.heatmap(cells, ax=axis, annot=True, fmt=".2f", annot_kws={"size": 7}, cbar=False, square=True, **scale)
            axis.set(xlabel="", ylabel="")
        column[0].set_title(LANGUAGE_NAMES.get(language, language))
        column[1].set_xlabel("top layers replaced")
    for axis in axes[:, 0]:
        axis.set_ylabel("bottom layers replaced")
    figure.suptitle(f"Exact match (above) and answer loss (below), n = {table.n.max()} a cell", fontsize=9)
    return figure


# --- where the experts changed ----------------------------------------------------------------------------------------


def weight_change_heatmaps(table: pd.DataFrame) -> Figure:
    """Relative change of each matrix in each layer, a panel for each expert of the first seed.

    table: of ``experts.weight_change``, with columns ``expert`` and ``seed``.
    """
    seed = table.seed.iloc[0]
    table = table[(table.layer >= 0) & (table.seed == seed)]
    panels = list(table.groupby("expert", sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 * len(panels) + 0.8, 2.5), sharey=True, squeeze=False)
    for axis, (expert, rows) in zip(axes[0], panels, strict=True):
        cells = rows.pivot(index="matrix", columns="layer", values="relative").reindex(rows.matrix.unique())
        sns.heatmap(cells, ax=axis, vmin=0, vmax=table.relative.max(), cmap="mako_r", cbar=axis is axes[0, -1])
        axis.set(title=f"{LANGUAGE_NAMES.get(expert, expert)} expert", ylabel="", xlabel="layer")
    figure.suptitle(f"Relative change of each matrix against the base (seed {seed})", fontsize=9)
    return figure


def thirds_plot(table: pd.DataFrame) -> Figure:
    """Each expert's share of change in a third of the layers: a point for each seed, lines through their means.

    table: of ``experts.thirds``, with columns ``expert`` (the math expert first) and ``seed``. The dashed line is
    each third's share of the weights.
    """
    experts = table.expert.unique()
    colours = [METHOD_COLOURS["math expert"], *sns.color_palette("flare", len(experts) - 1)]
    figure, axis = plt.subplots(figsize=(4.6, 2.3))
    for expert, colour in zip(experts, colours, strict=True):
        rows = table[table.expert == expert]
        label = f"{LANGUAGE_NAMES.get(expert, expert)} expert"
        axis.plot(rows.groupby("third", sort=False).share.mean(), "o-", ms=4, label=label, color=colour)
        axis.plot(rows.third, rows.share, "o", ms=2.5, color=colour)
    thirds = table.iloc[:3]
    axis.plot(thirds.third, thirds.of_weights, "--", lw=0.8, color="0.4", label="of the weights")
    axis.set(xlabel="third of the layers", ylabel="share of the change", xlim=(-0.3, 2.3))
    axis.legend(**BESIDE, title=f"seeds: {table.seed.nunique()}")
    return figure


# --- errors -----------------------------------------------------------------------------------------------------------


def error_bars(table: pd.DataFrame) -> Figure:
    """Each method's answers by error class, as a bar of shares: table of ``error_analysis.count_errors``."""
    colours = [METHOD_COLOURS["layer swap"], *sns.color_palette("rocket", len(ERROR_CLASSES) - 2), "0.8"]
    figure, axis = plt.subplots(figsize=(6.4, 0.24 * len(table) + 0.9))
    n_answers = table.sum(axis=1)
    table.div(n_answers, axis=0).iloc[::-1].plot.barh(
        stacked=True, ax=axis, color=dict(zip(ERROR_CLASSES, colours, strict=True)), width=0.8, lw=0
    )
    axis.set(xlabel=f"share of answers (n = {n_answers.max()} a method)", ylabel="", xlim=(0, 1))
    axis.legend(**BESIDE)
    return figure


def correlation_heatmap(table: pd.DataFrame, n: int) -> Figure:
    """The correlations of methods' correct answers: table of ``error_analysis.agreement``, of n answers each."""
    figure, axis = plt.subplots(figsize=(0.42 * len(table) + 2, 0.36 * len(table) + 1.4))
    sns.heatmap(table, ax=axis, vmin=0, vmax=1, cmap="mako_r", annot=True, fmt=".2f", annot_kws={"size": 6}, cbar=False)
    axis.set(xlabel="", ylabel="")
    axis.set_title(f"Correlation of correct answers (n = {n})")
    return figure
