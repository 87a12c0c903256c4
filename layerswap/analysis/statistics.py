"""Accuracies with n and a 95 % interval, and comparisons paired over the same problems.

Results are frames with one row an answer: condition, language, math_seed, language_seed (the pair of experts), id (the
problem) and what was measured. With one pair of experts the pair is fixed, and an interval generalises to unseen
problems. With several, math seeds, language seeds and problems all count as random samples, and an interval generalises
to unseen pairs too (``crossed_random_effects``). A hierarchical bootstrap, which resamples seeds and problems, would
need more than three seeds for that: its 95 % intervals cover about 80 % (tests/test_statistics.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import nan, prod, sqrt
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from layerswap.analysis.comparisons import against
from layerswap.errors import UserError

SEEDS = ["math_seed", "language_seed"]
PROBLEMS = 2  # the axis of problems in [math seeds, language seeds, problems]


# What is measured -> its column: exact match; whether the whole solution is right, where the task can tell; the loss of
# the gold answer; and where alternatives were ranked, whether the right one comes first (calibrated: after taking away
# what the model likes whatever the question) and how probable it is.
MEASURES = {
    "exact match": "correct", "whole solution": "whole_solution", "answer loss, nats a token": "loss",
    "ranked first": "ranked", "ranked first, calibrated": "calibrated",
    "log probability of the right one": "log_probability",
}  # fmt: skip
BINARY = ("correct", "ranked", "calibrated")
CONTRAST_COLUMNS = ["n", "difference", "low", "high", "b", "c", "p", "minimum_detectable_effect"]
NATS = ("loss", "log_probability")  # all other measures count what is right


def is_higher_better(column: str) -> bool:
    """Whether a difference above zero is an improvement, in a measure by its column of results."""
    return column != "loss"


class MeanEstimate(NamedTuple):
    """A mean with its standard error and the degrees of freedom of that."""

    mean: float
    standard_error: float
    degrees_of_freedom: float


def check_complete(
    frame: pd.DataFrame, conditions: Iterable[str], languages: Iterable[str], n_pairs: int, n_problems: int
) -> None:
    """UserError unless there is one answer for each condition, language, pair of experts and problem, and no other.

    Args:
        frame: results.
        conditions: names that were to be scored.
        languages: codes that were to be scored.
        n_pairs: pairs of experts.
        n_problems: problems of each language.

    Raises:
        UserError: names the first condition that lacks answers, has one twice, or was not requested.
    """
    keys = ["condition", "language", *SEEDS, "id"]
    if frame.duplicated(keys).any():
        duplicate = ", ".join(map(str, frame[frame.duplicated(keys)].iloc[0][keys]))
        raise UserError(f"results: found the answer of {duplicate} twice, expected it once")
    sizes = frame.groupby(["condition", "language"]).size()
    expected = list(product(conditions, languages))
    for condition, language in expected:
        n_answers = sizes.get((condition, language), 0)
        if n_answers != n_pairs * n_problems:
            raise UserError(f"results: condition {condition!r} has {n_answers} answers in {language},"
                            f" expected {n_pairs} pairs of experts times {n_problems} problems")  # fmt: skip
    if extra := sizes.keys().difference(expected).tolist():
        raise UserError(f"results: found {' in '.join(extra[0])}, which was not requested")


def crossed_random_effects(values: np.ndarray) -> MeanEstimate:
    """The mean of balanced crossed random effects, with its standard error.

    The variance of the grand mean is the sum of all mean squares, less those of even interactions (analysis of variance
    of balanced crossed random effects; Searle, Casella and McCulloch, 1992), and at least what the problems alone give.
    Degrees of freedom are Satterthwaite's, and at least those of the smallest factor: as mean squares are subtracted,
    they could fall below it, which gives intervals wider than any outcome.

    Args:
        values: [math seeds, language seeds, problems]; a factor with a single level is fixed.

    Returns:
        The estimate; of one problem, which says nothing of others, the mean alone (nan for the rest).
    """
    factors = [axis for axis, levels in enumerate(values.shape) if levels > 1]
    mean = values.mean()
    if PROBLEMS not in factors:
        return MeanEstimate(mean, nan, nan)
    squares, degrees = {}, {}  # by term, a main effect (one factor) or an interaction (several)
    for term in subsets(factors)[1:]:
        effect: Any = 0.0
        for factors_kept in subsets(term):
            others = tuple(axis for axis in range(values.ndim) if axis not in factors_kept)
            effect = effect + (-1) ** (len(term) - len(factors_kept)) * values.mean(axis=others, keepdims=True)
        degrees[term] = prod(values.shape[axis] - 1 for axis in term)
        squares[term] = (effect**2).sum() * values.size / effect.size / degrees[term]
    variance = sum((-1) ** (len(term) + 1) * square for term, square in squares.items())
    of_problems = squares[PROBLEMS,]
    if variance <= of_problems or len(factors) == 1:
        return MeanEstimate(mean, sqrt(of_problems / values.size), degrees[PROBLEMS,])
    satterthwaite = variance**2 / sum(square**2 / degrees[term] for term, square in squares.items())
    return MeanEstimate(mean, sqrt(variance / values.size), max(satterthwaite, min(degrees.values())))


def subsets(items: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets, the smallest first: the empty one, then those of one item."""
    return [subset for size in range(len(items) + 1) for subset in combinations(items, size)]


def paired_arrays(frame: pd.DataFrame, weights: Mapping[str, float], column: str) -> dict[str, np.ndarray]:
    """A weighted sum of conditions for each problem and pair of experts.

    Args:
        frame: results.
        weights: condition -> factor.
        column: what is summed.

    Returns:
        Language -> [math seeds, language seeds, problems].

    Raises:
        UserError: the conditions were not all scored on the same problems and pairs.
    """
    seeds = [seed for seed in SEEDS if seed in frame]
    rows = frame[frame.condition.isin(list(weights))]
    wide = rows.pivot(index=["language", *seeds, "id"], columns="condition", values=column)
    conditions = " and ".join(map(repr, weights))
    if missing := set(weights) - set(wide.columns):
        raise UserError(f"condition {min(missing)!r} is not in the results")
    if wide.isna().any(axis=None):
        raise UserError(f"{conditions} were not scored on the same problems")
    sums = (wide[list(weights)].astype(float) * list(weights.values())).sum(axis=1)
    arrays = {}
    for language in dict.fromkeys(frame.language):
        if language not in sums.index.get_level_values("language"):
            continue
        of_language = sums[language]
        levels = [of_language.index.get_level_values(name).nunique() for name in [*seeds, "id"]]
        if prod(levels) != len(of_language):
            raise UserError(f"{conditions}: {language} lacks answers of some pair of experts")
        shape = levels if seeds else [1, 1, *levels]
        arrays[language] = of_language.to_numpy().reshape(*shape)  # the pivot sorted all three
    return arrays


def compare(
    frame: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]], column: str = "correct", pooled: bool = True
) -> pd.DataFrame:
    """All contrasts of one figure, with p corrected after Holm over them.

    There are two families: the comparisons pooled over languages, which answer the question, and those of each
    language, which say where. Each family errs at most 5 times in 100 when nothing differs. With one language there is
    one family.

    Args:
        frame: results.
        contrasts: row name -> condition -> factor, such as {"soup": {"soup": 1, "math expert": -1}}.
        column: what is compared.
        pooled: whether there is a row over all languages.

    Returns:
        Rows of ``contrast`` (none without contrasts), with columns ``reference`` (the condition that the row's own is
        compared with; "" for any other contrast) and ``p_holm``.
    """
    tables = [contrast(frame, name, weights, column, pooled) for name, weights in contrasts.items()]
    if not tables:
        return pd.DataFrame(columns=["condition", "reference", "language", *CONTRAST_COLUMNS, "p_holm"])
    table = pd.concat(tables, ignore_index=True)
    table.insert(1, "reference", [reference_of(name, contrasts[name]) for name in table.condition])
    return correct_holm(table)


def compare_measures(frame: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]]) -> dict[str, pd.DataFrame]:
    """``compare`` in each measure that the results have, of ``MEASURES``: name -> table."""
    return {measure: compare(frame, contrasts, column) for measure, column in measures_of(frame).items()}


def measures_of(frame: pd.DataFrame) -> dict[str, str]:
    """Those of ``MEASURES`` that all results have."""
    return {measure: column for measure, column in MEASURES.items() if column in frame and frame[column].notna().all()}


def compare_all(
    answered: pd.DataFrame, ranked: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]]
) -> dict[str, pd.DataFrame]:
    """``compare`` of the exact match of answers, and of each measure of ranked alternatives: name -> table.

    Contrasts of conditions that gave no answers are left out of the former. p is corrected within a measure.
    """
    scored = set(answered.condition)
    of_answers = {name: weights for name, weights in contrasts.items() if weights.keys() <= scored}
    return {"exact match": compare(answered, of_answers)} | compare_measures(ranked, contrasts)


def measure_levels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """``accuracy`` of each condition and language, in each measure of ``BINARY``."""
    return {measure: accuracy(frame.assign(correct=frame[column].astype(bool)))
            for measure, column in measures_of(frame).items() if column in BINARY}  # fmt: skip


def reference_of(name: str, weights: Mapping[str, float]) -> str:
    """The condition that ``name`` is compared with, or "" unless the contrast is ``name`` minus one condition."""
    reference = next((condition for condition in weights if condition != name), "")
    return reference if weights == {name: 1, reference: -1} else ""


def paired(
    frame: pd.DataFrame, conditions: Iterable[str], reference: str, column: str = "correct", pooled: bool = True
) -> pd.DataFrame:
    """Each condition minus a reference: ``compare`` of the contrasts that this means."""
    return compare(frame, against(reference, conditions), column, pooled)


def contrast(
    frame: pd.DataFrame, name: str, weights: Mapping[str, float], column: str = "correct", pooled: bool = True
) -> pd.DataFrame:
    """A weighted sum of conditions, paired by problem and pair of experts: a row a language, and one pooled.

    The interval is Student's (``crossed_random_effects``); for two conditions' exact match with one pair, that of
    Bonett and Price (2012) with the exact McNemar test. Languages share problems, so the pooled row takes each
    problem's mean.

    Args:
        frame: results.
        name: of the contrast.
        weights: condition -> factor, such as {"both": 1, "only top": -1, "only bottom": -1, "neither": 1}.
        column: what is compared.
        pooled: whether there is a row over all languages, if there are several.

    Returns:
        Columns condition (``name``), language, n (answers), difference with low and high (95 %), b and c (answers
        above and below zero), p (uncorrected), and minimum_detectable_effect.

    Raises:
        UserError: as in ``paired_arrays``, or languages with different problems, which cannot be pooled.
    """
    values = paired_arrays(frame, weights, column)
    binary = column in BINARY and sorted(weights.values()) == [-1, 1]
    rows = [
        _contrast_row(language, delta, delta.size, binary, binary and delta.shape[:2] == (1, 1))
        for language, delta in values.items()
    ]
    if pooled and len(values) > 1:
        if frame[frame.condition.isin(list(weights))].groupby("language").id.agg(frozenset).nunique() > 1:
            raise UserError(f"{name}: the languages were scored on different problems, which cannot be pooled")
        stacked = np.stack(list(values.values()))  # [languages, math seeds, language seeds, problems]
        rows.append(_contrast_row("pooled", stacked.mean(axis=0), stacked.size, binary))
        rows[-1] |= {"b": int((stacked > 0).sum()), "c": int((stacked < 0).sum())}
    return pd.DataFrame([{"condition": name, **row} for row in rows])


def _contrast_row(language: str, delta: np.ndarray, n: int, binary: bool, exact: bool = False) -> dict[str, Any]:
    """The row of ``contrast`` of one language, from its values [math seeds, language seeds, problems].

    exact: by numbers of problems instead of Student's. Where all problems agree there is no variance to go by: then
    ``binary`` values go by numbers of problems too, and others have no interval.
    """
    mean, error, degrees = crossed_random_effects(delta)
    if exact or (binary and not error > 0):
        problems = delta.mean(axis=(0, 1))  # [problems]
        above, below = int((problems > 0).sum()), int((problems < 0).sum())
        low, high = bonett_price(len(problems), above, below)
        p = float(mcnemar([[0, above], [below, 0]], exact=True).pvalue)
    elif error > 0:
        half = t.ppf(0.975, degrees) * error
        low, high, p = mean - half, mean + half, float(2 * t.sf(abs(mean) / error, degrees))
    else:
        low = high = nan
        p = 1.0
    return {
        "language": language, "n": n, "difference": mean, "low": low, "high": high, "b": int((delta > 0).sum()),
        "c": int((delta < 0).sum()), "p": p, "minimum_detectable_effect": minimum_detectable_effect(error, degrees),
    }  # fmt: skip


def correct_holm(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with p corrected after Holm, in a column p_holm: the pooled rows as one family, all others another."""
    for is_pooled in (True, False):
        family = (table.language == "pooled") == is_pooled
        if family.any():
            table.loc[family, "p_holm"] = multipletests(table.p[family], method="holm")[1]
    return table


def minimum_detectable_effect(standard_error: float, degrees_of_freedom: float) -> float:
    """The true difference that a t test finds with 80 % power at p < 0.05, before any correction."""
    if not standard_error > 0:
        return nan
    return (t.ppf(0.975, degrees_of_freedom) + t.ppf(0.8, degrees_of_freedom)) * standard_error


def bonett_price(n: int, b: int, c: int) -> tuple[float, float]:
    """Bonett and Price's (2012) 95 % interval of a difference of paired proportions.

    Args:
        n: pairs of outcomes.
        b: pairs with a success in the first only.
        c: pairs with a success in the second only.

    Returns:
        (low, high).
    """
    gain, loss = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = norm.ppf(0.975) * sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))
    return gain - loss - half, gain - loss + half


def accuracy(frame: pd.DataFrame, by: Sequence[str] = ("condition", "language")) -> pd.DataFrame:
    """Exact match of each group.

    The interval is Wilson's. With several pairs of experts, which answer the same problems, it is Student's
    (``crossed_random_effects``), at least as wide as Wilson's of so many problems.

    Args:
        frame: results.
        by: columns that make a group.

    Returns:
        Columns of ``by``, k (correct), n, accuracy, low, high.
    """
    by = list(by)
    table = frame.groupby(by, sort=False).correct.agg(k="sum", n="size").reset_index()
    table["accuracy"] = table.k / table.n
    table["low"], table["high"] = proportion_confint(table.k, table.n, method="wilson")
    n_pairs = len(frame[SEEDS].drop_duplicates()) if set(SEEDS) <= set(frame) else 1
    if n_pairs > 1:
        student = mean_interval(frame.assign(correct=frame.correct.astype(float)), "correct", by)
        table["low"], table["high"] = widen_to_wilson(student.low, student.high, table.accuracy, table.n / n_pairs)
    return table


def widen_to_wilson(
    low: pd.Series, high: pd.Series, accuracy: pd.Series, n: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals within [0, 1] that are at least as wide as Wilson's of ``n`` problems, also where they are missing.

    Args:
        low: of intervals of accuracies.
        high: of the same.
        accuracy: fractions that are right.
        n: problems, which need not be whole.

    Returns:
        (low, high).
    """
    lowest, highest = proportion_confint(accuracy * n, n, method="wilson")
    return np.fmax(np.fmin(low, lowest), 0), np.fmin(np.fmax(high, highest), 1)


def pooled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all languages of a table that is not empty, or those of its only one: they come last."""
    return table[table.language == table.language.iloc[-1]]


def summarize(frame: pd.DataFrame, by: Sequence[str] = ("condition", "language")) -> pd.DataFrame:
    """``accuracy`` of each group, how its answers ended, and their losses.

    Args:
        frame: results of ``evaluation.evaluate``.
        by: columns that make a group.

    Returns:
        Columns of ``accuracy``; stops, what may end an answer beside the end token, where anything may; then numbers of
        answers: whole_solution (right from the first step to the number, where the task can tell), truncated (cut off
        at the token limit, or within their thinking), no_answer (without a number), wrong_language, eos and stop_string
        (how they ended), lm_eval_strict and lm_eval_flexible (right by lm-eval's filters); nll_token and nll_byte, the
        answer loss in nats a token and a byte over all problems.
    """
    table = accuracy(frame, by)
    groups = frame.assign(
        truncated=(frame.stop == "length") | (frame.rule == "truncated"), no_answer=frame.value.isna(),
        eos=frame.stop == "eos", stop_string=frame.stop == "stop string",
    ).groupby(list(by), sort=False)  # fmt: skip
    if "stops" in frame and frame.stops.any():
        table["stops"] = groups["stops"].first().to_numpy()
    numbers = ["whole_solution"] if frame.whole_solution.notna().all() else []
    numbers += "truncated no_answer wrong_language eos stop_string lm_eval_strict lm_eval_flexible".split()
    for column in numbers:
        table[column] = groups[column].sum().to_numpy()
    sums = groups[["answer_nll", "answer_tokens", "answer_bytes"]].sum()
    table["nll_token"] = (sums.answer_nll / sums.answer_tokens).to_numpy()
    table["nll_byte"] = (sums.answer_nll / sums.answer_bytes).to_numpy()
    return table


def mean_interval(frame: pd.DataFrame, column: str, by: Sequence[str] = ("condition", "language")) -> pd.DataFrame:
    """Mean of ``column`` in each group, with Student's 95 % interval (``crossed_random_effects``).

    Args:
        frame: results.
        column: what is averaged.
        by: columns that make a group, of one condition and one language.

    Returns:
        Columns of ``by``, n, mean, low, high.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        (values,) = paired_arrays(group, {group.condition.iloc[0]: 1.0}, column).values()
        mean, error, degrees = crossed_random_effects(values)
        half = t.ppf(0.975, degrees) * error
        rows.append([*key, values.size, mean, mean - half, mean + half])
    return pd.DataFrame(rows, columns=[*by, "n", "mean", "low", "high"])


def best_pair(
    frame: pd.DataFrame, by: Sequence[str] = ("condition", "language"), n_resamples: int = 1000
) -> pd.DataFrame:
    """The exact match of the best pair of experts in each group, as the paper is said to report (a reader's account).

    The pair was selected on these very problems, so the figure flatters, the more so the more pairs there are. The
    interval (percentiles of a bootstrap over problems, the best pair selected anew each time) shows the noise and not
    that bias.

    Args:
        frame: results.
        by: columns that make a group.
        n_resamples: of the bootstrap.

    Returns:
        Columns of ``by``, pairs, maximum, maximum_low, maximum_high.
    """
    rng, rows = np.random.default_rng(0), []
    for key, group in frame.groupby(list(by), sort=False):
        correct = group.pivot(index=SEEDS, columns="id", values="correct").to_numpy(float)  # [pairs, problems]
        n_pairs, n = correct.shape
        repeats = rng.multinomial(n, [1 / n] * n, n_resamples)  # [resamples, problems]
        best = (correct @ repeats.T / n).max(axis=0)  # [resamples]
        rows.append([*key, n_pairs, correct.mean(axis=1).max(), *np.percentile(best, [2.5, 97.5])])
    return pd.DataFrame(rows, columns=[*by, "pairs", "maximum", "maximum_low", "maximum_high"])
