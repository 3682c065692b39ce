"""The number format, layout and attention with which this machine is fastest."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fastest_precision(device: str = "cpu") -> str:
    """`bf16` if `device`, "cpu" or "cuda", has instructions for it, else `no` (float32): emulated bfloat16 is a hundred
    times slower."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("bf16") else "no"


def autocast() -> torch.autocast:
    """Automatic casts of CPU operations to `fastest_precision`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_precision() == "bf16")


def use_fastest_attention(model: "PreTrainedModel") -> None:
    """On CPUs the backward of bfloat16 scaled_dot_product_attention is slower than that of its parts."""
    if fastest_precision() == "bf16":
        model.set_attn_implementation("eager")


def fastest_layout() -> torch.memory_format:
    """In which order networks with group norms keep their activations.

    Channels last suits the convolutions, but PyTorch's group norm takes 6 to 25 times as long on it (64 x 64 x 16 x 16
    on a CPU in bfloat16: forward 15.8 against 0.6 ms, backward 18.2 against 3.2). With fast convolutions that decides:
    a step of the UNet takes 0.82 s instead of 0.96. In float32 convolutions decide.
    """
    return torch.contiguous_format if fastest_precision() == "bf16" else torch.channels_last
