"""The weighted mean as one kernel for NVIDIA GPUs, in Triton, which torch brings along there.

torch's operations, one after the other, move forty times the bytes that must be moved.
"""

import struct

import torch
import triton
import triton.language as tl

STEP_ELEMENTS = 2048  # of one program
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
NAN_BITS = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float32: 0x7FC00000, torch.float64: 0x7FF8 << 48}


def weighted_mean_by_kernel(math: torch.Tensor, language: torch.Tensor, weight: float) -> torch.Tensor:
    """``arithmetic.weighted_mean_on_device``, with the same bits, as one kernel.

    Args:
        math: the math expert's tensor, of float64, float32, float16 or bfloat16, on a GPU.
        language: the language expert's, of the same dtype and shape.
        weight: the language expert's, in (0, 1).

    Returns:
        A new tensor of that dtype and shape.
    """
    merged = torch.empty_like(math, memory_format=torch.contiguous_format)
    n = merged.numel()
    if n:
        with torch.cuda.device(math.device):
            mean_kernel[(triton.cdiv(n, STEP_ELEMENTS),)](
                math.reshape(-1), language.reshape(-1), merged.view(-1).view(INTEGERS[merged.itemsize]), n,
                float64_bits(1 - weight), float64_bits(weight), NAN_BITS[math.dtype], STEP_ELEMENTS,
                enable_fp_fusion=False,
            )  # fmt: skip
    return merged


def float64_bits(number: float) -> int:
    """The bits of a float64 as an integer: as a float, Triton would pass a float32."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


@triton.jit
def mean_kernel(  # type: ignore[no-untyped-def]
    math_pointer, language_pointer, merged_pointer, n, math_weight_bits, language_weight_bits,
    nan_bits: tl.constexpr, n_elements: tl.constexpr,
):  # fmt: skip
    """Elements of one program: the float64 mean of three roundings (no fused multiply-add), rounded once at the end."""
    places = tl.program_id(0).to(tl.int64) * n_elements + tl.arange(0, n_elements)  # [elements]
    inside = places < n
    math = tl.load(math_pointer + places, inside)
    language = tl.load(language_pointer + places, inside)
    dtype = math.dtype
    math_weight = math_weight_bits.to(tl.int64).to(tl.float64, bitcast=True)
    language_weight = language_weight_bits.to(tl.int64).to(tl.float64, bitcast=True)
    if dtype == tl.bfloat16:  # the upper half of a float32
        math = (math.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        language = (language.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    mean = math.to(tl.float64) * math_weight + language.to(tl.float64) * language_weight
    if dtype == tl.float64:
        bits = mean.to(tl.int64, bitcast=True)
    else:
        single = mean.to(tl.float32)
        bits = single.to(tl.int32, bitcast=True)
        if dtype != tl.float32:  # to odd first, as in ``arithmetic.round_to_odd``
            back = single.to(tl.float64)
            odd = (bits - (tl.abs(back) > tl.abs(mean)).to(tl.int32)) | 1
            bits = tl.where((back == mean) | (tl.abs(back) == float("inf")), bits, odd)
            if dtype == tl.bfloat16:  # to nearest, ties to even
                bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            else:
                bits = bits.to(tl.float32, bitcast=True).to(tl.float16).to(tl.int16, bitcast=True)
    bits = tl.where(mean == mean, bits, nan_bits).to(merged_pointer.dtype.element_ty)
    tl.store(merged_pointer + places, bits, inside)
