"""Task vectors: bad fields are named, trimming keeps what is largest, merges are what the papers define."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tensors
from hypothesis import given, strategies as st

from layerswap.errors import UserError
from layerswap.merging.manifest import verify
from layerswap.merging.on_disk import merge
from layerswap.merging.task_vectors import TaskVectors, trim


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
        ({"gamma": 1}, "has the fields name, method and, as needed, .*, found .*'gamma': 1"),
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
    vector = torch.tensor(values, dtype=torch.float32)
    trimmed, n_kept = trim(vector, density), max(1, int(density * len(values)))
    limit = sorted(map(abs, values), reverse=True)[n_kept - 1]
    assert trimmed.tolist() == [v if abs(v) >= limit else 0 for v in values]


# --- merges ---------------------------------------------------------------------------------------------------


def reference_merge(plan, math, language, base):
    """Task arithmetic and TIES in float64, element by element."""
    math, language, base = (tensor.double().numpy() for tensor in (math, language, base))
    weights, vectors = (plan.math, plan.language), [math - base, language - base]
    if plan.method == "ties":
        for i, vector in enumerate(vectors):
            largest = np.argsort(-np.abs(vector).ravel(), kind="stable")[: max(1, int(plan.density * vector.size))]
            trimmed = np.zeros(vector.size)
            trimmed[largest] = vector.ravel()[largest]
            vectors[i] = trimmed.reshape(vector.shape)
    merged = weights[0] * vectors[0] + weights[1] * vectors[1]
    if plan.method == "ties":
        for i in np.ndindex(merged.shape):
            sign = 1 if merged[i] >= 0 else -1
            agreeing = [(w, vector[i]) for w, vector in zip(weights, vectors, strict=True) if w * vector[i] * sign > 0]
            total = sum(w for w, _ in agreeing)
            merged[i] = sum(w * value for w, value in agreeing) / total if total else 0
    return base + plan.scale * merged


PLANS = [
    TaskVectors("sum", "task arithmetic", 0.4, 0.4),
    TaskVectors("one", "task arithmetic", 0.0, 1.5, scale=0.5),
    TaskVectors("ties", "ties", density=0.3, scale=0.7),
    TaskVectors("weighted", "ties", 0.7, 0.2, density=0.6),
    TaskVectors("all", "ties"),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_task_vectors(checkpoint_factory, tmp_path, plan, dtype):
    folders = [checkpoint_factory(name, seed, dtype=dtype) for seed, name in enumerate(("math", "language", "base"))]
    manifest = merge(*folders[:2], plan, tmp_path / "out", base=folders[2])
    assert manifest["plan"] == plan.to_dict() and verify(tmp_path / "out")
    models = [tensors(folder) for folder in folders]
    n_different = n_elements = 0
    for name, tensor in tensors(tmp_path / "out").items():
        expected = torch.from_numpy(reference_merge(plan, *(model[name] for model in models)))
        error = (tensor.double() - expected).abs()
        n_different += (error > torch.finfo(dtype).eps * expected.abs() + 1e-6).sum().item()
        n_elements += tensor.numel()
        assert manifest["tensors"][name]["source"] == "math+language+base"
    # In bfloat16, elements can tie for the last place that trimming keeps.
    assert n_different <= (0 if dtype == torch.float32 else 0.01 * n_elements)


def test_two_equal_experts_merge_to_themselves(checkpoint_factory, tmp_path):
    math, base = checkpoint_factory("math", 1), checkpoint_factory("base", 3)
    language = shutil.copytree(math, tmp_path / "language")
    for i, plan in enumerate((TaskVectors("half", "task arithmetic", 0.5, 0.5), TaskVectors("ties", "ties"))):
        merge(math, language, plan, tmp_path / str(i), base=base)
        for name, tensor in tensors(tmp_path / str(i)).items():
            torch.testing.assert_close(tensor, tensors(math)[name])
