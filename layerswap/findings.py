"""FINDINGS.md: each claim in one line, written from the result files of all profiles, so that it cannot drift.

``python -m layerswap.findings`` reads figures/<profile>/*.csv and writes the file anew.
"""

import pandas as pd

from layerswap.paths import FIGURES, ROOT, atomic_file

LEFT_OUT = {"ci"}  # profiles that only show that the notebooks run
POINTS, NATS = ("points", 100, 1), ("nats a token", 1, 3)  # unit, factor, digits
# What is claimed: file, condition (* for any end), reference ("" in a contrast), unit, and the paper's labelled fact it
# bears on: what a clearly lower, an unclear and a clearly higher figure say of it, and the fact.
AGREES, NOT, OPEN = "agrees", "does not agree", "not contradicted"
NO_GAIN, WORSE = "the transition zone showed no significant gain (B)", "no gain, but a clear loss"
MORE, LESS = ((NOT, OPEN, WORSE), NO_GAIN), ((WORSE, OPEN, NOT), NO_GAIN)
EXPERTS, MERGES = (
    ((NOT, "not shown", AGREES), f"merged models beat {others} (A)") for others in ("the experts", "other merges")
)
KEPT, REMOVED = "transition kept", "transition removed"
CLAIMS = [
    ("The transition zone", [
        ("transition removed, against kept", "transition_removed", REMOVED, KEPT, POINTS, MORE),
        ("transition removed, against kept: loss of the answer", "transition_removed", REMOVED, KEPT, NATS, LESS),
        ("zone ({}), against removed", "transition_width", "*", REMOVED, POINTS, LESS),
        ("zone of {}, against removed", "transition_weight", "weight *", REMOVED, POINTS, LESS),
        ("outside from the math expert, against the average (zone removed)", "outside",
         "removed: outside math - average", "", POINTS, None),
        ("outside from the language expert, against the average (zone removed)", "outside",
         "removed: outside language - average", "", POINTS, None),
    ]),
    ("Only top or only bottom layers replaced", [
        ("only bottom, against neither", "top_bottom", "only bottom", "neither", POINTS, None),
        ("only top, against neither", "top_bottom", "only top", "neither", POINTS, None),
        ("both, against neither", "top_bottom", "both", "neither", POINTS, None),
        ("interaction of both ends", "top_bottom", "interaction", "", POINTS, None),
        ("only bottom, against neither: loss of the answer", "top_bottom", "only bottom", "neither", NATS, None),
        ("only top, against neither: loss of the answer", "top_bottom", "only top", "neither", NATS, None),
        ("control: as many middle layers, against neither", "controls", "middle layers", "neither", POINTS, None),
        ("control: {}, against neither", "controls", "random layers*", "neither", POINTS, None),
        ("control: roles reversed, against neither", "controls", "roles reversed", "neither", POINTS, None),
        ("both, against as many middle layers", "both_controls", "middle layers", "", POINTS, None),
        ("both, against the {}", "both_controls", "mean of the random draws", "", POINTS, None),
        ("both, against roles reversed", "both_controls", "roles reversed", "", POINTS, None),
    ]),
    ("Methods on MGSM", [
        *((f"{name}, against the math expert", "mgsm_paired", name, "math expert", POINTS, fact) for name, fact in (
            ("base", None), ("language expert", None), ("joint SFT", None), ("freeze in training", None),
            ("revert after training", None), ("soup", None), ("task arithmetic", None), ("TIES", None),
            ("layer swap", EXPERTS), ("transition removed", None), ("only bottom", None), ("widths chosen", None),
            ("searched weights", None))),
        *((f"{name}, against the math expert: loss of the answer", "answer_nll", name, "math expert", NATS, None)
          for name in ("soup", "TIES", "layer swap", "transition removed", "only bottom")),
        *((f"{name}, against the soup", "mgsm_soup", name, "soup", POINTS, fact) for name, fact in (
            ("layer swap", MERGES), ("transition removed", None), ("only bottom", None), ("widths chosen", None),
            ("searched weights", None))),
        ("layer swap, against the widths chosen", "mgsm_chosen", "layer swap", "widths chosen", POINTS, None),
        ("searched weights, against the widths chosen", "mgsm_chosen", "searched weights", "widths chosen", POINTS,
         None),
    ]),
]  # fmt: skip
HEAD = """# Findings

Written by `python -m layerswap.findings` from the result files in `figures/`; do not edit. Each claim is linked to its
figure; the csv beside it holds its numbers and those of each language. Differences are paired over the same problems,
pooled over the profile's languages, with a 95 % interval; n counts answers. *Clear* means p < 0.05 after Holm's
correction over the pooled rows of the figure; *not clear* comes with the smallest true difference that the sample would
have shown four times in five before correction. *By language*: + or - where that language's difference is clear (Holm
over all rows of single languages), 0 where it is not. With one pair of experts a finding is about that pair, with
several the interval is about new pairs. The last column sets a finding beside the papers' facts (A: first-hand, B:
reported by a reader); a finding of the lab is about an eight-layer model in a built-in world, not about the papers'
models. What is outside the layers has one weight in each notebook, but not the same in 04 (ends) and 05 (methods).
"""


def text():
    """The whole file, over the profiles that have all their results."""
    folders = sorted(path for path in FIGURES.iterdir() if path.is_dir() and path.name not in LEFT_OUT)
    names = {"mgsm", "mgsm_maximum", "selection", "parameter_change", "change_by_third", "held_out_loss"}
    names |= {claim[1] for _, claims in CLAIMS for claim in claims}
    whole = [each for each in folders if all((each / f"{name}.csv").is_file() for name in names)]
    lines = [HEAD, *(line for folder in whole for line in section(folder))]
    lines += [
        f"Profile {each.name} is left out: its results are not complete.\n" for each in folders if each not in whole
    ]
    return "\n".join(lines) + "\n"


def section(folder):
    """The lines about one profile; a claim without its result (a baseline that was not trained) is left out."""
    languages = rows(folder, "mgsm").language.unique()
    pairs, seeds = rows(folder, "mgsm_maximum").pairs.max(), sorted(rows(folder, "parameter_change").seed.unique())
    yield f"## Profile {folder.name}\n"
    yield (f"Languages {', '.join(languages)}; {pairs} pair(s) of experts; seed(s) {', '.join(map(str, seeds))}.\n")
    for title, claims in CLAIMS:
        yield f"### {title}\n"
        yield "| claim | difference (95 % interval) | n | verdict | by language | the papers |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for claim in claims:
            for found, by_language in results(folder, *claim[1:5]):
                link = f"[{claim[0].format(found.condition)}](figures/{folder.name}/{claim[1]}.png)"
                yield line(link, found, by_language, *claim[4:])
        yield ""
    yield f"Other widths: {other_widths(folder)}.\n"
    yield f"Chosen on validation problems: {chosen(folder)}.\n"
    yield f"Learned by the experts of the first seed, loss on held-out text against the base: {learned(folder)}.\n"
    yield f"Where the experts moved: {moved(folder)}.\n"


def rows(folder, name):
    """A result file as a frame."""
    return pd.read_csv(folder / f"{name}.csv")


def results(folder, name, condition, reference, unit):
    """[(row, by language)] of a claim, pooled if there are several languages; none if the condition was not scored."""
    table = rows(folder, name)
    if "measure" in table:
        table = table[table.measure.str.startswith("exact" if unit is POINTS else "answer")]
    named = table.condition.str.startswith(condition[:-1]) if condition.endswith("*") else table.condition == condition
    kept = table[named & (table.reference == reference if reference else True)]
    found = []
    for _, part in kept.groupby("condition", sort=False):
        single = part[part.language != "pooled"]
        signs = [f"{row.language} {'0+-'[direction(row)]}" for row in single.itertuples()]
        found.append((list(part.itertuples())[-1], ", ".join(signs)))  # the pooled row is the last
    return found


def direction(row):
    """1 or -1 where a difference is clear, 0 where it is not."""
    return int(row.p_holm < 0.05) * (1 if row.difference > 0 else -1)


def line(claim, row, by_language, unit, fact):
    """A claim as a row of the table."""
    name, factor, digits = unit
    told = "{:+.{d}f} ({:+.{d}f}, {:+.{d}f}) {}".format(
        *(factor * each for each in (row.difference, row.low, row.high)), name, d=digits
    )
    sign = direction(row)
    verdict = f"clear (p {row.p_holm:.2g})" if sign else "not clear"
    if not sign and row.detectable == row.detectable:
        verdict += f"; {factor * row.detectable:.{digits}f} would have shown"
    paper = f"{fact[0][sign + 1]}: {fact[1]}" if fact else ""
    return f"| {claim} | {told} | {row.n} | {verdict} | {by_language} | {paper} |"


def learned(folder):
    """What each expert's loss fell by."""
    table = rows(folder, "held_out_loss")
    told = (f"{row.language} {row.difference:+.3f} ({row.low:+.3f}, {row.high:+.3f})" for row in table.itertuples())
    return "; ".join(told)


def chosen(folder):
    """The language weights that were chosen, layer by layer."""
    table = rows(folder, "selection")
    plans, trials = table.dropna(subset="language_weights").iloc[1:], table.dropna(subset="worth")
    told = [f"{row.condition} {row.language_weights}, outside {row.outside:g}" for row in plans.itertuples()]
    if len(trials):
        first = trials.loc[trials.worth.idxmax()]  # of equals the first
        told[-1] += f" (found in generation {first.generation:.0f} of {trials.generation.max():.0f})"
    return "; ".join(told) or "nothing"


def other_widths(folder):
    """How many widths of the map differ clearly from the default ones, and how far."""
    table = rows(folder, "width_paired")
    table = table[table.language == table.language.iloc[-1]]  # pooled, or the only one
    signs = [direction(row) for row in table.itertuples()]
    ends = (table.loc[each()] for each in (table.difference.idxmin, table.difference.idxmax))
    told = " to ".join(f"{100 * row.difference:+.1f} ({row.condition})" for row in ends)
    verdict = NOT if any(signs) else OPEN
    return (
        f"of {len(table)} others in the [figure](figures/{folder.name}/width_paired.png), {signs.count(-1)} are clearly"
        f" below the default ones and {signs.count(1)} clearly above, {told} points (n = {table.n.iloc[0]} each)."
        f" The papers say that results depend little on the exact widths (B): {verdict}"
    )


def moved(folder):
    """The change in thirds against their share of the weights, and whether it agrees with the papers' account."""
    table = rows(folder, "change_by_third")
    table["relative"] = table.share / table.of_weights
    means = table.groupby(["expert", "third"], sort=False).relative.mean().unstack(sort=False)
    told = "; ".join(
        f"{name} {', '.join(f'{third} {times:.2f}' for third, times in part.items())}"
        for name, part in means.iterrows()
    )
    languages = means.drop(index="math")
    agrees = means.loc["math"].idxmax() == "middle" and (languages.idxmin(axis=1) == "middle").all()
    return (
        f"{told} (share of the absolute change, by the third's share of the weights). The papers say that math moves"
        f" the middle most and language the ends (B): {AGREES if agrees else NOT} ({table.seed.nunique()} seed(s);"
        " 01_experts tests it where there are several)"
    )


if __name__ == "__main__":
    with atomic_file(ROOT / "FINDINGS.md") as file:
        file.write(text())
