"""The arithmetic of a merge: a merged tensor, chunk by chunk, from the tensors it is made of.

Means are taken in float64 and rounded once. (Float32 is not enough: a weight like 0.9 is no float32, and of the means
of two bfloat16 numbers one in a hundred lies so near the middle of two others that it then goes the wrong way.) numpy
does it: its import takes a tenth of the time of torch's.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from importlib.util import find_spec
from operator import iadd
from typing import TYPE_CHECKING

from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, read_chunks, to_float64
from layerswap.merging.task_vectors import MergePlan, TaskVectors

if TYPE_CHECKING:
    import numpy as np
    import torch

STEP_BYTES = 1 << 18  # bytes averaged at once: numpy's intermediate results stay in the processor's cache
Bytes = bytes | bytearray | memoryview


def merge_chunks(
    sources: Mapping[str, StoredTensor], plan: MergePlan, weight: float | None
) -> Iterator[tuple[list[Bytes], Bytes]]:
    """A merged tensor, chunk by chunk.

    Args:
        sources: role -> the tensor of that model, all of one dtype and shape. One alone is copied.
        plan: says how several are combined: a weighted mean of bounded chunks, or task vectors of the whole tensors.
        weight: the language expert's in a mean.

    Yields:
        The sources' bytes, in the order of ``plan.roles``, and the merged bytes. The sources' buffers are used again
        for the next chunk; a copy is its source's buffer.

    Raises:
        UserError: a file that ends too early.
    """
    if len(sources) == 1:
        for chunk in read_chunks(*sources.values()):
            yield [chunk], chunk
        return
    tensors = [sources[role] for role in plan.roles]
    if not tensors[0].n_bytes:
        return
    if isinstance(plan, TaskVectors):
        import torch

        dtype = getattr(torch, FLOAT_DTYPES[tensors[0].dtype])
        whole: list[Bytes] = [reduce(iadd, read_chunks(tensor), bytearray()) for tensor in tensors]
        values = {role: torch.frombuffer(data, dtype=dtype) for role, data in zip(plan.roles, whole, strict=True)}
        yield whole, plan.combine(**values).view(torch.uint8).numpy().data
    else:
        assert weight is not None  # a plan of means has one for every tensor
        for math, language in zip(*map(read_chunks, tensors), strict=True):
            for start in range(0, len(math), STEP_BYTES):
                step = slice(start, start + STEP_BYTES)
                mean = weighted_mean(math[step], language[step], weight, tensors[0].dtype)
                yield [math[step], language[step]], mean.data


def weighted_mean(math: Bytes, language: Bytes, weight: float, dtype: str) -> "np.ndarray":
    """The mean (1 - weight) math + weight language, element by element.

    Args:
        math: whole elements of the math expert's tensor.
        language: the same elements of the language expert's.
        weight: the language expert's, in (0, 1).
        dtype: of the elements, as safetensors writes it: one of FLOAT_DTYPES.

    Returns:
        The means as bytes of that dtype: uint8 [len(math)]. Calculated in float64, rounded once to nearest, ties to
        even. Infinities of the experts stay such; every NaN is the same one.
    """
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        mean, other = (to_float64(chunk, dtype) for chunk in (math, language))
        mean *= 1 - weight
        other *= weight
        mean += other
        if np.isnan(mean.sum()):  # there are NaNs, or infinities of both signs
            mean[np.isnan(mean)] = np.nan
        if dtype != "BF16":
            return mean.astype(FLOAT_DTYPES[dtype]).view(np.uint8)
        bits = mean.astype(np.float32).view(np.uint32)
        # Halfway between two bfloat16 numbers, maybe only since float32 has rounded: then it is no tie.
        halfway = np.flatnonzero((bits & 0xFFFF) == 0x8000)
        error = np.sign(np.abs(mean[halfway]) - np.abs(bits[halfway].view(np.float32)))
        bits[halfway] += error.astype(np.int32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (bits >> 16).astype(np.uint16).view(np.uint8)


def weighted_mean_in_memory(math: "torch.Tensor", language: "torch.Tensor", weight: float) -> "torch.Tensor":
    """``weighted_mean`` of tensors in memory, on the device they are on.

    Args:
        math: the math expert's tensor, of float64, float32, float16 or bfloat16.
        language: the language expert's, of the same dtype and shape.
        weight: the language expert's, in (0, 1).

    Returns:
        A new tensor of that dtype and shape.
    """
    import torch

    if math.is_cuda and find_spec("triton"):
        from layerswap.merging.mean_kernel import weighted_mean_by_kernel

        return weighted_mean_by_kernel(math, language, weight)
    if math.device.type != "cpu":
        return weighted_mean_on_device(math, language, weight)
    merged = empty_placed_like(math)
    names = {getattr(torch, dtype): name for name, dtype in FLOAT_DTYPES.items()}
    # [bytes] each
    data = [tensor.detach().reshape(-1).view(torch.uint8).numpy() for tensor in (math, language, merged)]
    for start in range(0, merged.nbytes, STEP_BYTES):  # numpy takes half as long as torch
        math_step, language_step, merged_step = (numbers[start : start + STEP_BYTES] for numbers in data)
        merged_step[:] = weighted_mean(math_step.data, language_step.data, weight, names[math.dtype])
    return merged


def empty_placed_like(tensor: "torch.Tensor") -> "torch.Tensor":
    """An empty contiguous tensor of the same dtype and shape that lies as far from a multiple of 64 bytes in memory.

    Some kernels sum in another order where that is another. Tensors are used where they lie in their file, and a merged
    file is laid out like the math expert's: so the logits of both ways of merging are the same too.
    """
    import torch

    memory = torch.empty(tensor.nbytes + 64, dtype=torch.uint8)
    start = (tensor.data_ptr() - memory.data_ptr()) % 64 // tensor.itemsize * tensor.itemsize
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def weighted_mean_on_device(
    math: "torch.Tensor", language: "torch.Tensor", weight: float, step: int = 1 << 24
) -> "torch.Tensor":
    """``weighted_mean`` by operations of torch, with the same bits, for a device without Triton.

    Args:
        math: the math expert's tensor, of float64, float32, float16 or bfloat16.
        language: the language expert's, of the same dtype and shape.
        weight: the language expert's, in (0, 1).
        step: elements averaged at once, which need 40 bytes each.

    Returns:
        A new tensor of that dtype and shape.
    """
    import torch

    merged = torch.empty_like(math, memory_format=torch.contiguous_format)
    flat = (math.reshape(-1), language.reshape(-1), merged.view(-1))  # [elements] each
    for math_step, language_step, merged_step in zip(*(tensor.split(step) for tensor in flat), strict=True):
        # Three roundings in float64, like numpy's: a fused multiply-add would skip one.
        mean = math_step.double() * (1 - weight)
        mean += language_step.double() * weight
        merged_step.copy_(round_to_odd(mean) if math.dtype in (torch.float16, torch.bfloat16) else mean)
        merged_step.masked_fill_(mean.isnan(), float("nan"))  # its bits would depend on the processor
    return merged


def round_to_odd(numbers: "torch.Tensor") -> "torch.Tensor":
    """float64 [n] -> float32 [n], where an inexact result gets the neighbour whose last bit is 1.

    A second rounding to a narrower dtype then gives what one rounding from float64 would give (Boldo and Melquiond,
    "Emulation of a FMA and correctly rounded sums", 2008); rounding to nearest twice does not.
    """
    import torch

    rounded = numbers.float()
    back, bits = rounded.double(), rounded.view(torch.int32)
    odd = (bits - (back.abs() > numbers.abs()).int()) | 1  # toward zero, then the last bit
    return torch.where((back == numbers) | ~back.isfinite(), bits, odd).view(torch.float32)
