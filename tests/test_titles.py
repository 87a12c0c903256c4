"""Titles say what a table holds, and no more than it shows."""

import pandas as pd
import pytest

from layerswap.analysis import titles
from layerswap.merging.plans import only_bottom, soup


def compared(*rows):
    return pd.DataFrame(rows, columns=["condition", "language", "difference", "p_holm"])


@pytest.mark.parametrize(
    ("rows", "reference", "higher_is_better", "title"),
    [
        ([("a", "sw", 0.2, 0.01), ("b", "sw", -0.1, 0.049)], "the soup", True,
         "Clearly better than the soup: a. Clearly worse than the soup: b"),
        ([("a", "sw", 0.2, 0.01), ("b", "sw", -0.1, 0.049)], "the soup", False,
         "Clearly better than the soup: b. Clearly worse than the soup: a"),
        ([("a", "sw", 0.2, 0.01)], "", True, "Clearly above zero: a"),
        ([("a", "sw", 0.2, 0.05)], "the soup", True, "Nothing is clearly better or worse than the soup"),
        ([("a", "sw", 0.2, 0.05)], "", True, "Nothing is clearly above or below zero"),
        ([("a", "sw", 0.2, 0.01), ("a", "pooled", 0.1, 0.5)], "", True, "Nothing is clearly above or below zero"),
        ([(name, "sw", 0.2, 0.01) for name in "abcdef"], "", True, "Clearly above zero: a; b; c; d; and 2 more"),
    ],
)  # fmt: skip
def test_differences(rows, reference, higher_is_better, title):
    assert titles.difference_title(compared(*rows), reference, higher_is_better) == title


def test_levels():
    table = pd.DataFrame({"condition": ["math expert"] * 3 + ["TIES"] * 2, "language": ["en", "sw", "te", "sw", "te"],
                          "accuracy": [1, 0.4, 0.6, 0.6, 0.8]})  # fmt: skip
    assert titles.level_title(table) == "Math expert 50 %; highest TIES 70 %; mean of 2 target languages"


def test_steps():
    table = pd.DataFrame({"condition": ["math expert", "layer swap"] * 2, "steps": ["steps: 2"] * 2 + ["all"] * 2,
                          "mean": [0.5, 0.6, 0.5, 0.25]})  # fmt: skip
    assert titles.steps_title(table) == "Layer swap minus math expert, points: steps: 2 +10; all -25"
    assert titles.steps_title(table[table.condition == "layer swap"]) == ""


def test_doses_need_both_comparisons():
    rows = [
        (dose, line, difference, p)
        for dose, p in (("× 1", 0.01), ("× 2", 0.2))
        for line, difference in (("layer swap - math expert", 0.1), ("layer swap - soup", 0.1), ("soup - math", 1))
    ]
    table = pd.DataFrame(rows, columns=["amount", "line", "difference", "p_holm"]).assign(language="sw", dose="both")
    assert titles.dose_title(table) == "Layer swap clearly above both math expert and soup: both × 1 (Swahili)"
    table.loc[1, "p_holm"] = 0.3  # layer swap - soup
    assert titles.dose_title(table).endswith(": at no dose")


def test_single_layers():
    table = compared(("0", "sw", 0.2, 0.01), ("1", "te", -0.1, 0.02), ("2", "te", -0.1, 0.2)).assign(
        measure="exact match"
    )
    assert titles.layer_title(table) == "exact match: clearly better with 0 (Swahili); worse with 1 (Telugu)"
    assert titles.layer_title(table.assign(p_holm=1)) == "exact match: no single layer is clear"


def test_errors():
    table = pd.DataFrame({"correct": [60, 50], "arithmetic": [10, 20], "other": [30, 30]}, ["layer swap", "soup"])
    assert titles.error_title(table) == "layer swap: 60 % correct, most frequent error: other (30 %)"
    assert titles.error_title(pd.DataFrame({"correct": [100], "other": [0]}, ["soup"])) == "soup: 100 % correct"


def test_the_rows_of_a_figure_are_called_as_in_it():
    table = compared(("kept", "sw", 0.2, 0.01))
    assert titles.difference_title(table, labels={"kept": "weight 0.5"}) == "Clearly above zero: weight 0.5"


def test_each_expert_moved_one_matrix_most():
    """The rows of several experts come with the same index."""
    one = pd.DataFrame({"matrix": ["q", "v"], "layer": [0, 1], "relative": [0.1, 0.2]})
    other = one.assign(relative=[0.4, 0.3])
    table = pd.concat([one.assign(expert="math"), other.assign(expert="sw")])
    assert titles.change_title(table) == "Moved most: math v in layer 1; Swahili q in layer 0"


@pytest.mark.parametrize(
    ("criterion", "best", "ending"),
    [("exact match", [0.6, 0.625], "from 60 to 62.5 % there"),
     ("answer loss", [-1.2, -1.1], "from 1.2 to 1.1 nats a token there")],
)  # fmt: skip
def test_what_was_chosen(criterion, best, ending):
    plans = [soup(4), only_bottom(4, 1, 0.0)]
    start = "Chosen on validation problems: from the bottom 1 language, 3 math layers; non-layer weight 0"
    title = titles.selection_title(plans, pd.DataFrame({"best": best}), criterion)
    assert title == f"{start}. The search went {ending}"
    assert titles.selection_title(plans, pd.DataFrame(), criterion) == start
    assert titles.selection_title(plans[:1], pd.DataFrame(), criterion) == "Nothing was chosen"


def test_the_highest_is_named_where_it_is_higher():
    table = pd.DataFrame({"condition": ["layer swap", "a"], "language": "sw", "accuracy": [0.5, 0.5]})
    assert titles.level_title(table) == "Layer swap 50 %"
    assert titles.level_title(table.assign(language="en")) == "Layer swap 50 %"
