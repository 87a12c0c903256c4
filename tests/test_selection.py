"""The selection of a merge: its objective by hand, and a search that approaches a target, never below its start."""

import numpy as np
import pandas as pd
import pytest

from layerswap.analysis import selection
from layerswap.errors import UserError
from layerswap.merging.plans import Plan, layer_swap, soup

TARGET = Plan("target", (0.9, 0.8, 0.1, 0.2, 0.3, 0.7), 0.6)
START = soup(6)


def results(outcomes):
    """Validation results from {(condition, language): [(correct, answer_nll, answer_tokens) ...]}."""
    frame = pd.DataFrame(
        [(condition, language, *row) for (condition, language), rows in outcomes.items() for row in rows],
        columns=["condition", "language", "correct", "answer_nll", "answer_tokens"],
    )
    return frame.assign(loss=frame.answer_nll / frame.answer_tokens)


def point(plan):
    """A plan as an array [layers + 1]."""
    return np.array([*plan.layers, plan.non_layer_weight])


def distance(plan, target=TARGET):
    """Between two plans as points."""
    return float(np.linalg.norm(point(plan) - point(target)))


def scorer(target=TARGET, calls=None):
    """score(plans): the nearer to the target, the more of 400 problems are solved. ``calls`` gets (plans, results)."""
    rng = np.random.default_rng(0)

    def score(plans):
        frame = results({
            (plan.name, language): [(bool(x < np.exp(-distance(plan, target))), 4 * distance(plan, target), 4)
                                    for x in rng.random(200)]
            for plan in plans for language in ("sw", "te")
        })  # fmt: skip
        if calls is not None:
            calls.append((plans, frame))
        return frame

    return score


def constant_scorer(*rows):
    """score(plans): the same answers (correct, answer_nll, answer_tokens) of every plan."""
    return lambda plans: results({(plan.name, "sw"): list(rows) for plan in plans})


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
def test_the_objective_is_the_mean_of_languages(criterion, b, a):
    values = selection.objective(FRAME, criterion)
    assert list(values.index) == ["b", "a"]  # as they came
    assert list(values) == pytest.approx([b, a])
    assert list(selection.objective(FRAME.iloc[::-1], criterion).index) == ["a", "b"]


def test_unknown_criterion():
    with pytest.raises(UserError, match="criterion is 'accuracy', expected one of exact match, answer loss"):
        selection.objective(FRAME, "accuracy")
    with pytest.raises(UserError, match="criterion is None"):
        selection.search_weights(scorer(), START, 1, None)


@pytest.mark.parametrize("criterion", selection.CRITERIA)
def test_the_search_comes_closer(criterion):
    best, table = selection.search_weights(scorer(), START, 25, criterion)
    assert distance(best) < distance(START) / 2
    assert table.objective.max() > table.objective[0]


@pytest.mark.parametrize("start", [layer_swap(6, 2, 1, 1, 1), Plan("ends", (0.0,) * 6, 1.0)])
def test_a_start_in_a_corner(start):
    best, _ = selection.search_weights(scorer(), start, 25, "answer loss")
    assert distance(best) < distance(start) / 2


@pytest.mark.parametrize("criterion", selection.CRITERIA)
def test_the_table_of_trials(criterion):
    calls = []
    best, table = selection.search_weights(scorer(calls=calls), START, 4, criterion, population=5)
    assert list(table.columns) == ["generation", "condition", "objective", "best"] == selection.TRIAL_COLUMNS
    assert list(table.generation) == [0] + [generation for generation in range(1, 5) for _ in range(5)]
    assert [len(plans) for plans, _ in calls] == [1, 5, 5, 5, 5] and calls[0][0] == [START]
    tried = [plan for plans, _ in calls for plan in plans]
    assert list(table.condition) == [plan.name for plan in tried] and table.condition.is_unique
    assert table.condition[0] == START.name
    assert list(table.best) == [max(table.objective[: i + 1]) for i in range(len(table))]
    assert best in tried and best.name == table.condition[table.objective.idxmax()]  # of equals the first
    for weight in np.concatenate([point(plan) for plan in tried]):
        assert 0 <= weight <= 1 and weight == round(weight, 2)


def test_objectives_are_those_of_the_results():
    calls = []
    _, table = selection.search_weights(scorer(calls=calls), START, 3, "exact match")
    expected = pd.concat([frame for _, frame in calls]).groupby("condition").correct.mean()  # languages of equal n
    assert list(table.objective) == pytest.approx(list(expected[table.condition]))


def test_the_same_seed_tries_the_same():
    (best, table), (best_again, table_again), (_, other_table) = (
        selection.search_weights(scorer(), START, 4, "exact match", seed=seed) for seed in (3, 3, 4)
    )
    assert best == best_again and table.equals(table_again)
    assert not table.objective.equals(other_table.objective)


@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_the_start(seed):
    score = scorer(START)  # the start is the target
    best, table = selection.search_weights(score, START, 3, "answer loss", seed=seed)
    assert best == START and table.best.eq(table.objective[0]).all()


def test_equal_objectives_keep_the_start():
    best, table = selection.search_weights(constant_scorer((True, 1.0, 1)), START, 3, "exact match")
    assert best == START and table.objective.eq(1).all()


def test_no_generations():
    start = layer_swap(32, 5, 2, 1, 1, weight=0.333)
    score = constant_scorer((True, 1.0, 1), (False, 1.0, 1))
    best, table = selection.search_weights(score, start, 0, "exact match")
    expected = {"generation": 0, "condition": start.name, "objective": 0.5, "best": 0.5}
    assert best == start and table.to_dict("records") == [expected]


@pytest.mark.parametrize(("n_layers", "n_groups"), [(1, 1), (6, 6), (9, 9), (10, 9), (24, 9), (32, 9)])
def test_neighbours_share_their_weight(n_layers, n_groups):
    calls = []
    target = Plan("target", (0.3,) * n_layers, 0.8)
    selection.search_weights(scorer(target, calls), soup(n_layers), 3, "answer loss")
    groups = np.array_split(np.arange(n_layers), n_groups)
    assert n_groups + 1 <= 10 and max(map(len, groups)) - min(map(len, groups)) <= 1
    tried = [plan for plans, _ in calls for plan in plans]
    for plan in tried:
        assert len(plan.layers) == n_layers
        assert all(len({plan.layers[layer] for layer in group}) == 1 for group in groups)
    distinct = {tuple(plan.layers[layer] for plan in tried) for layer in range(n_layers)}
    assert len(distinct) == n_groups  # and no two groups always move together
