"""The arithmetic of mixed tensors: the float64 mean, rounded once."""

import numpy as np
import pytest
import torch
from conftest import DEVICES, bits, same_bits
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from layerswap.checkpoints.safetensors import read_header
from layerswap.merging.arithmetic import (
    merge_chunks,
    weighted_mean,
    weighted_mean_in_memory,
    weighted_mean_on_device,
)
from layerswap.merging.plans import uniform


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight", [0.5, 0.25, 0.3, 1 / 3, 0.9])
def test_mixed_tensors_are_the_float64_mean_rounded_once(tmp_path, dtype, weight):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(700_000, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    for name, tensor in (("math", a), ("language", b)):  # large enough for several chunks
        (tmp_path / name).mkdir()
        save_file({"x": tensor}, tmp_path / name / "model.safetensors")
    pair = {name: read_header(tmp_path / name)["x"] for name in ("math", "language")}
    data = b"".join(bytes(merged) for _, merged in merge_chunks(pair, uniform(1, weight, "x"), weight))
    mean = torch.frombuffer(bytearray(data), dtype=dtype).double()
    expected = (1 - weight) * a.double() + weight * b.double()
    if dtype in (torch.bfloat16, torch.float16):  # torch goes by way of float32, and rounds twice
        fraction, exponent = np.frexp(expected.numpy())
        bits_kept = {torch.bfloat16: 8, torch.float16: 11}[dtype]
        fraction = np.rint(np.ldexp(fraction, bits_kept + np.minimum(0, exponent + 13) * (dtype == torch.float16)))
        rounded = np.ldexp(fraction, exponent - bits_kept - np.minimum(0, exponent + 13) * (dtype == torch.float16))
        assert torch.equal(mean, torch.from_numpy(rounded))
    else:
        assert torch.equal(mean, expected.to(dtype).double())


def test_a_mean_that_float32_would_call_a_tie_is_none():
    pair = [bytearray(np.array([bits16], np.uint16).tobytes()) for bits16 in (0xBAB3, 0x3B14)]
    # The mean is 0.00189590454101562524, between ...8921 and ...8997.
    mean = weighted_mean(*pair, 0.9, "BF16").view(np.uint16)[0]
    assert torch.tensor([mean], dtype=torch.uint16).view(torch.bfloat16).item() == 0.00189971923828125


def test_numbers_at_the_edge_are_mixed_as_torch_does():
    edge = [0.0, -0.0, 1e-45, -1e-40, 3.38e38, -3.38e38, float("inf"), -float("inf"), float("nan"), 1.0, 256.5]
    for dtype in (torch.bfloat16, torch.float32):
        grid = torch.tensor(edge).to(dtype)
        a, b = grid.repeat_interleave(len(edge)), grid.repeat(len(edge))
        for weight in (0.5, 0.3):
            chunks = [bytearray(bits(tensor).tobytes()) for tensor in (a, b)]
            mean = weighted_mean(*chunks, weight, {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype])
            expected = ((1 - weight) * a.double() + weight * b.double()).to(dtype)
            assert torch.equal(torch.from_numpy(mean).view(dtype).isnan(), expected.isnan())
            assert ((mean == bits(expected)).reshape(len(a), -1).all(1) | expected.isnan().numpy()).all()


DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(list(DTYPES)), st.integers(0, 2**32), st.integers(1, 70_000), st.floats(1e-6, 1 - 1e-6),
    st.booleans(),
)  # fmt: skip
def test_in_memory_and_on_disk_are_the_same_arithmetic(dtype, seed, n, weight, any_bits):
    rng = np.random.default_rng(seed)
    if any_bits:  # infinities, NaNs, subnormals
        a, b = (torch.from_numpy(rng.integers(0, 256, n * dtype.itemsize, np.uint8)).view(dtype) for _ in range(2))
    else:  # an expert close to the other: many ties
        a = torch.from_numpy(rng.normal(0, 0.02, n)).to(dtype)
        b = (a.double() + torch.from_numpy(rng.normal(0, 1e-3, n))).to(dtype)
    chunks = [bytearray(bits(tensor).tobytes()) for tensor in (a, b)]
    expected = torch.from_numpy(weighted_mean(*chunks, weight, DTYPES[dtype])).view(dtype)
    for device in DEVICES:
        pair = a.to(device), b.to(device)
        assert same_bits(weighted_mean_in_memory(*pair, weight), expected)
        assert same_bits(weighted_mean_on_device(*pair, weight, step=10_000), expected)
        assert all(map(same_bits, pair, (a, b))), "the experts stay as they are"


@pytest.mark.parametrize("mean", [weighted_mean_in_memory, weighted_mean_on_device])
def test_in_memory_a_mean_keeps_its_shape_and_needs_no_order_in_memory(mean):
    a, b = torch.randn(2, 5, 7, dtype=torch.float32).bfloat16()
    assert same_bits(mean(a.T, b.T, 0.3), mean(a, b, 0.3).T)
    assert mean(a[0, 0], b[0, 0], 0.3).shape == () and mean(a[:0], b[:0], 0.3).shape == (0, 7)
