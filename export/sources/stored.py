"""In what precision weights are held while a model is open (`bolid_export.residency`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

# Bytes on disk from which a network has no float32 copy but while it runs: with one of everything, Stable Diffusion 1.5
# would not fit into 8 GB.
LARGE = 1 << 27


def memory_dtype(folder: Path) -> torch.dtype:
    """float16 for weights of `LARGE` bytes that are float16 throughout, else float32."""
    files = sorted(folder.rglob("*.safetensors"))
    large = sum(file.stat().st_size for file in files) >= LARGE
    return torch.float16 if large and all(_is_half(file) for file in files) else torch.float32


def tensors_dtype(tensors: Collection[Tensor]) -> torch.dtype:
    """Likewise, of a network that shares its file with others."""
    large = sum(tensor.nbytes for tensor in tensors) >= LARGE
    return torch.float16 if large and all(tensor.dtype == torch.float16 for tensor in tensors) else torch.float32


def read_whole(network: nn.Module) -> None:
    """Copies weights that are mapped out of their file: its pages stay in memory until the last of them is given up,
    beside the float32 copies that replace them one by one."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def _is_half(file: Path) -> bool:
    with safe_open(file, framework="pt") as tensors:
        return all(tensors.get_slice(name).get_dtype() in ("F16", "I64") for name in tensors.keys())  # noqa: SIM118
