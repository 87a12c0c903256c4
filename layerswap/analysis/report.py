"""FINDINGS.md: each claim in one line, from the result files of all profiles, so that it cannot drift."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from layerswap.analysis.comparisons import AGREES, ANSWER_LOSS, DISAGREES, EXACT_MATCH, OPEN, Claim, Comparison
from layerswap.analysis.statistics import MEASURES, NATS, pooled_rows
from layerswap.analysis.titles import number_of
from layerswap.files import FIGURES

# Results that no comparison reads, with a column that they must have (files of older versions may lack it).
OTHER_RESULTS = {"mgsm": "pairs", "selection": "same_as", "parameter_change": "seed", "change_by_third": "ratio",
                 "held_out_loss": "difference"}  # fmt: skip
UNITS = {EXACT_MATCH: ("points", 100, 1), ANSWER_LOSS: ("nats a token", 1, 3)}  # measure -> unit, factor, digits
HEAD = """# Findings

Written by `make all` from the result files in `figures/`; do not edit. Each claim is linked to its figure; the csv
beside it holds its numbers and those of each language. Differences are paired over the same problems and pooled over
the profile's languages, with a 95 % interval; n counts answers. *Clear* means p < 0.05 after Holm's correction over the
pooled rows of the figure; *not clear* comes with the minimum detectable effect of the sample (power 80 %, before
correction). *By language*: + or - where that language's difference is clear (Holm over all rows of single languages), 0
where it is not. With one pair of experts a finding is about that pair; with several the interval generalises to unseen
pairs. The last column sets a finding beside the papers' facts and their [labels](docs/labels.md); a finding of the lab
is about a twelve-layer model in a built-in world, not about the papers' models. The non-layer parameters (embeddings,
final norm, head) have one weight in each notebook, but not the same in 04 (ends) and 05 (methods).
"""
Sections = Mapping[str, Sequence[Comparison]]  # title -> what is compared


def report_text(
    profiles: Mapping[str, Sections], figures: Path = FIGURES, doses: Sequence[str] = (), rankings: Sequence[str] = ()
) -> str:
    """The whole file, over the profiles that have all their results.

    Args:
        profiles: name -> what it compares. Its results lie in ``figures``/<name>.
        doses: profiles that ran the dose-response alone.
        rankings: profiles that ran the ranking alone.
    """
    complete = {name: sections for name, sections in profiles.items() if is_complete(figures / name, sections)}
    lines = [HEAD]
    for name, sections in complete.items():
        lines += profile_section(figures / name, sections)
    for name in doses:
        lines += dose_section(figures / name)
    for name in rankings:
        lines += ranking_section(figures / name)
    lines += [
        f"Profile {name} is left out: its results are not complete, or of an older version: make all PROFILE={name}.\n"
        for name in profiles
        if name not in complete
    ]
    return "\n".join(lines) + "\n"


def is_complete(folder: Path, sections: Sections) -> bool:
    """Whether a profile has every result file that the report reads, as this version writes it."""
    figures = {comparison.figure for comparisons in sections.values() for comparison in comparisons}
    return all((folder / f"{name}.csv").is_file() for name in {*figures, *OTHER_RESULTS}) and all(
        column in read_results(folder, name) for name, column in OTHER_RESULTS.items()
    )


def profile_section(folder: Path, sections: Sections) -> Iterator[str]:
    """The lines about one profile."""
    levels = read_results(folder, "mgsm")
    languages, pairs = levels.language.unique(), number_of(levels.pairs.max(), "pair")
    seeds = sorted(read_results(folder, "parameter_change").seed.unique())
    yield f"## Profile {folder.name}\n"
    word = "seeds" if len(seeds) > 1 else "seed"
    yield f"Languages {', '.join(languages)}; {pairs} of experts; {word} {', '.join(map(str, seeds))}.\n"
    for title, comparisons in sections.items():
        yield f"### {title}\n"
        yield "| claim | difference (95 % interval) | n | verdict | by language | the papers |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for comparison in comparisons:
            for claim in comparison.claims:
                yield from claim_rows(folder, comparison.figure, claim)
        yield ""
    yield f"Other widths: {format_other_widths(folder)}.\n"
    yield f"Chosen on validation problems: {format_selection(folder)}.\n"
    yield f"Loss of the first seed's experts on held-out text, against the base: {format_learning(folder)}.\n"
    yield f"Where the experts changed: {format_weight_change(folder)}.\n"


def dose_section(folder: Path) -> Iterator[str]:
    """The lines about a profile's dose-response: a row for each dose and language, a column for each comparison."""
    table, transplants = read_results(folder, "dose_response"), read_results(folder, "transplants")
    lines, keys = list(table.line.unique()), ["dose", "amount", "language"]
    yield f"## Profile {folder.name}: where layer swapping can help\n"
    yield (
        f"Points with 95 % intervals over pairs of experts; n counts answers; + or -: clear, 0: not clear, after Holm's"
        f" correction over all rows. [Figure](figures/{folder.name}/dose_response.png).\n"
    )
    yield f"| dose | amount | language | n | {' | '.join(lines)} |"
    yield "| --- | --- | --- | --- |" + " --- |" * len(lines)
    for values, rows in table.groupby(keys, sort=False):
        by_line = {row.line: row for row in rows.itertuples()}
        cells = [format_marked(by_line[line], 100, 1) for line in lines]
        yield f"| {' | '.join(map(str, values))} | {rows.n.iloc[0]} | {' | '.join(cells)} |"
    yield "\nThe language expert's task vector added to the math expert, in some layers, against the math expert:"
    rows = [f"{row.condition} {format_estimate(row, 100, 1)}" for row in pooled_rows(transplants).itertuples()]
    yield f"{'; '.join(rows)} points ([figure](figures/{folder.name}/transplants.png)).\n"


def ranking_section(folder: Path) -> Iterator[str]:
    """The lines about a profile's ranking: levels against the floors, and every comparison in all measures."""
    levels = read_results(folder, "ranking_levels")
    yield f"## Profile {folder.name}: alternatives ranked\n"
    yield (
        "Percent with 95 % intervals over pairs of experts. *Text-blind* is the floor: the question without its words."
        f" [Figure](figures/{folder.name}/ranking_levels.png).\n"
    )
    names = list(levels.condition.unique())
    yield f"| measure | language | n | {' | '.join(names)} |"
    yield "| --- | --- | --- |" + " --- |" * len(names)
    for values, rows in levels.groupby(["measure", "language"], sort=False):
        by_name = {row.condition: row for row in rows.itertuples()}
        shares = [
            f"{100 * row.accuracy:.0f} ({100 * row.low:.0f}, {100 * row.high:.0f})" if row else ""
            for row in map(by_name.get, names)
        ]
        yield f"| {' | '.join(values)} | {rows.n.iloc[0]} | {' | '.join(shares)} |"
    for figure, text in (("ranking", "Minus the math expert"), ("ranking_ablations", "Ablations and controls")):
        table = read_results(folder, figure)
        languages = list(table.language.unique())
        yield (
            f"\n{text}, in points (log probability: nats); + or -: clear, 0: not clear, after Holm's correction within"
            f" a measure. [Figure](figures/{folder.name}/{figure}.png).\n"
        )
        yield f"| comparison | measure | {' | '.join(languages)} |"
        yield "| --- | --- |" + " --- |" * len(languages)
        for (condition, measure), rows in table.groupby(["condition", "measure"], sort=False):
            by_language = {row.language: row for row in rows.itertuples()}
            factor, digits = (1, 3) if MEASURES[measure] in NATS else (100, 1)
            cells = [format_marked(by_language[language], factor, digits) for language in languages]
            yield f"| {condition} | {measure} | {' | '.join(cells)} |"
    yield ""


def read_results(folder: Path, name: str) -> pd.DataFrame:
    """A result file as a frame."""
    return pd.read_csv(folder / f"{name}.csv")


def claim_rows(folder: Path, figure: str, claim: Claim) -> Iterator[str]:
    """A claim as rows of the table, pooled if there are several languages; none if its condition was not scored."""
    table = read_results(folder, figure)
    if "measure" in table:
        table = table[table.measure.str.startswith(claim.measure)]
    if claim.row.endswith("*"):
        rows = table[table.condition.str.startswith(claim.row[:-1])]
    else:
        rows = table[table.condition == claim.row]
    for condition, by_language in rows.groupby("condition", sort=False):
        single = by_language[by_language.language != "pooled"]
        directions = ", ".join(f"{row.language} {'0+-'[direction(row)]}" for row in single.itertuples())
        link = f"[{claim.label.format(condition)}](figures/{folder.name}/{figure}.png)"
        pooled = list(by_language.itertuples())[-1]
        yield f"| {link} | {format_difference(pooled, claim)} | {directions} | {format_fact(pooled, claim)} |"


def direction(row: Any) -> int:
    """1 or -1 where a difference is clear, 0 where it is not."""
    return int(row.p_holm < 0.05) * (1 if row.difference > 0 else -1)


def format_difference(row: Any, claim: Claim) -> str:
    """Difference with interval, number of answers and verdict, as three cells."""
    unit, factor, digits = UNITS[claim.measure]
    difference = f"{format_estimate(row, factor, digits)} {unit}"
    verdict = f"clear (p {row.p_holm:.2g})" if direction(row) else "not clear"
    effect = row.minimum_detectable_effect
    if not direction(row) and effect == effect:
        verdict += f"; minimum detectable effect {factor * effect:.{digits}f}"
    return f"{difference} | {row.n} | {verdict}"


def format_estimate(row: Any, factor: float = 1, digits: int = 3) -> str:
    """Difference with its 95 % interval, which too few answers do not have."""
    interval = f"{factor * row.low:+.{digits}f}, {factor * row.high:+.{digits}f}" if row.low == row.low else "too few"
    return f"{factor * row.difference:+.{digits}f} ({interval})"


def format_marked(row: Any, factor: float, digits: int) -> str:
    """``format_estimate``, and + or - where it is clear, else 0."""
    return f"{format_estimate(row, factor, digits)} {'0+-'[direction(row)]}"


def format_fact(row: Any, claim: Claim) -> str:
    """What the result says of the papers' fact, and the fact."""
    return f"{claim.fact.verdicts[direction(row) + 1]}: {claim.fact.text}" if claim.fact else ""


def format_learning(folder: Path) -> str:
    """What each expert's loss fell by."""
    rows = read_results(folder, "held_out_loss").itertuples()
    return "; ".join(f"{row.language} {format_estimate(row)}" for row in rows) or "not measured, for want of text"


def format_selection(folder: Path) -> str:
    """The language weights that were chosen, layer by layer."""
    table = read_results(folder, "selection")
    plans, trials = table.dropna(subset="language_weights").iloc[1:], table.dropna(subset="objective")
    texts = [
        f"{row.condition} {row.language_weights}, non-layer {row.non_layer_weight:g}"
        + (f" (the same model as {row.same_as})" if isinstance(row.same_as, str) else "")
        for row in plans.itertuples()
    ]
    if len(trials):
        first = trials.loc[trials.objective.idxmax()]  # of equals the first
        texts[-1] += f" (found in generation {first.generation:.0f} of {trials.generation.max():.0f})"
    return "; ".join(texts) or "nothing"


def format_other_widths(folder: Path) -> str:
    """How many widths of the map differ clearly from the default ones, and how far."""
    table = read_results(folder, "width_paired")
    if table.empty:
        return "none but the default ones were scored"
    table = pooled_rows(table)
    directions = [direction(row) for row in table.itertuples()]
    lowest, highest = (table.loc[index] for index in (table.difference.idxmin(), table.difference.idxmax()))
    span = " to ".join(f"{100 * row.difference:+.1f} ({row.condition})" for row in (lowest, highest))
    return (
        f"of {len(table)} others in the [figure](figures/{folder.name}/width_paired.png), {directions.count(-1)} are"
        f" clearly below the default ones and {directions.count(1)} clearly above, {span} points"
        f" (n = {table.n.iloc[0]} each). The papers say that results depend little on the exact widths (B):"
        f" {DISAGREES if any(directions) else OPEN}"
    )


def format_weight_change(folder: Path) -> str:
    """The change in thirds against their share of the weights, and whether it agrees with the papers' account."""
    table = read_results(folder, "change_by_third")
    means = table.groupby(["expert", "third"], sort=False).ratio.mean().unstack(sort=False)
    text = "; ".join(
        f"{name} {', '.join(f'{third} {ratio:.2f}' for third, ratio in thirds.items())}"
        for name, thirds in means.iterrows()
    )
    languages = means.drop(index="math")
    agrees = means.loc["math"].idxmax() == "middle" and (languages.idxmin(axis=1) == "middle").all()
    return (
        f"{text} (share of the absolute change, by the third's share of the weights). The papers say that math"
        f" changes the middle most and language the ends (B): {AGREES if agrees else DISAGREES}"
        f" ({number_of(table.seed.nunique(), 'seed')}; 01_experts tests it where there are several)"
    )
