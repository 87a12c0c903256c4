"""Intervals and tests against scipy and statsmodels, and against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_1samp

from layerswap import stats
from layerswap.paths import UserError


def frame(outcomes):
    """Results from {(condition, language): [0/1 ...]}."""
    return pd.concat([
        pd.DataFrame({"condition": c, "language": code, "id": range(len(v)), "correct": np.array(v, bool)})
        for (c, code), v in outcomes.items()
    ])  # fmt: skip


def test_accuracy_is_wilsons():
    table = stats.accuracy(frame({("a", "sw"): [1] * 30 + [0] * 70}), ["condition", "language"]).iloc[0]
    expected = binomtest(30, 100).proportion_ci(method="wilson")
    assert (table.k, table.n, table.accuracy) == (30, 100, 0.3)
    assert (table.low, table.high) == pytest.approx((expected.low, expected.high))


def test_paired_counts_and_mcnemar():
    a, b = [1] * 40 + [0] * 60, [1] * 25 + [0] * 20 + [1] * 5 + [0] * 50
    row = stats.paired(frame({("a", "sw"): a, ("b", "sw"): b}), "a", "b").iloc[0]
    assert (row.b, row.c, row.n, row.difference) == (15, 5, 100, pytest.approx(0.10))
    assert row.p == pytest.approx(binomtest(15, 20).pvalue) and row.p_holm == row.p
    gain, loss = 16 / 102, 6 / 102  # Bonett and Price (2012)
    half = 1.959964 * np.sqrt((gain + loss - (gain - loss) ** 2) / 102)
    assert (row.low, row.high) == pytest.approx((gain - loss - half, gain - loss + half), abs=1e-6)


def test_holm_and_the_pooled_row():
    rng = np.random.default_rng(0)
    outcomes = {(c, code): rng.random(80) < p for code in ("sw", "te") for c, p in (("a", 0.6), ("b", 0.4))}
    table = stats.paired(frame(outcomes), "a", "b")
    assert list(table.language) == ["sw", "te", "pooled"]
    small, large = sorted(table.p[:2])
    assert sorted(table.p_holm[:2]) == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])
    deltas = np.mean([outcomes["a", code].astype(int) - outcomes["b", code] for code in ("sw", "te")], axis=0)
    expected = ttest_1samp(deltas, 0).confidence_interval()
    assert (table.low[2], table.high[2]) == pytest.approx((expected.low, expected.high))
    assert table.difference[2] == pytest.approx(deltas.mean()) and table.n[2] == 160


def test_the_paired_interval_covers():
    rng, hits, runs = np.random.default_rng(1), 0, 600
    for _ in range(runs):
        both = rng.random(100)
        delta = np.where(both < 0.15, 1, np.where(both < 0.25, -1, 0))  # true difference 0.05
        row = stats._compare("sw", delta)
        hits += row["low"] <= 0.05 <= row["high"]
    assert 0.93 <= hits / runs <= 0.98


def test_equal_answers_leave_a_width():
    row = stats.paired(frame({("a", "sw"): [1, 0] * 20, ("b", "sw"): [1, 0] * 20}), "a", "b").iloc[0]
    assert row.low < 0 < row.high and row.p == 1


def test_paired_mean_is_students():
    rng = np.random.default_rng(2)
    losses = pd.concat([
        pd.DataFrame({"condition": c, "language": "sw", "id": range(50), "loss": rng.normal(m, 1, 50)})
        for c, m in (("expert", 1.0), ("base", 2.0))
    ])  # fmt: skip
    row = stats.paired_mean(losses, "loss", "expert", "base").iloc[0]
    values = losses.pivot(index="id", columns="condition", values="loss")
    expected = ttest_1samp(values.expert - values.base, 0)
    assert row.difference == pytest.approx((values.expert - values.base).mean())
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_conditions_must_share_their_problems():
    with pytest.raises(UserError, match="'b' is not in the results"):
        stats.paired(frame({("a", "sw"): [1]}), "a", "b")
    with pytest.raises(UserError, match="not scored on the same problems"):
        stats.paired(frame({("a", "sw"): [1, 0], ("b", "sw"): [1]}), "a", "b")
