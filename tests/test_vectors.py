"""Task vectors as plans: bad fields are named; trimming keeps what is largest."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerswap.paths import UserError
from layerswap.vectors import TaskVectors, trim


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "dare"}, "method is 'dare', expected one of task arithmetic, ties"),
        ({"math": -1}, "math is -1"),
        ({"language": float("nan")}, "language is nan"),
        ({"scale": "1"}, "scale is '1'"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"name": 7}, "name is 7, expected text"),
        ({"scale": True}, "scale is True"),
        ({"density": 0}, "density is 0.0, expected a number above 0"),
        ({"density": 1.1}, "density is 1.1, expected"),
        ({"method": "task arithmetic", "density": 0.5}, "task arithmetic keeps every element"),
        ({"gamma": 1}, "unexpected keyword argument 'gamma'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message) as error:
        TaskVectors.from_dict({"name": "x", "method": "ties"} | fields)
    assert "\n" not in str(error.value)


def test_round_trip_through_json():
    plan = TaskVectors("x", "ties", 0.3, 0.4, 0.5, 0.6)
    assert TaskVectors.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.floats(0.01, 1))
def test_trim_keeps_the_largest_and_their_ties(values, density):
    delta = torch.tensor(values, dtype=torch.float32)
    trimmed, kept = trim(delta, density), max(1, int(density * len(values)))
    limit = sorted(map(abs, values), reverse=True)[kept - 1]
    assert trimmed.tolist() == [v if abs(v) >= limit else 0 for v in values]
