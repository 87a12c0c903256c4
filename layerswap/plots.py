"""One style for every figure: colour by role, 95 % intervals, native scripts, and files that are equal between runs."""

from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager

from layerswap import experts
from layerswap.paths import FIGURES, atomic_file

COLOURS = sns.color_palette("colorblind").as_hex()
ROLE = {
    "base": "#949494",
    "math expert": COLOURS[0],
    "language expert": COLOURS[1],
    "layer swap": COLOURS[2],
    "transition removed": COLOURS[3],
    "other swap": COLOURS[9],
    "other merge": COLOURS[4],
    "other training": COLOURS[5],
}
ROLE |= dict.fromkeys(("soup", "task arithmetic", "TIES"), ROLE["other merge"])
ROLE |= dict.fromkeys(("joint SFT", "freeze in training", "revert after training"), ROLE["other training"])
ROLE |= dict.fromkeys(("only bottom", "widths chosen", "searched weights"), ROLE["other swap"])
LANGUAGE = {
    "en": "English",
    "sw": "Swahili",
    "te": "Telugu",
    "bn": "Bengali",
    "ja": "Japanese",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "ru": "Russian",
    "th": "Thai",
    "zh": "Chinese",
    "pooled": "pooled",
}
FONTS = (
    ("justmytype_intl_south_asia", "fonts/ofl/notosansbengali/NotoSansBengali[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosanstelugu/NotoSansTelugu[wdth,wght].ttf"),
    ("matplotlib_fontja", "fonts/ipaexg.ttf"),
)


def style():
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


def save(figure, table, name, profile):
    """Write ``figures/<profile>/<name>`` as png and svg, and the plotted numbers as csv, with the profile's stamp.

    ``table`` is the pandas frame that was plotted. The stamp names the profile and what is to be known of its base's
    weights. The bytes depend on the content alone.
    """
    note = experts.load(profile)["note"]
    stamp = f"layerswap, profile {profile}" + (f", weights {note}" if note else "")
    figure.text(1.0, -0.012, stamp, ha="right", va="top", fontsize=6, color="0.55")
    folder = FIGURES / profile
    folder.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with atomic_file(folder / f"{name}.{kind}", "wb") as file:
            figure.savefig(file, format=kind, metadata=metadata)
    with atomic_file(folder / f"{name}.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


def estimates(axis, table, value, group, colours, labels=None, order=None):
    """Points with their 95 % interval (columns ``low``, ``high``), one row of the axis a ``language``.

    ``group`` (a column) sets the colour by the mapping ``colours`` and the offset within a language.
    """
    languages = order or list(dict.fromkeys(table["language"]))
    groups = [g for g in colours if g in set(table[group])]
    for place, name in enumerate(groups):
        part = table[table[group] == name].set_index("language").reindex(languages)
        y = np.arange(len(languages)) + (place - (len(groups) - 1) / 2) * 0.72 / max(len(groups), 1)
        spread = np.abs(part[["low", "high"]].to_numpy().T - part[value].to_numpy())  # (2, languages)
        axis.errorbar(part[value], y, xerr=spread, fmt="o", ms=4, lw=1.4, capsize=0, color=colours[name],
                      label=(labels or {}).get(name, name))  # fmt: skip
    axis.set_yticks(range(len(languages)), [LANGUAGE.get(code, code) for code in languages])
    axis.set_ylim(len(languages) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)


def layer_map(axis, plans):
    """Draw plans as rows of cells: one a layer, and one for the parameters outside the layers."""
    columns = [*map(str, range(len(plans[0].layers))), "outside"]
    weights(axis, np.array([[*plan.layers, plan.outside] for plan in plans]), columns, [plan.name for plan in plans])
    axis.set_xlabel("layer (0 = bottom); the number is the language expert's weight")


def weights(axis, values, columns, rows):
    """Draw language weights [rows, columns] as cells, coloured from math (0) to language (1); the last column apart."""
    colours = sns.blend_palette([ROLE["math expert"], COLOURS[8], ROLE["language expert"]], as_cmap=True)
    apart = np.insert(values.astype(float), len(columns) - 1, np.nan, axis=1)  # [rows, columns + gap]
    sns.heatmap(apart, ax=axis, vmin=0, vmax=1, cmap=colours, linewidths=1.5, linecolor="white", cbar=False,
                annot=True, fmt=".2g", annot_kws={"fontsize": 6.5})  # fmt: skip
    axis.set_xticks(np.r_[np.arange(len(columns) - 1), len(columns)] + 0.5, columns, rotation=0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
    axis.grid(visible=False)


def measures(tables, colours, what):
    """Paired differences in several measures, a panel each: measure -> table of ``stats.paired``.

    Returns the figure and the tables as one, with a column ``measure``. what: such as "minus neither (n = 250)".
    """
    first = next(iter(tables.values()))
    order, n_groups = list(dict.fromkeys(first.language)), first.condition.nunique()
    height = (0.2 + 0.11 * n_groups) * len(order) + 1
    figure, axes = plt.subplots(1, len(tables), figsize=(7.6, height), sharey=True)
    for axis, (measure, table) in zip(axes, tables.items(), strict=True):
        estimates(axis, table, "difference", "condition", colours, order=order)
        axis.axvline(0, color="0.4", lw=0.8)
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel=f"{measure},\n{what}")
    if n_groups > 1:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure, pd.concat([table.assign(measure=measure) for measure, table in tables.items()])


def forest(table, value, xlabel, zero=False, column="language"):
    """A panel for each value of ``column``, a row for each condition: points with their 95 % interval, by role.

    zero: mark the reference that differences are taken from. Returns the figure.
    """
    conditions, parts = list(dict.fromkeys(table.condition)), list(table.groupby(column, sort=False))
    size = (1.6 + max(1.35 * len(parts), 2.4), 0.19 * len(conditions) + 0.8)
    figure, axes = plt.subplots(1, len(parts), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis, (name, part) in zip(axes[0], parts, strict=True):
        part = part.set_index("condition").reindex(conditions)
        spread = np.abs(part[["low", "high"]].to_numpy().T - part[value].to_numpy())  # [2, conditions]
        for i, condition in enumerate(conditions):
            axis.errorbar(part[value].iloc[i], i, xerr=spread[:, [i]], fmt="o", ms=3.5, lw=1.3,
                          color=ROLE.get(condition, ROLE["other swap"]))  # fmt: skip
        if zero:
            axis.axvline(0, color="0.4", lw=0.8)
        axis.set_title(LANGUAGE.get(name, name))
        axis.locator_params(axis="x", nbins=3)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(conditions)), conditions)
    axes[0, 0].set_ylim(len(conditions) - 0.5, -0.5)
    figure.supxlabel(xlabel, fontsize=8)
    return figure
