"""The choice of a merge: its worth by hand, and a search that moves towards a target and never below its start."""

import numpy as np
import pandas as pd
import pytest

from layerswap import search
from layerswap.paths import UserError
from layerswap.plan import Plan, layer_swap, soup

TARGET = Plan("target", (0.9, 0.8, 0.1, 0.2, 0.3, 0.7), 0.6)
START = soup(6)


def results(outcomes):
    """Validation results from {(condition, language): [(correct, answer_nll, answer_tokens) ...]}."""
    return pd.DataFrame(
        [(c, code, *row) for (c, code), rows in outcomes.items() for row in rows],
        columns=["condition", "language", "correct", "answer_nll", "answer_tokens"],
    )


def distance(plan, target=TARGET):
    """Between two plans as points."""
    return float(np.linalg.norm(np.subtract([*plan.layers, plan.outside], [*target.layers, target.outside])))


def scores(target=TARGET, kept=None):
    """score(plans): the nearer to the target, the more of 400 problems are solved. ``kept`` gets (plans, results)."""
    rng = np.random.default_rng(0)

    def score(plans):
        frame = results({
            (plan.name, code): [(bool(x < np.exp(-distance(plan, target))), 4 * distance(plan, target), 4)
                                for x in rng.random(200)]
            for plan in plans for code in ("sw", "te")
        })  # fmt: skip
        if kept is not None:
            kept.append((plans, frame))
        return frame

    return score


FRAME = results({
    ("b", "te"): [(True, 3.0, 3), (False, 8.0, 2)],
    ("b", "sw"): [(False, 1.0, 1)] * 4 + [(True, 2.0, 1)],
    ("a", "sw"): [(True, 1.0, 2)],
    ("a", "te"): [(True, 6.0, 4), (True, 1.0, 2), (False, 4.0, 4)],
})  # fmt: skip


@pytest.mark.parametrize(
    ("criterion", "b", "a"),
    [("exact match", (1 / 2 + 1 / 5) / 2, (1 + 2 / 3) / 2),
     ("answer loss", -((1 + 4) / 2 + (4 + 2) / 5) / 2, -(0.5 + (1.5 + 0.5 + 1) / 3) / 2)],
)  # fmt: skip
def test_worth_is_the_mean_of_languages(criterion, b, a):
    found = search.worth(FRAME, criterion)
    assert list(found.index) == ["b", "a"]  # as they came
    assert list(found) == pytest.approx([b, a])
    assert list(search.worth(FRAME.iloc[::-1], criterion).index) == ["a", "b"]


def test_unknown_criterion():
    with pytest.raises(UserError, match="criterion is 'accuracy', expected one of exact match, answer loss"):
        search.worth(FRAME, "accuracy")
    with pytest.raises(UserError, match="criterion is None"):
        search.search(scores(), START, 1, None)


@pytest.mark.parametrize("criterion", search.CRITERIA)
def test_the_search_comes_closer(criterion):
    found, table = search.search(scores(), START, 25, criterion)
    assert distance(found) < distance(START) / 2
    assert table.worth.max() > table.worth[0]


@pytest.mark.parametrize("start", [layer_swap(6, 2, 1, 1, 1), Plan("ends", (0.0,) * 6, 1.0)])
def test_a_start_in_a_corner(start):
    found, _ = search.search(scores(), start, 25, "answer loss")
    assert distance(found) < distance(start) / 2


@pytest.mark.parametrize("criterion", search.CRITERIA)
def test_the_table_of_what_was_tried(criterion):
    kept = []
    found, table = search.search(scores(kept=kept), START, 4, criterion, population=5)
    assert list(table.columns) == ["generation", "condition", "worth", "best"]
    assert list(table.generation) == [0] + [g for g in range(1, 5) for _ in range(5)]
    assert [len(plans) for plans, _ in kept] == [1, 5, 5, 5, 5] and kept[0][0] == [START]
    tried = [plan for plans, _ in kept for plan in plans]
    assert list(table.condition) == [plan.name for plan in tried] and table.condition.is_unique
    assert table.condition[0] == START.name
    assert list(table.best) == [max(table.worth[: i + 1]) for i in range(len(table))]
    assert found in tried and found.name == table.condition[table.worth.idxmax()]  # of equals the first
    for plan in tried:
        for weight in (*plan.layers, plan.outside):
            assert 0 <= weight <= 1 and weight == round(weight, 2)


def test_worths_are_those_of_the_results():
    kept = []
    _, table = search.search(scores(kept=kept), START, 3, "exact match")
    expected = pd.concat([frame for _, frame in kept]).groupby("condition").correct.mean()  # languages of equal n
    assert list(table.worth) == pytest.approx(list(expected[table.condition]))


def test_the_same_seed_tries_the_same():
    (one, first), (two, second), (_, third) = (
        search.search(scores(), START, 4, "exact match", seed=seed) for seed in (3, 3, 4)
    )
    assert one == two and first.equals(second) and not first.worth.equals(third.worth)


@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_the_start(seed):
    found, table = search.search(scores(START), START, 3, "answer loss", seed=seed)  # the start is the target
    assert found == START and table.best.eq(table.worth[0]).all()


def test_equal_worths_keep_the_start():
    found, table = search.search(lambda plans: results({(p.name, "sw"): [(True, 1.0, 1)] for p in plans}), START, 3,
                                 "exact match")  # fmt: skip
    assert found == START and table.worth.eq(1).all()


def test_no_generations():
    start = layer_swap(32, 5, 2, 1, 1, weight=0.333)
    found, table = search.search(lambda plans: results({(p.name, "sw"): [(True, 1.0, 1), (False, 1.0, 1)]
                                                        for p in plans}), start, 0, "exact match")  # fmt: skip
    expected = {"generation": 0, "condition": start.name, "worth": 0.5, "best": 0.5}
    assert found == start and table.to_dict("records") == [expected]


@pytest.mark.parametrize(("n_layers", "n_groups"), [(1, 1), (6, 6), (9, 9), (10, 9), (24, 9), (32, 9)])
def test_neighbours_share_their_weight(n_layers, n_groups):
    kept = []
    search.search(scores(Plan("target", (0.3,) * n_layers, 0.8), kept), soup(n_layers), 3, "answer loss")
    groups = np.array_split(np.arange(n_layers), n_groups)
    assert n_groups + 1 <= 10 and max(map(len, groups)) - min(map(len, groups)) <= 1
    tried = [plan for plans, _ in kept for plan in plans]
    for plan in tried:
        assert len(plan.layers) == n_layers
        assert all(len({plan.layers[i] for i in group}) == 1 for group in groups)
    free = {tuple(plan.layers[i] for plan in tried) for i in range(n_layers)}
    assert len(free) == n_groups  # and no two groups always move together
