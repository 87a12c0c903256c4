"""The arithmetic of a merge: a merged tensor, chunk by chunk, from the tensors it is made of.

Means are taken in float64 and rounded once. (Float32 is not enough: a weight like 0.9 is no float32, and of the means
of two bfloat16 numbers one in a hundred lies so near the middle of two others that it then goes the wrong way.) numpy
does it: its import takes a tenth of the time of torch's.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import iadd
from typing import TYPE_CHECKING

from layerswap.checkpoints.safetensors import FLOAT_DTYPES, StoredTensor, read_chunks, to_float64
from layerswap.errors import UserError
from layerswap.merging.task_vectors import MergePlan, TaskVectors

if TYPE_CHECKING:
    import numpy as np

STEP_BYTES = 1 << 18  # bytes averaged at once: numpy's intermediate results stay in the processor's cache
Bytes = bytes | bytearray | memoryview


def merge_chunks(
    name: str, sources: Mapping[str, StoredTensor], plan: MergePlan
) -> Iterator[tuple[list[Bytes], Bytes]]:
    """A merged tensor, chunk by chunk.

    Args:
        name: of the tensor.
        sources: role -> the tensor of that model, all of one dtype and shape. One alone is copied.
        plan: says how several are combined: a weighted mean of bounded chunks, or task vectors of the whole tensors.

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
        weight = plan.weight(name)
        for math, language in zip(*map(read_chunks, tensors), strict=True):
            for start in range(0, len(math), STEP_BYTES):
                step = slice(start, start + STEP_BYTES)
                mean = weighted_mean(math[step], language[step], weight, tensors[0].dtype)
                yield [math[step], language[step]], mean.data


def check_mixable(header: Mapping[str, StoredTensor], plan: MergePlan) -> None:
    """UserError if a tensor of a header (name -> tensor) is to be mixed and is not of a dtype that can be."""
    for name, tensor in header.items():
        if plan.weight(name) not in (0, 1) and tensor.dtype not in FLOAT_DTYPES:
            expected = f"expected one of {', '.join(FLOAT_DTYPES)}"
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}, which cannot be mixed, {expected}")


def weighted_mean(math: Bytes, language: Bytes, weight: float, dtype: str) -> "np.ndarray":
    """The mean (1 - weight) math + weight language, element by element.

    Args:
        math: whole elements of the math expert's tensor.
        language: the same elements of the language expert's.
        weight: the language expert's, in (0, 1).
        dtype: of the elements, as safetensors writes it: one of FLOAT_DTYPES.

    Returns:
        The means as bytes of that dtype: uint8 [len(math)]. Calculated in float64, rounded once to nearest, ties to
        even. Infinities and NaNs of the experts stay such.
    """
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        mean, other = (to_float64(chunk, dtype) for chunk in (math, language))
        mean *= 1 - weight
        other *= weight
        mean += other
        if dtype != "BF16":
            return mean.astype(FLOAT_DTYPES[dtype]).view(np.uint8)
        bits = mean.astype(np.float32).view(np.uint32)
        # Halfway between two bfloat16 numbers, maybe only since float32 has rounded: then it is no tie.
        halfway = np.flatnonzero((bits & 0xFFFF) == 0x8000)
        error = np.sign(np.abs(mean[halfway]) - np.abs(bits[halfway].view(np.float32)))
        bits[halfway] += error.astype(np.int32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    bits[np.isnan(mean)] = 0x7FC00000
    return (bits >> 16).astype(np.uint16).view(np.uint8)
