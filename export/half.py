"""float16 as a GPU's matrix units have it: operands and results rounded to float16, sums in float32.

PyTorch's own float16 kernels for CPUs take seconds for a single convolution of Stable Diffusion (26 s for 320 channels
at 32 x 32 on a busy core without AVX512-FP16; 0.08 s in float32), so that a large network cannot be tried with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class HalfOnFloat32(TorchDispatchMode):
    """Inside, matrix products, convolutions and attention of float16 tensors run on float32 kernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        run = _REPLACED.get(func)
        if run is None or not any(_is_half(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        args, kwargs = tree_map(_raise, (args, kwargs))
        return tree_map(_round, run(*args, **kwargs))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores and weights are rounded too: exported graphs have them as tensors of their own."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _round(query @ key.transpose(-1, -2) * scale).float()
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = _round(torch.softmax(scores, dim=-1)).float()
    return weights @ value, scores.logsumexp(-1)


_REPLACED: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    **{op: op for op in (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default)},
    **{op: op for op in (aten.baddbmm.default, aten.native_layer_norm.default, aten.native_group_norm.default)},
}


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _raise(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _round(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
