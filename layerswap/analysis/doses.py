"""Comparisons by dose: how much of what a gain could depend on there is, beside how large the gain is.

The tables have the columns of ``statistics.compare``, and dose (what is varied), amount (how much of it, as text) and
line (what is compared), as ``plots.dose_panels`` draws them.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from layerswap.analysis.statistics import compare, correct_holm

MOST_WORDS = 3  # unknown words of a question that are told apart
SCALED = {"language": "language expert's task vector", "both": "both experts' task vectors"}


def dose_table(
    frame: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]], unknown_words: Sequence[int | None]
) -> pd.DataFrame:
    """All comparisons of the dose-response, language by language.

    Args:
        frame: results.
        contrasts: name -> condition -> factor. A name that ends in ", language x 0.5" or ", both x 0.5" is of experts
            whose task vectors were multiplied.
        unknown_words: of the question of each row, how many words the base has never met; None: not known, and that
            dose is left out.

    Returns:
        Rows of ``compare`` for each dose, each amount, and each language that has at least two problems of it; p is
        corrected over all of them.
    """
    unscaled = {name: weights for name, weights in contrasts.items() if "," not in name}
    tables = []
    if None not in unknown_words:
        n_words = pd.Series(unknown_words, frame.index).clip(upper=MOST_WORDS)
        for (count, _), answers in frame.groupby([n_words, "language"]):
            if answers.id.nunique() > 1:
                amount = f"{count}" if count < MOST_WORDS else f"{MOST_WORDS} or more"
                tables.append(compare(answers, unscaled, pooled=False).assign(dose="words never met", amount=amount))
    table = compare(frame, contrasts, pooled=False)
    table[["what", "scale"]] = table.condition.str.extract(r", (\w+) x ([\d.]+)$")
    for what, dose in SCALED.items():
        rows = table[table.what.fillna(what) == what].fillna({"scale": "1"})
        rows = rows.sort_values("scale", key=lambda scale: scale.astype(float), kind="stable")
        tables.append(rows.assign(dose=dose, amount="× " + rows.scale).drop(columns=["what", "scale"]))
    table = pd.concat(tables, ignore_index=True)
    return correct_holm(table.assign(line=table.condition.str.partition(",")[0]))
