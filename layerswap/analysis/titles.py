"""What a figure found, in one sentence from its table: its title, so that a picture is not read for more than it shows.

*Clear* is p < 0.05 after Holm's correction over the figure, as in FINDINGS.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import pandas as pd

from layerswap.analysis.statistics import pooled_rows
from layerswap.merging.plans import Plan
from layerswap.tasks.extraction import LANGUAGES

LANGUAGE_NAMES = {code: language["name"] for code, language in LANGUAGES.items()}
CLEAR = 0.05
MOST_NAMES = 4  # in one list
MOST_BANDS = 7  # of layers, in words
OF_INTEREST = ("base", "language expert", "math expert", "math expert, text-blind", "soup", "layer swap")


def join_names(names: Iterable[str]) -> str:
    """Names, which may hold commas, as a list, of many only the first: "a; b; c; d; and 3 more"."""
    every = list(dict.fromkeys(names))
    more = [f"and {len(every) - MOST_NAMES} more"] if len(every) > MOST_NAMES else []
    return "; ".join([*every[:MOST_NAMES], *more])


def language_name(code: str) -> str:
    """A language's English name; "pooled" and what else is no code stay as they are."""
    return LANGUAGE_NAMES.get(code, code)


def number_of(n: int, noun: str) -> str:
    """So many of something: "one pair", "9 pairs"."""
    return f"one {noun}" if n == 1 else f"{n} {noun}s"


def difference_title(
    table: pd.DataFrame, reference: str = "", higher_is_better: bool = True, labels: Mapping[str, str] | None = None
) -> str:
    """Which conditions differ clearly, over the languages pooled (or in the only one).

    Args:
        table: of ``statistics.compare``.
        reference: what all differences are taken from, in words; empty: each row has its own.
        higher_is_better: whether a difference above zero is an improvement.
        labels: condition -> what its row is called, if not by its name.
    """
    if table.empty:
        return "Nothing to compare"
    rows = pooled_rows(table)
    clear = rows[rows.p_holm < CLEAR].replace({"condition": dict(labels or {})})
    above, below = clear.condition[clear.difference > 0], clear.condition[clear.difference < 0]
    lists, ending = {"above": above, "below": below}, " zero"
    if reference:
        ending = f" than {reference}"
        lists = dict(zip(("better", "worse"), (above, below) if higher_is_better else (below, above), strict=True))
    texts = [f"{word}{ending}: {join_names(names)}" for word, names in lists.items() if len(names)]
    if not texts:
        return f"Nothing is clearly {' or '.join(lists)}{ending}"
    return f"Clearly {'. Clearly '.join(texts)}"


def level_title(table: pd.DataFrame) -> str:
    """What the conditions of interest reach, as means over the languages, and the highest of all.

    English is left out, as it is no target language.

    table: of ``statistics.accuracy``.
    """
    table = table[table.language != "en"] if (table.language != "en").any() else table
    means = 100 * table.groupby("condition", sort=False).accuracy.mean()
    texts = [f"{name} {means[name]:.0f} %" for name in OF_INTEREST if name in means]
    highest = means.idxmax()
    if not any(means.get(name, -1) >= means[highest] for name in OF_INTEREST):
        texts.append(f"highest {highest} {means[highest]:.0f} %")
    text = "; ".join(texts)
    over = f"; mean of {table.language.nunique()} target languages" if table.language.nunique() > 1 else ""
    return f"{text[:1].upper()}{text[1:]}{over}"


def steps_title(table: pd.DataFrame) -> str:
    """How far the layer swap is from the math expert in each group of problems.

    table: of ``error_analysis.accuracy_by_steps``.
    """
    wide = 100 * table.pivot(index="steps", columns="condition", values="mean").loc[table.steps.unique()]
    if not {"layer swap", "math expert"} <= set(wide):
        return ""
    texts = [f"{name} {points:+.0f}" for name, points in (wide["layer swap"] - wide["math expert"]).items()]
    return f"Layer swap minus math expert, points: {'; '.join(texts)}"


def bands(layers: Iterable[float]) -> list[tuple[float, int]]:
    """Neighbouring layers of equal weight: [(language weight, number of layers)], from the bottom."""
    return [(weight, len(list(equal))) for weight, equal in groupby(layers)]


def plan_text(plan: Plan) -> str:
    """A plan in words: "from the bottom 2 language, 1 averaged, 8 math, 1 language layers; non-layer weight 0.5".

    Of many bands only how many layers there are of each source.
    """
    sources = [{0.0: "math", 1.0: "language"}.get(weight, "averaged") for weight in plan.layers]
    numbers = [f"{len(list(equal))} {source}" for source, equal in groupby(sources)]
    start = "from the bottom "
    if len(numbers) > MOST_BANDS:
        start, numbers = "", [f"{sources.count(source)} {source}" for source in sorted(set(sources))]
    return f"{start}{', '.join(numbers)} layers; non-layer weight {plan.non_layer_weight:g}"


def provenance_title(sources: pd.Series) -> str:
    """How many tensors came from where. sources: of a manifest's tensors."""
    by_source = sources.replace("math+language", "averaged").value_counts()
    texts = [f"{count} {source}" for source, count in by_source.items()]
    return f"Where the {len(sources)} tensors came from: {', '.join(texts)}"


def selection_title(plans: Sequence[Plan], trials: pd.DataFrame, criterion: str) -> str:
    """What validation problems chose by a criterion. plans: the default one first. trials: of a search, or empty."""
    if len(plans) == 1:
        return "Nothing was chosen"
    text = f"Chosen on validation problems: {plan_text(plans[1])}"
    if len(trials):
        factor, unit = (100, "%") if criterion == "exact match" else (-1, "nats a token")
        first, last = (factor * value for value in (trials.best.iloc[0], trials.best.iloc[-1]))
        text += f". The search went from {first:.3g} to {last:.3g} {unit} there"
    return text


def map_title(table: pd.DataFrame) -> str:
    """How many widths differ clearly from the default ones. table: columns is_clear, language."""
    n = int(table.is_clear.sum())
    text = f"{n} of {len(table)} cells {'differs' if n == 1 else 'differ'}" if n else "No cell differs"
    return f"{text} clearly from the default widths in exact match"


def change_title(table: pd.DataFrame) -> str:
    """The matrix that each expert moved most. table: of ``experts.weight_change``, inside the layers."""
    table = table.reset_index(drop=True)
    rows = table.loc[table.groupby("expert", sort=False).relative.idxmax()]
    texts = [f"{language_name(row.expert)} {row.matrix} in layer {row.layer}" for row in rows.itertuples()]
    return f"Moved most: {'; '.join(texts)}"


def thirds_title(table: pd.DataFrame) -> str:
    """Where each expert changed most for its weights. table: of ``experts.thirds``, with a column ``ratio``."""
    means = table.groupby(["expert", "third"], sort=False).ratio.mean().unstack(sort=False)
    texts = [f"{language_name(name)} {row.idxmax()} ({row.max():.2f})" for name, row in means.iterrows()]
    return f"Most change for its weights: {', '.join(texts)}"


def held_out_title(table: pd.DataFrame) -> str:
    """Which texts an expert does not clearly know better than its base."""
    if table.empty:
        return "Nothing was measured, for want of text"
    unclear = table.language[~(table.high < 0)]
    if unclear.empty:
        return "Each expert knows the text of its subject better than its base"
    return f"Not clearly better known than by the base: {join_names(unclear)}"


def error_title(table: pd.DataFrame) -> str:
    """The layer swap's most frequent error. table: [methods, error classes], in percent of a method's answers."""
    name = "layer swap" if "layer swap" in table.index else table.index[-1]
    percent = table.loc[name]
    errors = percent.drop("correct", errors="ignore")
    text = f"{name}: {percent.get('correct', 0):.0f} % correct"
    return f"{text}, most frequent error: {errors.idxmax()} ({errors.max():.0f} %)" if errors.any() else text


def agreement_title(table: pd.DataFrame) -> str:
    """The two methods that agree most. table: of ``error_analysis.agreement``."""
    pairs = [(table.iloc[i, j], table.index[j], table.index[i]) for i in range(len(table)) for j in range(i)]
    not_blank = [pair for pair in pairs if pair[0] == pair[0]]
    if not not_blank:
        return "Too few right answers to correlate"
    phi, first, second = max(not_blank)
    return f"Most alike: {first} and {second} ({phi:.2f})"


def dose_title(table: pd.DataFrame) -> str:
    """At which doses the layer swap lies clearly above both others. table: of ``doses.dose_table``."""
    rows = table[table.line.str.startswith("layer swap")]
    is_above = (rows.p_holm < CLEAR) & (rows.difference > 0)
    by_dose = is_above.groupby([rows.language, rows.dose, rows.amount], sort=False).agg(["all", "size"])
    doses = [f"{dose} {amount} ({language_name(language)})" for (language, dose, amount), row in by_dose.iterrows()
             if row["all"] and row["size"] > 1]  # fmt: skip
    return f"Layer swap clearly above both math expert and soup: {join_names(doses) or 'at no dose'}"


def layer_title(table: pd.DataFrame) -> str:
    """Which single layers make a clear difference in the first measure, and where."""
    rows = table[table.measure == table.measure.iloc[0]]
    clear = rows[rows.p_holm < CLEAR]
    texts = []
    for word, sign in (("better", 1), ("worse", -1)):
        names = [f"{row.condition} ({language_name(row.language)})" for row in clear.itertuples()
                 if sign * row.difference > 0]  # fmt: skip
        texts += [f"{word} with {join_names(names)}"] if names else []
    return f"{rows.measure.iloc[0]}: {'clearly ' + '; '.join(texts) if texts else 'no single layer is clear'}"
