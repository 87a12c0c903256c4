"""The one list of what is scored: its conditions, and that figures, claims and groups name only what is there."""

import re

import pytest

from layerswap.analysis.plots import METHOD_COLOURS
from layerswap.errors import UserError
from layerswap.merging.plans import WIDTH_NAMES, only_bottom, scaled_widths, uniform
from layerswap.run import experiments
from layerswap.run.experiments import profile_experiments
from layerswap.run.profiles import Project, load_profile, metadata

PROJECT = Project()
PROFILES = sorted(path.stem for path in (PROJECT.root / "params").glob("*.yml"))
DEPTH = {"smollm2": 30, "llama31-8b": 32, "gemma3-270m": 18}  # layers; of all others 12


@pytest.fixture(params=PROFILES)
def profile(request):
    return profile_experiments(load_profile(PROJECT, request.param), DEPTH.get(request.param, 12))


def test_contrasts_are_of_conditions_that_are_there(profile):
    for experiment in profile:
        for comparison in experiment.comparisons:
            for name, weights in comparison.contrasts.items():
                assert weights.keys() <= set(experiment.names), (comparison.figure, name)
                assert sum(weights.values()) == pytest.approx(0), (comparison.figure, name)


def test_claims_are_of_rows_that_are_there(profile):
    for experiment in profile:
        for comparison in experiment.comparisons:
            for claim in comparison.claims:
                pattern = re.escape(claim.row).replace(r"\*", ".*")
                rows = [name for name in comparison.contrasts if re.fullmatch(pattern, name)]
                assert rows or claim.row in ("random layers*", "mean of the random draws"), (comparison.figure, claim)


def test_figures_are_those_that_the_notebooks_declare(profile):
    for experiment in profile:
        figures = {comparison.figure for comparison in experiment.comparisons}
        assert figures <= set(metadata(PROJECT, experiment.notebook)["figures"])


def test_names_differ_and_groups_have_colours(profile):
    for experiment in profile:
        assert len(set(experiment.names)) == len(experiment.names)
        assert set(experiment.groups.values()) <= METHOD_COLOURS.keys()


def test_every_profile_has_all_ten_experiments(profile):
    notebooks = [experiment.notebook for experiment in profile]
    assert notebooks[:7] == ["01_experts", "02_swap", *["03_transition"] * 2, *["04_top_bottom"] * 3]
    assert notebooks[7:] in (["05_mgsm"], ["05_mgsm"] * 2)


def test_doses_compare_models_of_one_dose():
    """No contrast mixes two doses, but that the math expert has nothing of the language expert to be scaled."""
    experiment = experiments.dose_response(8, scaled_widths(8), 0.5, 0.5, [0.5, 2])
    names = set(experiment.names)
    for name, weights in experiment.contrasts("dose_response").items():
        dose = name.partition(", ")[2]
        assert weights.keys() <= names and sum(weights.values()) == 0
        for condition in weights:
            assert condition.partition(", ")[2] == ("" if condition == "math expert" else dose), name
            assert condition != "math expert" or "both" not in dose
    assert len(names) == 3 + 2 * (2 + 3) and len(experiment.contrasts("dose_response")) == 3 * 5


def test_transplants_take_nothing_of_the_math_expert_away():
    experiment = experiments.transplants(8, [0, 3, 8])
    maps = {condition.name: condition.plan.layer_map() for condition in experiment.conditions[1:]}
    assert maps["layer 2"] == "MMLMMMMM" and maps["3 bottom"] == "LLLMMMMM" and maps["3 top"] == "MMMMMLLL"
    assert maps["all"] == "LLLLLLLL" and len(maps) == 8 + 1 + 2 + 1
    assert {condition.roles for condition in experiment.conditions[1:]} == {("math", experiments.SUM)}


def test_the_transition_zone_of_a_small_model():
    widths = scaled_widths(8)
    ablation, sweep = experiments.transition_zone(8, widths, [1, 2], [0.25], 0.5, 0.5)
    maps = {condition.name: condition.plan.layer_map() for condition in sweep.conditions}
    assert maps == {
        "transition kept": "LxMMMMxL", "transition removed": "LMMMMMML",
        "bottom, width 1": "LxMMMMML", "bottom, width 2": "LxxMMMML", "top, width 1": "LMMMMMxL",
        "top, width 2": "LMMMMxxL", "both, width 1": "LxMMMMxL", "both, width 2": "LxxMMxxL",
        "weight 0.25": "LxMMMMxL", "kept, non-layer math": "LxMMMMxL", "removed, non-layer math": "LMMMMMML",
        "kept, non-layer average": "LxMMMMxL", "removed, non-layer average": "LMMMMMML",
        "kept, non-layer language": "LxMMMMxL", "removed, non-layer language": "LMMMMMML",
    }  # fmt: skip
    assert ablation.names == ["transition kept", "transition removed"]
    with pytest.raises(UserError, match=r"none of zone_widths \[7\] fits between 1 bottom and 1 top layers"):
        experiments.transition_zone(8, widths, [7], [0.25], 0.5, 0.5)


def test_the_ends_of_a_small_model():
    ends = experiments.ends(8, scaled_widths(8, 2, 1), [3], 0.0)
    maps = {condition.name: condition.plan.layer_map() for condition in ends.conditions}
    assert maps["neither"] == "MMMMMMMM" and maps["only bottom"] == "LLMMMMMM" and maps["only top"] == "MMMMMMML"
    assert maps["both"] == "LLMMMMML" and maps["middle layers"] == "MMLLLMMM" and maps["roles reversed"] == "MMLLLLLM"
    assert maps["random layers, draw 3"].count("L") == 3
    with pytest.raises(UserError, match="two of both ends and its controls are the same layers"):
        experiments.ends(8, scaled_widths(8, 0, 0), [3], 0.0)


def test_widths_that_are_zero_are_zero():
    both = experiments.ends(8, scaled_widths(8, 0, 1), [], 0.0).conditions[3]
    assert both.plan.layer_map() == "MMMMMMML"


def methods_with(*chosen_plans, **changes):
    widths = scaled_widths(8, 2, 1, 1, 1) | changes
    return experiments.methods(8, widths, 0.5, 0.5, 0.2, chosen_plans=chosen_plans)


def test_the_same_model_under_two_names_is_one_method():
    same_models = [only_bottom(8, 2, 0.5, "widths chosen"), uniform(8, 0.0, "searched weights")]
    methods = methods_with(*same_models)
    assert not {"widths chosen", "searched weights"} & set(methods.names)
    assert methods.equals == {"only bottom": ("widths chosen",), "math expert": ("searched weights",)}
    assert methods.labels == {
        "only bottom": "only bottom = widths chosen",
        "math expert": "math expert = searched weights",
    }
    assert methods.contrasts("mgsm_chosen") == {
        name: {name: 1, "only bottom": -1} for name in ("layer swap", "transition removed")
    }
    assert "widths chosen" not in methods.contrasts("mgsm_paired")


def test_another_weight_makes_another_method():
    methods = methods_with(only_bottom(8, 2, 0.25, "widths chosen"))
    assert "widths chosen" in methods.names and not methods.equals
    assert set(methods.contrasts("mgsm_chosen")) == {"layer swap", "transition removed", "only bottom"}
    without_zone = methods_with(transition_bottom=0, transition_top=0)
    assert without_zone.equals == {"layer swap": ("transition removed",)}


def test_an_expert_of_weight_0_makes_no_other_method():
    methods = experiments.methods(8, dict.fromkeys(WIDTH_NAMES, 0), 0.5, 0.0, 0.2)
    swaps = ("revert after training", "layer swap", "transition removed", "only bottom")
    assert methods.equals == {"math expert": swaps} and methods.contrasts("mgsm_chosen") == {}


def test_a_zone_of_weight_0_or_the_default_is_no_new_result():
    _, sweep = experiments.transition_zone(8, scaled_widths(8), [1], [0.5, 0.0, 1.0, 1.0], 0.5, 0.5)
    assert list(sweep.contrasts("transition_weight")) == ["transition kept", "weight 1"]
    without_zone = scaled_widths(8) | {"transition_bottom": 0, "transition_top": 0}
    _, sweep = experiments.transition_zone(8, without_zone, [1], [0.25], 0.5, 0.5)
    assert sweep.contrasts("transition_weight") == {}
