"""Selecting a merge by validation problems: the best of a list of plans, or a search over the weight vector.

The weights are a point in [0, 1] to the power of at most ten: one number for each group of neighbouring layers, one
for the non-layer parameters. CMA-ES (Hansen, arXiv 1604.00772) moves a normal distribution towards the points that
answer more of the validation problems.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from cmaes import CMA

from layerswap.errors import UserError
from layerswap.merging.plans import Plan

MAX_GROUPS = 9  # of layers
CRITERIA = {"exact match": ("correct", 1.0), "answer loss": ("loss", -1.0)}  # name -> column, sign
TRIAL_COLUMNS = ["generation", "condition", "objective", "best"]


def objective(frame: pd.DataFrame, criterion: str) -> pd.Series:
    """What is maximised: the mean over languages of exact match, or of the negative answer loss (nats a token).

    Args:
        frame: validation results, with ``loss``.
        criterion: one of CRITERIA.

    Returns:
        Condition -> value; higher is better.

    Raises:
        UserError: an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise UserError(f"criterion is {criterion!r}, expected one of {', '.join(CRITERIA)}")
    column, sign = CRITERIA[criterion]
    means = frame.groupby(["condition", "language"], sort=False)[column].mean()
    return sign * means.groupby("condition", sort=False).mean()


def search_weights(
    score: Callable[[list[Plan]], pd.DataFrame], start: Plan, generations: int, criterion: str, seed: int = 0,
    population: int = 8,
) -> tuple[Plan, pd.DataFrame]:  # fmt: skip
    """Search the weight vector by CMA-ES.

    Args:
        score: gives the validation results of plans.
        start: the first plan that is tried, so the best one is no worse on these problems.
        generations: of ``population`` plans each.
        criterion: one of CRITERIA.
        seed: of the search.
        population: plans a generation.

    Returns:
        The best plan (the first of equals), its weights rounded to two digits, and a row for each plan tried, with
        the columns TRIAL_COLUMNS; ``best`` is the highest objective so far.

    Raises:
        UserError: an unknown criterion.
    """
    n_layers = len(start.layers)
    groups = np.array_split(np.arange(n_layers), min(MAX_GROUPS, n_layers))
    mean = np.array(
        [np.mean([start.layers[layer] for layer in group]) for group in groups] + [start.non_layer_weight]
    )  # [groups + 1]
    bounds = np.array([[0.0, 1.0]] * len(mean))
    distribution = CMA(mean=mean, sigma=0.25, bounds=bounds, seed=seed, population_size=population)
    plans_tried: dict[str, Plan] = {}
    rows = []
    for generation in range(generations + 1):
        points = [distribution.ask() for _ in range(population)] if generation else []
        plans = [plan_of_point(point, groups, f"{generation}.{i}") for i, point in enumerate(points)] or [start]
        values = objective(score(plans), criterion)
        if generation:
            distribution.tell([(point, -values[plan.name]) for point, plan in zip(points, plans, strict=True)])
        plans_tried |= {plan.name: plan for plan in plans}
        rows += [(generation, plan.name, values[plan.name]) for plan in plans]
    table = pd.DataFrame(rows, columns=TRIAL_COLUMNS[:3])
    table["best"] = table.objective.cummax()
    return plans_tried[table.condition[table.objective.idxmax()]], table


def plan_of_point(point: np.ndarray, groups: Sequence[np.ndarray], name: str) -> Plan:
    """The plan of a point [groups + 1]: the weight of each group's layers, then that of the non-layer parameters."""
    *weights, non_layer_weight = (round(float(weight), 2) for weight in point)
    layers = (weight for weight, group in zip(weights, groups, strict=True) for _ in group)
    return Plan(name, tuple(layers), non_layer_weight)
