"""The number format that this machine multiplies fastest."""

import torch


def fastest_precision() -> str:
    """`bf16` with instructions for it, else `no` (float32): emulated bfloat16 is a hundred times slower."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("bf16") else "no"


def autocast() -> torch.autocast:
    """Automatic casts of CPU operations to `fastest_precision`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_precision() == "bf16")
