"""Linear layers and convolutions in symmetric int8, as explicit Q/DQ pairs in the traced graph.

    y = DQ(Q(x)) @ DQ(W) + b      x: one scale a tensor; W: int8 with one scale an output channel; b, y: float32

In PyTorch the same modules compute what the pairs mean, rounding as ONNX does (half to even). So a quantised network is
searched and verified in PyTorch, then traced like any other: what is traced is what runs. Runtimes fuse the pairs into
integer kernels. The zero point is always zero: TensorRT takes no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import onnx
import torch
from onnxscript import opset21 as op
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 127
"""Levels of either sign; -128 is left out, so that zero is in the middle."""

Quantisable: TypeAlias = nn.Linear | nn.Conv2d


@torch.library.custom_op("bolid::quantise_dequantise", mutates_args=())
def quantise_dequantise(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to multiples of `scale` []; beyond 127 of them it saturates (ONNX would at -128 below)."""
    return (x / scale).round_().clamp_(-LEVELS - 1, LEVELS).mul_(scale)


@torch.library.custom_op("bolid::dequantise_weight", mutates_args=())
def dequantise_weight(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """int8 `weight` times `scale` [channels] along `axis`."""
    return weight.to(scale.dtype) * scale.view([-1 if i == axis else 1 for i in range(weight.dim())])


quantise_dequantise.register_fake(lambda x, scale: torch.empty_like(x))
dequantise_weight.register_fake(lambda weight, scale, axis: torch.empty_like(weight, dtype=scale.dtype))


def _quantise_dequantise(x: Any, scale: Any) -> Any:
    zero = op.Constant(value=onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0]))
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)


def _dequantise_weight(weight: Any, scale: Any, axis: int) -> Any:
    return op.DequantizeLinear(weight, scale, axis=axis)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.bolid.quantise_dequantise.default: _quantise_dequantise,
    torch.ops.bolid.dequantise_weight.default: _dequantise_weight,
}
"""For `torch.onnx.export(custom_translation_table=…)`."""


class QuantisedLinear(nn.Module):
    """A linear layer whose weight lies transposed, [in, out], as MatMul reads it: nothing to fold or fuse."""

    def __init__(self, layer: nn.Linear, scale: float):
        super().__init__()
        weight, weight_scale = quantise_weight(layer.weight)
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("scale", torch.tensor(scale))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = quantise_dequantise(x, self.scale) @ dequantise_weight(self.weight, self.weight_scale, 1)
        return y if self.bias is None else y + self.bias


class QuantisedConv2d(nn.Module):
    """A convolution without groups that pads, if at all, with zeros."""

    def __init__(self, layer: nn.Conv2d, scale: float):
        super().__init__()
        weight, weight_scale = quantise_weight(layer.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("scale", torch.tensor(scale))
        self.bias = layer.bias
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantise_weight(self.weight, self.weight_scale, 0)
        x = quantise_dequantise(x, self.scale)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def quantisable(module: nn.Module) -> bool:
    """Whether `quantised` has a counterpart for the module."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def quantised(layer: Quantisable, scale: float) -> nn.Module:
    """The layer in int8; `scale` is a step of its input."""
    return QuantisedConv2d(layer, scale) if isinstance(layer, nn.Conv2d) else QuantisedLinear(layer, scale)


@torch.no_grad()
def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and float32 scales [out] of a weight [out, ...]; a channel of zeros gets scale 1."""
    scale = weight.detach().float().abs().flatten(1).amax(1) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    steps = weight.detach().float() / scale.view(-1, *[1] * (weight.dim() - 1))
    return steps.round_().to(torch.int8), scale
