"""Choosing a merge by problems that are not tested: the best of a table of plans, or a search over the weight vector.

The weights are a point in [0, 1] to the power of at most ten: one number for each group of neighbouring layers, one
for what is outside them. CMA-ES (Hansen, arXiv 1604.00772) moves a normal distribution towards the points that answer
more of the validation problems.
"""

import numpy as np
import pandas as pd
from cmaes import CMA

from layerswap.paths import UserError
from layerswap.plan import Plan

GROUPS = 9  # of layers, at most
CRITERIA = {"exact match": ("correct", 1.0), "answer loss": ("loss", -1.0)}


def worth(frame, criterion):
    """Condition -> mean over its languages, as a Series; higher is better (a loss counts negative).

    frame: validation results, with answer_nll and answer_tokens. UserError for a criterion that is none of CRITERIA.
    """
    if criterion not in CRITERIA:
        raise UserError(f"criterion is {criterion!r}, expected one of {', '.join(CRITERIA)}")
    column, sign = CRITERIA[criterion]
    told = frame.assign(loss=frame.answer_nll / frame.answer_tokens, correct=frame.correct.astype(float))
    means = told.groupby(["condition", "language"], sort=False)[column].mean()
    return sign * means.groupby("condition", sort=False).mean()


def search(score, start, generations, criterion, seed=0, population=8):
    """The best plan of a search that begins at plan ``start``, and the worth of all that were tried, as a frame.

    score(plans) -> validation results. Columns of the frame: generation, condition, worth, best (of all so far). The
    start is the first that is tried, so what is found is no worse on these problems. Weights have two digits.
    """
    n_layers = len(start.layers)
    groups = np.array_split(np.arange(n_layers), min(GROUPS, n_layers))
    middle = np.array([np.mean([start.layers[i] for i in group]) for group in groups] + [start.outside])  # [groups + 1]
    moves = CMA(mean=middle, sigma=0.25, bounds=np.array([[0.0, 1.0]] * len(middle)), seed=seed,
                population_size=population)  # fmt: skip
    rows, tried = [], {}
    for generation in range(generations + 1):
        points = [moves.ask() for _ in range(population)] if generation else []
        plans = [named(point, groups, f"{generation}.{i}") for i, point in enumerate(points)] or [start]
        found = worth(score(plans), criterion)
        if generation:
            moves.tell([(point, -found[each.name]) for point, each in zip(points, plans, strict=True)])
        tried |= {each.name: each for each in plans}
        rows += [{"generation": generation, "condition": each.name, "worth": found[each.name]} for each in plans]
    best = max(rows, key=lambda row: row["worth"])["condition"]  # of equals the first
    table = pd.DataFrame(rows)
    return tried[best], table.assign(best=table.worth.cummax())


def named(point, groups, name):
    """The plan of a point [groups + 1]."""
    *inside, outside = (round(float(w), 2) for w in point)
    return Plan(name, tuple(w for w, group in zip(inside, groups, strict=True) for _ in group), outside)
