"""FINDINGS.md: each claim in one line, written from the result files of all profiles, so that it cannot drift.

``python -m layerswap.findings`` reads figures/<profile>/*.csv and writes the file anew.
"""

import pandas as pd

from layerswap.paths import FIGURES, ROOT, atomic_file

LEFT_OUT = {"ci"}  # profiles that only show that the notebooks run
POINTS, NATS = ("points", 100, 1), ("nats a token", 1, 3)  # unit, factor, digits
# What is claimed: file, condition, reference ("" in a contrast), unit, and the paper's labelled fact it bears on: the
# signs that agree with it (0: no clear difference), and the fact.
NO_GAIN, BEATS = "the transition zone showed no significant gain (B)", "merged models beat experts and other merges (A)"
MORE, LESS, SWAP = ((0, 1), NO_GAIN), ((0, -1), NO_GAIN), ((1,), BEATS)
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
        ("control: roles reversed, against neither", "controls", "roles reversed", "neither", POINTS, None),
    ]),
    ("Methods on MGSM", [
        *((f"{name}, against the math expert", "mgsm_paired", name, "math expert", POINTS, fact) for name, fact in (
            ("base", None), ("language expert", None), ("joint SFT", None), ("freeze in training", None),
            ("revert after training", None), ("soup", None), ("task arithmetic", None), ("TIES", None),
            ("layer swap", SWAP), ("transition removed", None), ("only bottom", None), ("widths chosen", None),
            ("searched weights", None))),
        *((f"{name}, against the soup", "mgsm_soup", name, "soup", POINTS, fact) for name, fact in (
            ("layer swap", SWAP), ("only bottom", None), ("widths chosen", None), ("searched weights", None))),
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
    names = {"mgsm", "mgsm_maximum", "parameter_change", "change_by_third", "held_out_loss"}
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
            found = result(folder, *claim[1:5])
            if found is not None:
                yield line(claim[0], found, *claim[4:])
        yield ""
    yield f"Learned by the experts, loss on held-out text against the base: {learned(folder)}.\n"
    yield f"Where the experts moved: {moved(folder)}.\n"


def rows(folder, name):
    """A result file as a frame."""
    return pd.read_csv(folder / f"{name}.csv")


def result(folder, name, condition, reference, unit):
    """The row of a claim, pooled if there are several languages; None if the condition was not scored."""
    table = rows(folder, name)
    if "{" in condition:
        condition = condition.format(least=table.width.min(), most=table.width.max())
    if "measure" in table:
        table = table[table.measure.str.startswith("exact" if unit is POINTS else "answer")]
    kept = (table.condition == condition) & (table.reference.fillna("") == reference if reference else True)
    last = table[kept & table.language.isin(["pooled"] if (table.language == "pooled").any() else table.language)]
    return last.iloc[0] if len(last) else None


def line(claim, row, unit, fact):
    """A claim as a row of the table."""
    name, factor, digits = unit
    told = "{:+.{d}f} ({:+.{d}f}, {:+.{d}f}) {}".format(
        *(factor * row[each] for each in ("difference", "low", "high")), name, d=digits
    )
    clear = row.p_holm < 0.05
    sign = int(clear) * (1 if row.difference > 0 else -1)
    verdict = (
        f"clear (p {row.p_holm:.1g})" if clear else f"not clear; {factor * row.detectable:.{digits}f} would have shown"
    )
    paper = ""
    if fact:
        paper = f"{'agrees' if sign in fact[0] else 'does not agree' if clear else 'not shown'}: {fact[1]}"
    return f"| {claim} | {told} | {row.n} | {verdict} | {paper} |"


def learned(folder):
    """What each expert's loss fell by."""
    table = rows(folder, "held_out_loss")
    told = (f"{row.language} {row.difference:+.3f} ({row.low:+.3f}, {row.high:+.3f})" for row in table.itertuples())
    return "; ".join(told)


def moved(folder):
    """The shares of change in thirds, and whether they agree with the paper's account."""
    means = rows(folder, "change_by_third").groupby(["expert", "third"], sort=False).share.mean().unstack()
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
        " the math expert in the middle"
    )


if __name__ == "__main__":
    with atomic_file(ROOT / "FINDINGS.md") as file:
        file.write(text())
