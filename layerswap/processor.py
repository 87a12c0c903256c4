"""What the processor is good at."""


def has_fast_bfloat16(device: str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 matrices itself.

    On a CPU without AVX512-BF16 or AMX it is emulated, and takes longer than float32.

    Args:
        device: "cpu" or "cuda".
    """
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def resolve_dtype(dtype: str, device: str = "cpu") -> str:
    """A parameter's dtype by its name: "auto" is bfloat16 where the device is fast at it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_fast_bfloat16(device) else "float32"
