"""The arithmetic of a merge: a merged tensor, piece by piece, from the tensors it is made of.

Means are taken in float64 and rounded once. (Float32 is not enough: a weight like 0.9 is no float32, and of the means
of two bfloat16 numbers one in a hundred lies so near the middle of two others that it then goes the wrong way.) numpy
does it: it is there in a tenth of the time that torch needs to be imported.
"""

from layerswap.checkpoint import read_pieces
from layerswap.paths import UserError

MIXED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # dtypes that can be mixed

BLOCK = 1 << 18  # bytes mixed at once: what numpy makes of them stays in the processor's cache


def blend(sources, plan, weight):
    """A merged tensor piece by piece: (a list of the sources' bytes, the merged bytes); use one before the next.

    sources: role -> Tensor, all of one dtype and shape; one alone is copied. weight: as in ``Plan.weight``; None gives
    the whole tensors to ``plan.combine``.
    """
    pieces = zip(*map(read_pieces, sources.values()), strict=True)
    if len(sources) == 1:
        yield from ((piece, piece[0]) for piece in pieces)
    elif not sources["math"].n_bytes:
        return
    elif weight is None:
        import torch

        dtype = getattr(torch, MIXED[sources["math"].dtype])
        whole = [b"".join(map(bytes, read_pieces(source))) for source in sources.values()]
        tensors = {r: torch.frombuffer(bytearray(b), dtype=dtype) for r, b in zip(sources, whole, strict=True)}
        yield whole, plan.combine(**tensors).view(torch.uint8).numpy()
    else:
        for pair in pieces:
            for start in range(0, len(pair[0]), BLOCK):
                block = [piece[start : start + BLOCK] for piece in pair]
                yield block, mean(*block, weight, sources["math"].dtype)


def check_mixable(header, plan):
    """UserError if a tensor of a header (name -> Tensor) is to be mixed and is not of a dtype that can be."""
    for name, tensor in header.items():
        if plan.weight(name) not in (0, 1) and tensor.dtype not in MIXED:
            expected = f"expected one of {', '.join(MIXED)}"
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}, which cannot be mixed, {expected}")


def mean(math, language, weight, dtype):
    """(1 - weight) math + weight language of two pieces of bytes of a dtype, as such bytes."""
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaNs of the experts are theirs
        ours, theirs = (widened(piece, dtype) for piece in (math, language))
        ours *= 1 - weight
        theirs *= weight
        ours += theirs
        if dtype != "BF16":
            return ours.astype(MIXED[dtype]).view(np.uint8)
        bits = ours.astype(np.float32).view(np.uint32)
        halfway = np.flatnonzero((bits & 0xFFFF) == 0x8000)  # or only since float32 has rounded: then it is no tie
        beyond = np.sign(np.abs(ours[halfway]) - np.abs(bits[halfway].view(np.float32)))
        bits[halfway] += beyond.astype(np.int32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    bits[np.isnan(ours)] = 0x7FC00000
    return (bits >> 16).astype(np.uint16).view(np.uint8)


def widened(piece, dtype):
    """The numbers of a piece of bytes, float64."""
    import numpy as np

    if dtype == "BF16":  # a float32 without its lower half
        return (np.frombuffer(piece, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(piece, MIXED[dtype]).astype(np.float64)
