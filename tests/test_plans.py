"""Plans: the weights are what the definition says, and bad widths and weights are named."""

import json
import math
from dataclasses import FrozenInstanceError

import pytest
import yaml
from hypothesis import given, strategies as st

from layerswap.errors import UserError
from layerswap.files import read_yaml
from layerswap.merging.plans import (
    SCALED,
    WIDTH_NAMES,
    Plan,
    layer_swap,
    middle_layers,
    only_bottom,
    only_top,
    random_layers,
    scaled_widths,
    selected_layers,
    soup,
    uniform,
)

WEIGHTS = st.floats(0, 1)


@st.composite
def zone_widths(draw):
    """n_layers and four zones that fit."""
    zones = [draw(st.integers(0, 6)) for _ in range(4)]
    return sum(zones) + draw(st.integers(0, 6)), *zones


def by_definition(layer, n_layers, bottom, top, transition_bottom, transition_top, weight):
    """The paper's regions, from a layer's distance to either end."""
    from_top = n_layers - 1 - layer
    if layer < bottom or from_top < top:
        return 1
    if layer < bottom + transition_bottom or from_top < top + transition_top:
        return weight
    return 0


@given(zone_widths().filter(lambda zones: zones[0] > 0), WEIGHTS, WEIGHTS)
def test_layer_swap_follows_the_definition(zones, weight, non_layer_weight):
    plan = layer_swap(*zones, weight, non_layer_weight)
    assert list(plan.layers) == [by_definition(layer, *zones, weight) for layer in range(zones[0])]
    assert plan.non_layer_weight == non_layer_weight
    assert all(isinstance(w, float) and math.copysign(1, w) == 1 for w in (*plan.layers, plan.non_layer_weight))


def test_papers_swap():
    plan = layer_swap(32, 5, 2, 1, 1)
    assert plan.layer_map() == "LLLLLx" + 23 * "M" + "xLL"
    assert plan.layers[5] == plan.layers[29] == plan.non_layer_weight == 0.5


@given(zone_widths().filter(lambda zones: sum(zones[1:]) > 0), st.integers(1, 6))
def test_overlapping_zones_are_refused(zones, missing):
    n_layers = sum(zones[1:]) - missing
    with pytest.raises(UserError, match="overlap" if n_layers >= 0 else "n_layers"):
        layer_swap(n_layers, *zones[1:])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"bottom": -1}, "bottom"),
        ({"top": -1}, "top"),
        ({"transition_bottom": -2}, "transition_bottom"),
        ({"transition_top": -2}, "transition_top"),
        ({"bottom": 1.0}, "bottom"),
        ({"top": True}, "top"),
        ({"bottom": "1"}, "bottom"),
        ({"n_layers": None}, "n_layers"),
        ({"n_layers": 0, "bottom": 0, "top": 0}, "layers"),
        ({"weight": 1.01}, "weight"),
        ({"weight": -1e-9}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"weight": "half"}, "weight"),
        ({"non_layer_weight": math.inf}, "non_layer_weight"),
        ({"non_layer_weight": math.nan}, "non_layer_weight"),
        ({"non_layer_weight": None}, "non_layer_weight"),
        ({"non_layer_weight": True}, "non_layer_weight"),
    ],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(UserError, match=rf"^{field}\b") as error:
        layer_swap(**{"n_layers": 8, "bottom": 2, "top": 1} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [(), None, 0.5, "01", {0: 1.0}, (0.5, math.nan), (2,), (None,), (False,)])
def test_bad_layers_are_refused(layers):
    with pytest.raises(UserError, match="^layers"):
        Plan("bad", layers, 0.5)


@given(st.text(), st.lists(WEIGHTS, min_size=1), WEIGHTS)
def test_round_trip_through_json(name, layers, non_layer_weight):
    plan = Plan(name, tuple(layers), non_layer_weight)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and hash(again) == hash(plan)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"name": "x", "layers": [1]}, {"name": "x", "layers": [1], "non_layer_weight": 0, "top": 1}]
)
def test_bad_plan_data_is_refused(data):
    with pytest.raises(UserError, match="fields"):
        Plan.from_dict(data)


def test_the_old_name_of_a_field_is_explained():
    with pytest.raises(UserError, match="^field 'outside' of a plan is called non_layer_weight now$"):
        Plan.from_dict({"name": "x", "layers": [1], "outside": 0})


@pytest.mark.parametrize(("layer", "weight"), [(0, 0), (10, 0.625), (None, 1)])
def test_weight_of_a_layer(layer, weight):
    assert Plan("ramp", tuple(i / 16 for i in range(16)), 1).weight(layer) == weight


def test_layer_beyond_the_plan_is_named():
    with pytest.raises(UserError, match="layer 2 is not in plan 'soup', which has 2 layers"):
        uniform(2, 0.5, "soup").weight(2)


@pytest.mark.parametrize(("weight", "letter"), [(0, "M"), (0.5, "x"), (1, "L")])
def test_uniform(weight, letter):
    plan = uniform(3, weight, "same everywhere")
    assert plan.layers == (weight,) * 3 and plan.non_layer_weight == weight and plan.layer_map() == 3 * letter


@pytest.mark.parametrize(
    ("n_layers", "expected"),
    [(4, (1, 1, 1, 1)), (8, (1, 1, 1, 1)), (24, (4, 2, 1, 1)), (32, (5, 2, 1, 1)), (64, (10, 4, 2, 2))],
)
def test_scaled_widths(n_layers, expected):
    widths = scaled_widths(n_layers)
    assert list(widths) == ["bottom", "top", "transition_bottom", "transition_top"]
    assert tuple(widths.values()) == expected
    assert scaled_widths(n_layers, SCALED, SCALED, SCALED, SCALED) == widths


@given(st.integers(4, 200))
def test_scaled_widths_fit_and_keep_the_fraction(n_layers):
    swap = layer_swap(n_layers, **scaled_widths(n_layers))
    assert abs(swap.layers.count(1) - n_layers * 7 / 32) <= max(1, 2 - n_layers * 7 / 32)


@given(st.integers(4, 200), st.lists(st.one_of(st.just(SCALED), st.integers(0, 9)), min_size=4, max_size=4))
def test_each_width_is_a_number_or_scaled(n_layers, values):
    scaled = scaled_widths(n_layers).values()
    expected = [default if value == SCALED else value for value, default in zip(values, scaled, strict=True)]
    assert list(scaled_widths(n_layers, *values).values()) == expected
    assert list(scaled_widths(n_layers, **dict(zip(WIDTH_NAMES, values, strict=True))).values()) == expected


@pytest.mark.parametrize("field", WIDTH_NAMES)
@pytest.mark.parametrize("width", ["", -1, None, "default", "2", 2.0, True, []])
def test_nothing_but_scaled_means_the_default(field, width):
    with pytest.raises(UserError, match=rf"^{field} is .*, expected a whole number of layers, 0 or more, or 'scaled'$"):
        scaled_widths(32, **{field: width})


def test_minus_zero_is_zero():
    plan = uniform(2, -0.0, "math")
    assert json.dumps(plan.to_dict()) == json.dumps(uniform(2, 0, "math").to_dict())


def test_plans_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        uniform(2, 0.5, "soup").non_layer_weight = 1.0


# --- ablations and controls ---------------------------------------------------------------------------------


def test_ablations_are_swaps_with_one_end():
    assert only_bottom(8, 3).layer_map() == "LLLMMMMM" and only_top(8, 3).layer_map() == "MMMMMLLL"
    assert only_bottom(8, 3, non_layer_weight=0).non_layer_weight == 0 and only_top(8, 3).non_layer_weight == 0.5
    assert soup(3) == uniform(3, 0.5, "soup")


@given(st.integers(1, 40), st.data())
def test_controls_take_as_many_layers(n_layers, data):
    count, seed = data.draw(st.integers(0, n_layers)), data.draw(st.integers(0, 9))
    for plan in (middle_layers(n_layers, count), random_layers(n_layers, count, seed)):
        assert sorted(plan.layers) == [0] * (n_layers - count) + [1] * count
    letters = middle_layers(n_layers, count).layer_map()
    assert abs(len(letters.rstrip("M")) - len(letters) + len(letters) - len(letters.lstrip("M"))) <= 1 or not count
    assert random_layers(n_layers, count, seed) == random_layers(n_layers, count, seed)


def test_seeds_draw_different_layers():
    assert len({random_layers(32, 8, seed).layers for seed in range(20)}) == 20


@pytest.mark.parametrize("count", [-1, 9, 1.0, True, None])
def test_counts_that_do_not_fit_are_named(count):
    for make in (lambda: middle_layers(8, count), lambda: random_layers(8, count, 0)):
        with pytest.raises(UserError, match="^count is "):
            make()


@pytest.mark.parametrize("layers", [[8], [-1, 2], [1.5]])
def test_layers_that_the_model_lacks_are_named(layers):
    with pytest.raises(UserError, match=r"^layer .* is not in a model of n_layers 8"):
        selected_layers(8, layers)


# --- plan files ---------------------------------------------------------------------------------------------


@given(st.text(), st.lists(WEIGHTS, min_size=1), WEIGHTS)
def test_round_trip_through_yaml(name, layers, non_layer_weight):
    plan = Plan(name, tuple(layers), non_layer_weight)
    assert Plan.from_dict(yaml.safe_load(yaml.safe_dump(plan.to_dict()))) == plan


@pytest.mark.parametrize("content", [b"", b"- 1", b"7", b"a: [", b"\xff\xfe", b"a: !!python/object:os.system {}"])
def test_a_file_without_fields_is_named(tmp_path, content):
    (tmp_path / "plan.yml").write_bytes(content)
    with pytest.raises(UserError, match="plan.yml: ") as error:
        read_yaml(tmp_path / "plan.yml")
    assert "\n" not in str(error.value)
