"""Honest numbers: every accuracy with n and a 95 % interval, every comparison paired over the same problems."""

from math import sqrt

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from layerswap.paths import UserError


def accuracy(frame, by):
    """Exact match of each group: columns k (correct), n, accuracy, low, high (Wilson's 95 % interval)."""
    table = frame.groupby(by, sort=False).correct.agg(k="sum", n="size").reset_index()
    table["accuracy"] = table.k / table.n
    table["low"], table["high"] = proportion_confint(table.k, table.n, method="wilson")
    return table


def pairs(frame, condition, reference, column):
    """One row a (language, id): the column's value under both conditions. UserError unless both cover the same rows."""
    chosen = frame[frame.condition.isin([condition, reference])]
    wide = chosen.pivot(index=["language", "id"], columns="condition", values=column)
    if missing := {condition, reference} - set(wide.columns):
        raise UserError(f"condition {min(missing)!r} is not in the results")
    if wide.isna().any(axis=None):
        raise UserError(f"{condition!r} and {reference!r} were not scored on the same problems")
    wide = wide.reindex(list(dict.fromkeys(frame.language)), level="language")  # pivot sorted the languages
    return wide[[condition, reference]].astype(float)


def paired(frame, condition, reference):
    """Accuracy of a condition minus that of a reference, by language and pooled.

    Columns: condition, reference, language, n (answers), difference with low and high, b and c (problems that only the
    condition, only the reference solved), p (exact McNemar), p_holm (Holm over the languages; the pooled row stands
    alone). The interval of a language is that of Bonett and Price (2012) for paired proportions. Languages share
    problems, so the pooled row counts problems, not answers: Student's interval over each problem's mean difference,
    and the exact sign test over problems.
    """
    wide = pairs(frame, condition, reference, "correct")
    delta = wide[condition] - wide[reference]
    groups = {code: part.to_numpy() for code, part in delta.groupby("language", sort=False)}
    rows = [_compare(code, values) for code, values in groups.items()]
    holm = multipletests([row["p"] for row in rows], method="holm")[1]
    table = pd.DataFrame(rows).assign(p_holm=holm)
    if len(groups) > 1:
        by_id = mean(delta.groupby("id").mean().rename("d").reset_index().assign(all=0), "d", ["all"]).iloc[0]
        b, c = int((delta > 0).sum()), int((delta < 0).sum())
        signs = np.sign(delta.groupby("id").sum())
        p = _compare("pooled", signs.to_numpy())["p"]
        pooled = {"language": "pooled", "n": len(delta), "difference": delta.mean(), "low": by_id["low"],
                  "high": by_id["high"], "b": b, "c": c, "p": p, "p_holm": p}  # fmt: skip
        table = pd.concat([table, pd.DataFrame([pooled])], ignore_index=True)
    table.insert(0, "condition", condition)
    table.insert(1, "reference", reference)
    return table


def _compare(language, delta):
    """The row of ``paired`` for one language, from its differences (-1, 0 or 1) [problems]."""
    n, b, c = len(delta), int((delta > 0).sum()), int((delta < 0).sum())
    gain, loss = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = norm.ppf(0.975) * sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))
    p = float(mcnemar([[0, b], [c, 0]], exact=True).pvalue) if b + c else 1.0
    return {"language": language, "n": n, "difference": delta.mean(), "low": gain - loss - half,
            "high": gain - loss + half, "b": b, "c": c, "p": p}  # fmt: skip


def paired_mean(frame, column, condition, reference):
    """Mean of ``column`` under a condition minus that under a reference, by language, with its paired t interval.

    Columns: condition, reference, language, n, difference, low, high.
    """
    wide = pairs(frame, condition, reference, column)
    table = mean((wide[condition] - wide[reference]).rename("difference").reset_index(), "difference", ["language"])
    table = table.rename(columns={"mean": "difference"})
    table.insert(0, "condition", condition)
    table.insert(1, "reference", reference)
    return table


def mean(frame, column, by):
    """Mean of ``column`` in each group: columns n, mean, low, high (Student's 95 % interval)."""
    table = frame.groupby(by, sort=False)[column].agg(n="size", mean="mean", sem="sem").reset_index()
    half = t.ppf(0.975, table.n - 1) * table.pop("sem")
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)
