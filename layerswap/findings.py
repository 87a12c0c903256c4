"""FINDINGS.md: each claim in one line, written from the result files of all profiles, so that it cannot drift.

``python -m layerswap.findings`` reads figures/<profile>/*.csv and writes the file anew.
"""

import pandas as pd

from layerswap.paths import FIGURES, ROOT, atomic_file

LEFT_OUT = {"ci"}  # profiles that only show that the notebooks run
POINTS, NATS = ("points", 100, 1), ("nats a token", 1, 3)  # unit, factor, digits
# What is claimed: file, condition (* for any end), reference ("" in a contrast), unit, and the paper's labelled fact it
# bears on: what a clearly lower, an unclear and a clearly higher figure say of it, and the fact.
AGREES, NOT = "agrees", "does not agree"
NO_GAIN, WORSE = "the transition zone showed no significant gain (B)", "no gain, but a clear loss"
MORE, LESS = ((NOT, AGREES, WORSE), NO_GAIN), ((WORSE, AGREES, NOT), NO_GAIN)
EXPERTS, MERGES = (
    ((NOT, "not shown", AGREES), f"merged models beat {others} (A)") for others in ("the experts", "other merges")
)
KEPT, REMOVED = "transition kept", "transition removed"
CLAIMS = [
    ("The transition zone", [
        ("transition removed, against kept", "transition_removed", REMOVED, KEPT, POINTS, MORE),
        ("transition removed, against kept: loss of the answer", "transition_removed", REMOVED, KEPT, NATS, LESS),
        ("zone at the bottom, against removed", "transition_width", "bottom, width {least}", REMOVED, POINTS, LESS),
        ("zone at the top, against removed", "transition_width", "top, width {least}", REMOVED, POINTS, LESS),
        ("widest zone on both sides, against removed", "transition_width", "both, width {most}", REMOVED, POINTS, LESS),
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
    ]),
    ("Methods on MGSM", [
        *((f"{name}, against the math expert", "mgsm_paired", name, "math expert", POINTS, fact) for name, fact in (
            ("base", None), ("language expert", None), ("joint SFT", None), ("freeze in training", None),
            ("revert after training", None), ("soup", None), ("task arithmetic", None), ("TIES", None),
            ("layer swap", EXPERTS), ("transition removed", None), ("only bottom", None), ("widths chosen", None),
            ("searched weights", None))),
        *((f"{name}, against the soup", "mgsm_soup", name, "soup", POINTS, fact) for name, fact in (
            ("layer swap", MERGES), ("transition removed", None), ("only bottom", None), ("widths chosen", None),
            ("searched weights", None))),
    ]),
]  # fmt: skip
HEAD = """# Findings

Written by `python -m layerswap.findings` from the result files in `figures/`; do not edit. Differences are paired over
the same problems, pooled over the profile's languages, with a 95 % interval; n counts answers. *Clear* means p < 0.05
after Holm's correction over the family of its figure; *not clear* comes with the smallest true difference that the
sample would have shown four times in five. With one pair of experts a finding is about that pair, with several the
interval is about new pairs. Agreement is with the papers' facts (A: first-hand, B: reported by a reader); a finding of
the lab is about an eight-layer model in a built-in world, not about the papers' models.
"""


def text():
    """The whole file, over the profiles that have all their results."""
    folders = sorted(path for path in FIGURES.iterdir() if path.is_dir() and path.name not in LEFT_OUT)
    names = {"mgsm", "mgsm_maximum", "selection", "parameter_change", "change_by_third", "held_out_loss"}
    names |= {claim[1] for _, claims in CLAIMS for claim in claims}
    whole = [each for each in folders if all((each / f"{name}.csv").is_file() for name in names)]
    return "\n".join([HEAD, *(line for folder in whole for line in section(folder))]) + "\n"


def section(folder):
    """The lines about one profile; a claim without its result (a baseline that was not trained) is left out."""
    languages = rows(folder, "mgsm").language.unique()
    pairs, seeds = rows(folder, "mgsm_maximum").pairs.max(), sorted(rows(folder, "parameter_change").seed.unique())
    yield f"## Profile {folder.name}\n"
    yield (f"Languages {', '.join(languages)}; {pairs} pair(s) of experts; seed(s) {', '.join(map(str, seeds))}.\n")
    for title, claims in CLAIMS:
        yield f"### {title}\n"
        yield "| claim | difference (95 % interval) | n | verdict | the paper |"
        yield "| --- | --- | --- | --- | --- |"
        for claim in claims:
            for found in results(folder, *claim[1:5]):
                yield line(claim[0].format(found.condition), found, *claim[4:])
        yield ""
    yield f"Chosen on validation problems: {chosen(folder)}.\n"
    yield f"Learned by the experts, loss on held-out text against the base: {learned(folder)}.\n"
    yield f"Where the experts moved: {moved(folder)}.\n"


def rows(folder, name):
    """A result file as a frame."""
    return pd.read_csv(folder / f"{name}.csv")


def results(folder, name, condition, reference, unit):
    """The rows of a claim, pooled if there are several languages; none if the condition was not scored."""
    table = rows(folder, name)
    if "{" in condition:
        condition = condition.format(least=table.width.min(), most=table.width.max())
    if "measure" in table:
        table = table[table.measure.str.startswith("exact" if unit is POINTS else "answer")]
    named = table.condition.str.startswith(condition[:-1]) if condition.endswith("*") else table.condition == condition
    kept = named & (table.reference == reference if reference else True)
    last = table[kept & table.language.isin(["pooled"] if (table.language == "pooled").any() else table.language)]
    return list(last.itertuples())


def line(claim, row, unit, fact):
    """A claim as a row of the table."""
    name, factor, digits = unit
    told = "{:+.{d}f} ({:+.{d}f}, {:+.{d}f}) {}".format(
        *(factor * each for each in (row.difference, row.low, row.high)), name, d=digits
    )
    clear = row.p_holm < 0.05
    sign = int(clear) * (1 if row.difference > 0 else -1)
    verdict = f"clear (p {row.p_holm:.2g})" if clear else "not clear"
    if not clear and row.detectable == row.detectable:
        verdict += f"; {factor * row.detectable:.{digits}f} would have shown"
    paper = ""
    if fact:
        paper = f"{fact[0][sign + 1]}: {fact[1]}"
    return f"| {claim} | {told} | {row.n} | {verdict} | {paper} |"


def learned(folder):
    """What each expert's loss fell by."""
    table = rows(folder, "held_out_loss")
    told = (f"{row.language} {row.difference:+.3f} ({row.low:+.3f}, {row.high:+.3f})" for row in table.itertuples())
    return "; ".join(told)


def chosen(folder):
    """The language weights that were chosen, layer by layer."""
    table = rows(folder, "selection").dropna(subset="language_weights").iloc[1:]
    told = (f"{row.condition} {row.language_weights}, outside {row.outside:g}" for row in table.itertuples())
    return "; ".join(told) or "nothing"


def moved(folder):
    """The shares of change in thirds, and whether they agree with the paper's account."""
    table = rows(folder, "change_by_third")
    means = table.groupby(["expert", "third"], sort=False).share.mean().unstack()
    told = "; ".join(
        f"{name} {', '.join(f'{third} {share:.2f}' for third, share in part.items())}"
        for name, part in means.iterrows()
    )
    ends = means.drop(index="math")
    agrees = (ends.middle < means.middle["math"]).all()
    verdict = "which agrees" if agrees else "which does not agree"
    return (
        f"{told} (shares of the absolute change). The papers say that math moves the middle most and language the ends"
        f" (B), {verdict} in so far as {'every' if agrees else 'not every'} language expert puts a smaller share than"
        f" the math expert in the middle ({table.seed.nunique()} seed(s); not tested here)"
    )


if __name__ == "__main__":
    with atomic_file(ROOT / "FINDINGS.md") as file:
        file.write(text())
