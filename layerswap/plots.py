"""One style for every figure: colour by role, 95 % intervals, native scripts, and files that are equal between runs."""

from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
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
    "soup": COLOURS[4],
    "other": COLOURS[9],
}
LANGUAGE = {"en": "English", "sw": "Swahili", "te": "Telugu", "bn": "Bengali", "ja": "Japanese", "pooled": "pooled"}
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


def spare(names):
    """name -> colour: a role's own colour, and the palette's remaining ones for names without a role."""
    free = [colour for colour in COLOURS if colour not in ROLE.values()]
    return {name: ROLE.get(name) or free.pop(0) for name in names}
