"""Honest numbers: every accuracy with n and a 95 % interval, every comparison paired over the same problems.

Results are frames with one row an answer: condition, language, math_seed, language_seed (the pair of experts), id (the
problem) and what was measured. With one pair of experts the pair is fixed, and an interval speaks of new problems. With
several, math seeds, language seeds and problems are all taken as drawn at random, and an interval speaks of new pairs
too (``crossed``). A hierarchical bootstrap, which resamples seeds and problems, needs more than three seeds to do so:
its 95 % intervals cover about 80 % (tests/test_stats.py).
"""

from itertools import combinations, product
from math import nan, sqrt

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from layerswap.paths import UserError

SEEDS = ["math_seed", "language_seed"]


def check_complete(frame, conditions, languages, n_pairs, n_problems):
    """UserError names the first condition that lacks a row for a language, pair and problem, or has one twice."""
    keys = ["condition", "language", *SEEDS, "id"]
    if frame.duplicated(keys).any():
        twice = ", ".join(map(str, frame[frame.duplicated(keys)].iloc[0][keys]))
        raise UserError(f"results: the answer of {twice} stands there twice")
    sizes = frame.groupby(["condition", "language"]).size()
    for key in product(conditions, languages):
        if sizes.get(key, 0) != n_pairs * n_problems:
            expected = f"expected {n_pairs} pairs of experts times {n_problems} problems"
            raise UserError(f"results: condition {key[0]!r} has {sizes.get(key, 0)} answers in {key[1]}, {expected}")
    if extra := sizes.keys().difference(list(product(conditions, languages))).tolist():
        raise UserError(f"results: {' in '.join(extra[0])} was not asked for")


def crossed(values):
    """(mean, standard error, degrees of freedom) of values [math seeds, language seeds, problems].

    The three factors are crossed and taken as drawn at random; one with a single level is fixed. The variance of the
    grand mean is the sum of all mean squares, those of even interactions taken off (analysis of variance of balanced
    crossed random effects; Searle, Casella and McCulloch, 1992), at least what the problems alone give; degrees of
    freedom after Satterthwaite, at least those of the smallest factor: with mean squares taken off they could fall
    below it, to intervals wider than any outcome.
    """
    factors = [axis for axis, levels in enumerate(values.shape) if levels > 1]
    mean, squares = values.mean(), {}
    if 2 not in factors:
        return mean, nan, nan  # one problem says nothing of others
    for size in range(1, len(factors) + 1):
        for chosen in combinations(factors, size):
            effect = 0.0
            for part in (c for k in range(size + 1) for c in combinations(chosen, k)):
                others = tuple(axis for axis in range(values.ndim) if axis not in part)
                effect = effect + (-1) ** (size - len(part)) * values.mean(axis=others, keepdims=True)
            free = np.prod([values.shape[axis] - 1 for axis in chosen])
            squares[chosen] = (effect**2).sum() * values.size / effect.size / free, free
    variance = sum((-1) ** (len(chosen) + 1) * square for chosen, (square, _) in squares.items())
    alone, free = squares[2,]
    if variance <= alone or len(factors) == 1:
        return mean, sqrt(alone / values.size), free
    satterthwaite = variance**2 / sum(square**2 / free for square, free in squares.values())
    return mean, sqrt(variance / values.size), max(satterthwaite, min(free for _, free in squares.values()))


def grids(frame, weights, column):
    """language -> weighted sum of conditions (condition -> factor), [math seeds, language seeds, problems].

    UserError unless all conditions were scored, on the same problems and pairs.
    """
    chosen = frame[frame.condition.isin(list(weights))]
    seeds = [each for each in SEEDS if each in frame]
    wide = chosen.pivot(index=["language", *seeds, "id"], columns="condition", values=column)
    if missing := set(weights) - set(wide.columns):
        raise UserError(f"condition {min(missing)!r} is not in the results")
    if wide.isna().any(axis=None):
        raise UserError(f"{' and '.join(map(repr, weights))} were not scored on the same problems")
    summed = (wide[list(weights)].astype(float) * list(weights.values())).sum(axis=1)
    found = {}
    for code in dict.fromkeys(frame.language):
        part = summed[code] if code in summed.index.get_level_values("language") else None
        if part is not None:
            levels = [part.index.get_level_values(each).nunique() for each in [*seeds, "id"]]
            if np.prod(levels) != len(part):
                raise UserError(f"{' and '.join(map(repr, weights))}: {code} lacks answers of some pair of experts")
            found[code] = part.to_numpy().reshape(*([] if seeds else [1, 1]), *levels)  # the pivot sorted all three
    return found


def contrast(frame, name, weights, column="correct", pooled=True):
    """A weighted sum of conditions, paired by problem and pair, by language and (several languages) pooled.

    weights: condition -> factor, such as {"both": 1, "only top": -1, "only bottom": -1, "neither": 1}. Columns:
    condition (``name``), language, n (answers), difference with low and high, b and c (answers above and below zero),
    p, detectable (the smallest true difference that this sample would have shown 4 times in 5, at p < 0.05 before any
    correction).

    The interval is Student's (``crossed``); for two conditions' exact match with one pair, that of Bonett and Price
    (2012) with the exact McNemar test. Languages share problems, so the pooled row takes each problem's mean.
    """
    values = grids(frame, weights, column)
    binary = column == "correct" and sorted(weights.values()) == [-1, 1]
    rows = [
        _row(code, delta, delta.size, binary, binary and delta.shape[:2] == (1, 1)) for code, delta in values.items()
    ]
    if pooled and len(values) > 1:
        if frame[frame.condition.isin(list(weights))].groupby("language").id.agg(frozenset).nunique() > 1:
            raise UserError(f"{name}: the languages were scored on different problems, which cannot be pooled")
        stacked = np.stack(list(values.values()))  # [languages, math seeds, language seeds, problems]
        rows.append(_row("pooled", stacked.mean(axis=0), stacked.size, binary))
        rows[-1] |= {"b": int((stacked > 0).sum()), "c": int((stacked < 0).sum())}
    return pd.DataFrame([{"condition": name, **row} for row in rows])


def paired(frame, conditions, reference, column="correct", pooled=True):
    """Each condition minus a reference, as in ``contrast``, with p corrected over all of them (column p_holm).

    Two families after Holm: the comparisons pooled over languages, which answer the question, and those of each
    language, which say where. Each family errs at most 5 times in 100 when nothing differs. With one language there is
    one family.
    """
    rows = [contrast(frame, each, {each: 1, reference: -1}, column, pooled) for each in conditions]
    table = pd.concat(rows, ignore_index=True)
    table.insert(1, "reference", reference)
    return holm(table)


def holm(table):
    """``table`` with p corrected after Holm, in a column p_holm: the pooled rows as one family, all others another."""
    for whole in (True, False):
        family = (table.language == "pooled") == whole
        if family.any():
            table.loc[family, "p_holm"] = multipletests(table.p[family], method="holm")[1]
    return table


def _row(language, delta, n, binary, exact=False):
    """The row of ``contrast`` of one language, from its values [math seeds, language seeds, problems].

    exact: by counts of problems instead of Student's. Where all problems agree there is no variance to go by: then
    ``binary`` values go by counts too, and others have no interval.
    """
    mean, error, free = crossed(delta)
    b, c = int((delta > 0).sum()), int((delta < 0).sum())
    if exact or (binary and not error > 0):
        problems = delta.mean(axis=(0, 1))  # [problems]
        above, below = int((problems > 0).sum()), int((problems < 0).sum())
        low, high = bonett_price(len(problems), above, below)
        p = float(mcnemar([[0, above], [below, 0]], exact=True).pvalue)
    elif error > 0:
        half = t.ppf(0.975, free) * error
        low, high, p = mean - half, mean + half, float(2 * t.sf(abs(mean) / error, free))
    else:
        low = high = nan
        p = 1.0
    return {"language": language, "n": n, "difference": mean, "low": low, "high": high, "b": b, "c": c, "p": p,
            "detectable": detectable(error, free)}  # fmt: skip


def detectable(error, free):
    """The true difference that is found 4 times in 5 at p < 0.05, of a standard error with these degrees of freedom."""
    return (t.ppf(0.975, free) + t.ppf(0.8, free)) * error if error > 0 else nan


def bonett_price(n, b, c):
    """Bonett and Price's 95 % interval of a difference of paired proportions: of n pairs, b only in the first, c only
    in the second."""
    gain, loss = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = norm.ppf(0.975) * sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))
    return gain - loss - half, gain - loss + half


def accuracy(frame, by):
    """Exact match of each group: columns k (correct), n, accuracy, low, high.

    The interval is Wilson's; with several pairs of experts, which answer the same problems, Student's (``crossed``), at
    least as wide as Wilson's of so many problems.
    """
    table = frame.groupby(by, sort=False).correct.agg(k="sum", n="size").reset_index()
    table["accuracy"] = table.k / table.n
    table["low"], table["high"] = proportion_confint(table.k, table.n, method="wilson")
    n_pairs = len(frame[SEEDS].drop_duplicates()) if set(SEEDS) <= set(frame) else 1
    if n_pairs > 1:
        crossings = mean(frame.assign(correct=frame.correct.astype(float)), "correct", by)
        low, high = proportion_confint(table.k / n_pairs, table.n / n_pairs, method="wilson")
        table["low"], table["high"] = np.fmax(np.fmin(crossings.low, low), 0), np.fmin(np.fmax(crossings.high, high), 1)
    return table


def mean(frame, column, by):
    """Mean of ``column`` in each group (of one language each): columns n, mean, low, high (95 %, ``crossed``)."""
    rows = []
    for key, part in frame.groupby(by, sort=False):
        label = part.condition.iloc[0]
        (values,) = grids(part, {label: 1.0}, column).values()
        middle, error, free = crossed(values)
        half = t.ppf(0.975, free) * error
        rows.append([*key, values.size, middle, middle - half, middle + half])
    return pd.DataFrame(rows, columns=[*by, "n", "mean", "low", "high"])


def best_pair(frame, by, draws=1000):
    """The best pair's exact match in each group: columns pairs, maximum, low, high.

    As the paper is said to report (a reader's account). The pair was chosen on these very problems, so it flatters, the
    more so the more pairs there are; the interval (percentiles of a bootstrap over problems, the best pair chosen anew
    each time) shows the noise and not that bias.
    """
    rng, rows = np.random.default_rng(0), []
    for key, part in frame.groupby(by, sort=False):
        wide = part.pivot(index=SEEDS, columns="id", values="correct").to_numpy(float)  # [pairs, problems]
        picked = rng.multinomial(wide.shape[1], [1 / wide.shape[1]] * wide.shape[1], draws)  # [draws, problems]
        best = (wide @ picked.T / wide.shape[1]).max(axis=0)  # [draws]
        rows.append([*key, len(wide), wide.mean(axis=1).max(), *np.percentile(best, [2.5, 97.5])])
    return pd.DataFrame(rows, columns=[*by, "pairs", "maximum", "low", "high"])
