"""Intervals and tests against scipy and statsmodels, and against simulation."""

import gc
from functools import partial

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import binomtest, t, ttest_1samp
from statsmodels.stats.anova import anova_lm

from layerswap.analysis import doses, statistics
from layerswap.errors import UserError


def frame(outcomes):
    """Results from {(condition, language): [0/1 ...]}."""
    return pd.concat([
        pd.DataFrame({"condition": name, "language": language, "id": range(len(row)), "correct": np.array(row, bool)})
        for (name, language), row in outcomes.items()
    ])  # fmt: skip


def test_accuracy_is_wilsons():
    table = statistics.accuracy(frame({("a", "sw"): [1] * 30 + [0] * 70}), ["condition", "language"]).iloc[0]
    expected = binomtest(30, 100).proportion_ci(method="wilson")
    assert (table.k, table.n, table.accuracy) == (30, 100, 0.3)
    assert (table.low, table.high) == pytest.approx((expected.low, expected.high))


def test_paired_counts_and_mcnemar():
    a, b = [1] * 40 + [0] * 60, [1] * 25 + [0] * 20 + [1] * 5 + [0] * 50
    row = statistics.paired(frame({("a", "sw"): a, ("b", "sw"): b}), ["a"], "b").iloc[0]
    assert (row.b, row.c, row.n, row.difference) == (15, 5, 100, pytest.approx(0.10))
    assert row.p == pytest.approx(binomtest(15, 20).pvalue) and row.p_holm == row.p
    gain, loss = 16 / 102, 6 / 102  # Bonett and Price (2012)
    half = 1.959964 * np.sqrt((gain + loss - (gain - loss) ** 2) / 102)
    assert (row.low, row.high) == pytest.approx((gain - loss - half, gain - loss + half), abs=1e-6)


def test_two_families_after_holm():
    rng = np.random.default_rng(0)
    chances = {"a": 0.6, "b": 0.4, "c": 0.5}
    outcomes = {(name, code): rng.random(80) < p for code in ("sw", "te") for name, p in chances.items()}
    table = statistics.paired(frame(outcomes), ["a", "c"], "b")
    assert list(table.condition) == ["a"] * 3 + ["c"] * 3 and list(table.language) == ["sw", "te", "pooled"] * 2
    for family in (table[table.language == "pooled"], table[table.language != "pooled"]):
        order = family.sort_values("p")
        steps = np.maximum.accumulate(order.p * np.arange(len(order), 0, -1)).clip(upper=1)
        assert list(order.p_holm) == pytest.approx(list(steps))


def test_measures_are_those_that_the_results_have():
    data = frame({("a", "sw"): [1, 1, 0, 1], ("b", "sw"): [1, 0, 0, 0]}).assign(loss=[1.0, 2, 3, 4, 2, 3, 4, 5])
    contrasts = {"a": {"a": 1, "b": -1}}
    for whole, names in (
        ([1, 0, 0, 1, 0, 0, 0, 0], ["exact match", "whole solution", "answer loss, nats a token"]),
        ([None] * 8, ["exact match", "answer loss, nats a token"]),
    ):
        tables = statistics.compare_measures(data.assign(whole_solution=whole), contrasts)
        assert list(tables) == names
        assert [table.difference[0] for table in tables.values()] == [0.5, *[0.5] * (len(tables) - 2), -1.0]


def test_rankings_are_compared_beside_answers_of_fewer_problems():
    rows = [
        {"condition": condition, "language": "sw", "id": i, "math_seed": 1, "language_seed": 1, "ranked": i % k == 0,
         "calibrated": float(i % 3 == 0), "log_probability": -1.0 - i % k}
        for condition, k in (("a", 2), ("b", 4))
        for i in range(40)
    ]  # fmt: skip
    ranked = pd.DataFrame(rows)
    answered = ranked[ranked.id < 8].assign(correct=ranked.ranked)
    tables = statistics.compare_all(answered, ranked, {"a": {"a": 1, "b": -1}})
    assert list(tables) == [
        "exact match", "ranked first", "ranked first, calibrated", "log probability of the right one",
    ]  # fmt: skip
    assert [table.n.item() for table in tables.values()] == [8, 40, 40, 40]
    assert tables["ranked first"].difference.item() == pytest.approx(0.25)
    assert (tables["ranked first"].b.item(), tables["ranked first"].c.item()) == (10, 0)  # McNemar's, as exact match
    blind = ranked[ranked.condition == "b"].assign(condition="b, text-blind")
    contrasts = {"a": {"a": 1, "b": -1}, "b, text-blind": {"b": -1, "b, text-blind": 1}}
    both = statistics.compare_all(answered, pd.concat([ranked, blind]), contrasts)
    assert [len(table) for table in both.values()] == [1, 2, 2, 2]
    levels = statistics.measure_levels(ranked)
    assert list(levels) == ["ranked first", "ranked first, calibrated"]
    assert list(levels["ranked first"].accuracy) == [0.5, 0.25]
    assert tuple(levels["ranked first"][["low", "high"]].iloc[1]) == pytest.approx(
        tuple(binomtest(10, 40).proportion_ci(method="wilson")), abs=1e-6
    )
    assert list(statistics.measure_levels(ranked.assign(calibrated=float("nan")))) == ["ranked first"]


def test_differences_by_dose():
    """Six problems in two languages, whose number of unknown words differs; a method with experts of half the way."""
    contrasts = {"a - b": {"a": 1.0, "b": -1.0}, "a - b, both x 0.5": {"a, both x 0.5": 1.0, "b": -1.0}}
    answers = {"a": [1, 1, 1, 0, 0, 0], "b": [0, 1, 1, 0, 1, 1], "a, both x 0.5": [1] * 6}
    data = frame({(name, code): row for code in ("sw", "te") for name, row in answers.items()})
    n_words = {"sw": [0, 0, 1, 1, 5, 4], "te": [0, 0, 0, 0, 0, 0]}
    unknown_words = [n_words[language][i] for language, i in zip(data.language, data.id, strict=True)]
    table = doses.dose_table(data, contrasts, unknown_words).set_index(["dose", "amount", "language"])
    assert set(table.line) == {"a - b"}
    words, both = (table.loc[dose] for dose in ("words never met", "both experts' task vectors"))
    assert words.difference.to_dict() == {
        ("0", "sw"): 0.5, ("0", "te"): pytest.approx(-1 / 6), ("1", "sw"): 0.0, ("3 or more", "sw"): -1.0
    }  # fmt: skip
    assert both.difference.to_dict() == {
        ("× 0.5", "sw"): pytest.approx(1 / 3), ("× 0.5", "te"): pytest.approx(1 / 3),
        ("× 1", "sw"): pytest.approx(-1 / 6), ("× 1", "te"): pytest.approx(-1 / 6),
    }  # fmt: skip
    assert "words never met" not in doses.dose_table(data, contrasts, [None] * len(data)).dose.tolist()


def test_contrasts_of_a_figure_are_one_family():
    rng = np.random.default_rng(0)
    data = frame({(name, code): rng.random(80) < 0.5 for code in ("sw", "te") for name in "abcd"})
    interaction = {"a": 1, "b": -1, "c": -1, "d": 1}
    contrasts = {"a": {"a": 1, "b": -1}, "reversed": {"b": 1, "a": -1}, "interaction": interaction}
    table = statistics.compare(data, contrasts)
    assert list(table.columns[:3]) == ["condition", "reference", "language"]
    assert list(table.condition) == [name for name in contrasts for _ in range(3)]
    assert list(table.reference) == ["b"] * 3 + [""] * 6
    single = [statistics.contrast(data, name, weights) for name, weights in contrasts.items()]
    expected = statistics.correct_holm(pd.concat(single, ignore_index=True))
    pd.testing.assert_frame_equal(table.drop(columns="reference"), expected)
    pd.testing.assert_frame_equal(
        statistics.compare(data, {name: {name: 1, "b": -1} for name in "ac"}, pooled=False),
        statistics.paired(data, ["a", "c"], "b", pooled=False),
    )


def test_the_pooled_row_takes_problems_not_answers():
    rng = np.random.default_rng(0)
    outcomes = {(name, code): rng.random(80) < p for code in ("sw", "te") for name, p in (("a", 0.6), ("b", 0.4))}
    row = statistics.paired(frame(outcomes), ["a"], "b").iloc[2]
    deltas = np.mean([outcomes["a", code].astype(int) - outcomes["b", code] for code in ("sw", "te")], axis=0)
    test = ttest_1samp(deltas, 0)
    assert (row.low, row.high, row.p) == pytest.approx((*test.confidence_interval(), test.pvalue))
    assert row.difference == pytest.approx(deltas.mean()) and row.n == 160


def test_a_contrast_of_four():
    rng = np.random.default_rng(3)
    outcomes = {(name, "sw"): rng.random(60) < 0.5 for name in "abcd"}
    row = statistics.contrast(frame(outcomes), "interaction", {"a": 1, "b": -1, "c": -1, "d": 1}).iloc[0]
    a, b, c, d = (outcomes[name, "sw"].astype(int) for name in "abcd")
    test = ttest_1samp(a - b - c + d, 0)
    assert (row.difference, row.p) == pytest.approx(((a - b - c + d).mean(), test.pvalue))
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval()))


def test_the_paired_interval_covers():
    rng, hits, n_runs = np.random.default_rng(1), 0, 2000
    for _ in range(n_runs):
        draws = rng.random(100)  # true difference 0.05
        low, high = statistics.bonett_price(100, (draws < 0.15).sum(), ((draws >= 0.15) & (draws < 0.25)).sum())
        hits += low <= 0.05 <= high
    assert 0.93 <= hits / n_runs <= 0.97


# --- several pairs of experts -----------------------------------------------------------------------------------------


def simulate(rng, shape, seeds=0.0, pair=0.0, problem=0.3, mixed=0.2, rest=0.3):
    """Values [math seeds, language seeds, problems] of mean 0 with these standard deviations of their components."""
    m, s, p = shape
    return (
        rng.normal(0, seeds, (m, 1, 1)) + rng.normal(0, seeds, (1, s, 1)) + rng.normal(0, pair, (m, s, 1))
        + rng.normal(0, problem, (1, 1, p)) + rng.normal(0, mixed, (m, 1, p)) + rng.normal(0, mixed, (1, s, p))
        + rng.normal(0, rest, shape)
    )  # fmt: skip


def coverage(rng, n_runs, shape, **deviations):
    """The proportion of runs in which the 95 % interval of ``crossed_random_effects`` holds the true mean, 0."""
    hits = 0
    for _ in range(n_runs):
        estimate = statistics.crossed_random_effects(simulate(rng, shape, **deviations))
        hits += abs(estimate.mean) <= t.ppf(0.975, estimate.degrees_of_freedom) * estimate.standard_error
    return hits / n_runs


@pytest.mark.parametrize(
    ("shape", "deviations"),
    [
        ((1, 1, 250), {}),
        ((3, 3, 250), {"seeds": 0.05, "pair": 0.02}),
        ((3, 3, 250), {"seeds": 0.01, "pair": 0.01}),
        ((3, 3, 250), {}),
        ((3, 3, 25), {"seeds": 0.05}),
        ((4, 4, 100), {"seeds": 0.05}),
    ],
)
def test_the_crossed_interval_covers(shape, deviations):
    assert 0.93 <= coverage(np.random.default_rng(0), 1500, shape, **deviations) <= 0.97


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_crossed_interval_of_few_differing_answers_covers(rate):
    """Nine pairs whose answers seldom differ: no fewer degrees of freedom than seeds give, no bounds beyond one."""
    rng, hits, n_runs = np.random.default_rng(0), 0, 1000
    for _ in range(n_runs):
        lean = np.clip(rng.normal(0, 0.3, (3, 1, 1)) + rng.normal(0, 0.3, (1, 3, 1)), -1, 1)  # of a pair, up or down
        luck = np.where(rng.random((3, 3, 60)) < 0.5, rng.random((1, 1, 60)), rng.random((3, 3, 60)))
        values = (luck < rate) * np.where(rng.random((3, 3, 60)) < (1 + lean) / 2, 1.0, -1.0)
        mean, error, degrees = statistics.crossed_random_effects(values)
        half = t.ppf(0.975, degrees) * error
        assert degrees >= 2 and abs(mean) + half <= 1
        hits += abs(mean) <= half
    assert hits / n_runs >= 0.93


def test_a_hierarchical_bootstrap_of_three_seeds_does_not_cover():
    """Why crossed random effects are used: percentiles of means over resampled seeds and problems are too narrow."""
    rng, hits, n_runs = np.random.default_rng(0), 0, 150
    for _ in range(n_runs):
        values = simulate(rng, (3, 3, 100), seeds=0.05)
        weights = [rng.multinomial(n, [1 / n] * n, 200) / n for n in values.shape]  # [draws, levels]
        means = np.einsum("dm,ds,dp,msp->d", *weights, values, optimize=True)
        low, high = np.percentile(means, [2.5, 97.5])
        hits += low <= 0 <= high
    assert hits / n_runs < 0.9


def test_crossed_variance_is_that_of_an_analysis_of_variance():
    """Mean squares from statsmodels; the expected ones of crossed random effects give the variance."""
    values = simulate(np.random.default_rng(4), (3, 3, 5), seeds=0.3, pair=0.1)
    rows = [{"m": m, "s": s, "p": p, "y": values[m, s, p]} for m, s, p in np.ndindex(values.shape)]
    table = anova_lm(smf.ols("y ~ C(m) * C(s) * C(p)", pd.DataFrame(rows)).fit())
    squares = {term.count(":"): 0.0 for term in table.index if term != "Residual"}
    for term, row in table.drop("Residual").iterrows():
        squares[term.count(":")] += row.sum_sq / row.df
    mean, error, _ = statistics.crossed_random_effects(values)
    assert mean == pytest.approx(values.mean())
    assert error**2 * values.size == pytest.approx(squares[0] - squares[1] + squares[2])


def test_one_pair_is_students_and_one_problem_has_no_interval():
    values = np.random.default_rng(5).normal(0, 1, (1, 1, 40))
    mean, error, degrees = statistics.crossed_random_effects(values)
    test = ttest_1samp(values.ravel(), 0)
    assert (mean / error, degrees) == pytest.approx((test.statistic, test.df))
    assert np.isnan(statistics.crossed_random_effects(values[..., :1])[1])


def results(rng, chances, languages=("sw", "te", "bn", "ja"), shape=(1, 1, 320), shared=0.5):
    """Results of conditions (name -> chance) whose answers to a problem hang together by ``shared`` (0 to 1)."""
    frames = []
    for language in languages:
        difficulty = rng.random(shape[2])
        for name, chance in chances.items():
            own = rng.random(shape)
            luck = np.where(rng.random(shape) < shared, difficulty, own)
            for m, s in np.ndindex(shape[:2]):
                frames.append(pd.DataFrame({
                    "condition": name, "language": language, "math_seed": m, "language_seed": s, "id": range(shape[2]),
                    "correct": luck[m, s] < chance,
                }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize("shape", [(1, 1, 100), (3, 3, 60)])
def test_false_positives_of_the_whole_family(shape, monkeypatch):
    """500 runs in which nothing differs: in at most 5 of 100 (and the noise of 500 runs) any p of a family is below."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects garbage in every correction, 50 ms a time
    rng, wrong = np.random.default_rng(6), {"pooled": 0, "languages": 0}
    for _ in range(500):
        rows = null_rows(rng, shape)
        for name, family in (
            ("pooled", rows[rows.language == "pooled"]),
            ("languages", rows[rows.language != "pooled"]),
        ):
            wrong[name] += (statistics.correct_holm(family.reset_index(drop=True)).p_holm < 0.05).any()
    assert max(wrong.values()) / 500 <= 0.05, wrong


def null_rows(rng, shape):
    """The uncorrected rows of four conditions that are as good as their reference, in two languages and pooled."""
    rows = []
    for _ in range(4):
        difficulty = rng.random((2, 1, 1, shape[2]))  # the same problems for condition and reference
        answers = [np.where(rng.random((2, *shape)) < 0.5, difficulty, rng.random((2, *shape))) < 0.5 for _ in range(2)]
        deltas = answers[0].astype(float) - answers[1]  # [languages, math seeds, language seeds, problems]
        for language, delta in zip(("sw", "te"), deltas, strict=True):
            rows.append(statistics._contrast_row(language, delta, delta.size, True, shape[:2] == (1, 1)))
        rows.append(statistics._contrast_row("pooled", deltas.mean(axis=0), deltas.size, True))
    return pd.DataFrame(rows)


@pytest.mark.slow  # a simulation
def test_the_labs_sample_shows_five_points(monkeypatch):
    """Power of the pooled test at the lab's n, with answers that differ as often as the lab's most different two do."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
    rng, n, hits = np.random.default_rng(7), 320, 0
    for _ in range(200):
        table = statistics.paired(results(rng, {"a": 0.55, "b": 0.50}, shape=(1, 1, n), shared=0.3), ["a"], "b")
        hits += table.p.iloc[-1] < 0.05
    assert hits / 200 >= 0.8


def test_the_minimum_detectable_effect_has_80_percent_power():
    rng, n = np.random.default_rng(8), 400
    spread, hits = 0.5, 0
    effect = statistics.minimum_detectable_effect(spread / np.sqrt(n), n - 1)
    for _ in range(1000):
        row = statistics._contrast_row("sw", rng.normal(effect, spread, (1, 1, n)), n, False)
        hits += row["p"] < 0.05
    assert abs(hits / 1000 - 0.8) < 0.04
    assert row["minimum_detectable_effect"] == pytest.approx(effect, rel=0.2)


def test_no_variance_is_no_certainty():
    """Three problems with the same difference: counts decide, and the minimum detectable effect is not known."""
    ones, zeros = {"a": [1, 1, 1], "b": [0, 0, 0]}, {"a": [0, 0, 0], "b": [0, 0, 0]}
    for answers, p in ((ones, 0.25), (zeros, 1.0)):
        data = frame({(name, code): row for name, row in answers.items() for code in ("sw", "te")})
        table = statistics.paired(data, ["a"], "b")
        assert list(table.p) == [p] * 3 and (table.low < 0).all() and (table.high > 0).all()
        assert table.minimum_detectable_effect.isna().all()
    many = results(np.random.default_rng(0), {"a": 1.1, "b": 1.1}, ["sw"], (2, 2, 10))
    row = statistics.accuracy(many, ["condition", "language"]).iloc[0]
    assert row.accuracy == row.high == 1 and row.low == pytest.approx(
        binomtest(10, 10).proportion_ci(method="wilson").low
    )
    loss = statistics.contrast(many.assign(loss=1.0), "same", {"a": 1, "b": -1}, "loss").iloc[0]
    assert loss.p == 1 and np.isnan(loss.low)


def test_languages_that_cannot_be_pooled():
    data = frame({("a", "sw"): [1, 0], ("b", "sw"): [0, 0], ("a", "te"): [1, 0], ("b", "te"): [0, 0]})
    data.loc[data.language == "te", "id"] += 1
    with pytest.raises(UserError, match="a: the languages were scored on different problems"):
        statistics.paired(data, ["a"], "b")
    assert len(statistics.paired(data, ["a"], "b", pooled=False)) == 2


def test_best_pair_is_the_maximum():
    data = results(np.random.default_rng(9), {"a": 0.5}, ["sw"], (2, 3, 50))
    row = statistics.best_pair(data, ["condition", "language"]).iloc[0]
    assert row.pairs == 6 and row.maximum == data.groupby(["math_seed", "language_seed"]).correct.mean().max()
    assert row.maximum_low < row.maximum < row.maximum_high


def test_complete_results():
    data = results(np.random.default_rng(10), {"a": 0.5, "b": 0.5}, ["sw", "te"], (2, 2, 5))
    check = partial(statistics.check_complete, conditions=["a", "b"], languages=["sw", "te"], n_pairs=4, n_problems=5)
    check(data)
    for spoilt, message in (
        (data.drop(index=3), "condition 'a' has 19 answers in sw, expected 4 pairs of experts times 5 problems"),
        (data[(data.condition == "a") | (data.language == "sw")], "condition 'b' has 0 answers in te"),
        (pd.concat([data, data.iloc[[3]]]), "found the answer of a, sw, 0, 0, 3 twice"),
        (pd.concat([data, data.iloc[[3]].assign(condition="c")]), "found c in sw, which was not requested"),
    ):
        with pytest.raises(UserError, match=message):
            check(spoilt)


def test_equal_answers_leave_a_width():
    row = statistics.paired(frame({("a", "sw"): [1, 0] * 20, ("b", "sw"): [1, 0] * 20}), ["a"], "b").iloc[0]
    assert row.low < 0 < row.high and row.p == 1


def test_paired_losses_are_students():
    rng = np.random.default_rng(2)
    losses = pd.concat([
        pd.DataFrame({"condition": name, "language": "sw", "id": range(50), "loss": rng.normal(mean, 1, 50)})
        for name, mean in (("expert", 1.0), ("base", 2.0))
    ])  # fmt: skip
    row = statistics.paired(losses, ["expert"], "base", "loss").iloc[0]
    values = losses.pivot(index="id", columns="condition", values="loss")
    expected = ttest_1samp(values.expert - values.base, 0)
    assert row.difference == pytest.approx((values.expert - values.base).mean())
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_conditions_must_share_their_problems():
    with pytest.raises(UserError, match="'b' is not in the results"):
        statistics.paired(frame({("a", "sw"): [1]}), ["a"], "b")
    with pytest.raises(UserError, match="not scored on the same problems"):
        statistics.paired(frame({("a", "sw"): [1, 0], ("b", "sw"): [1]}), ["a"], "b")
