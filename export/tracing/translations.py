"""Operations of PyTorch as ONNX, where the exporter has no translation or a long one.

Its own asks for shapes at run time that are known, and scales keys between a transposition and the product it belongs
to, so that no runtime can make one of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.core import aten_flatten, aten_unflatten
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

aten = torch.ops.aten


def _cast(x: Any, dtype: int, **options: Any) -> Any:
    return op.Cast(x, to=dtype)


def _move(x: Any, device: str, dtype: int, **options: Any) -> Any:
    return op.Cast(x, to=dtype)


def _both(x: Any, y: Any) -> Any:
    return op.And(x, y) if x.dtype == y.dtype == ir.DataType.BOOL else op.BitwiseAnd(x, y)


def _unflatten(x: Any, dim: int, sizes: Sequence[Any]) -> Any:
    """The last axis into several; a 0 of Reshape keeps the axis in its place."""
    last = len(x.shape) - 1
    if dim not in (-1, last) or not all(isinstance(size, int) for size in sizes):
        return aten_unflatten(x, dim, sizes)
    return op.Reshape(x, op.Constant(value_ints=[*[0] * last, *sizes]))


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """The last axes into one."""
    last = len(x.shape) - 1
    if not 0 < start_dim < last or end_dim not in (-1, last):
        return aten_flatten(x, start_dim, end_dim)
    return op.Reshape(x, op.Constant(value_ints=[*[0] * start_dim, -1]))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale q k^T) v: everybody may look at everything. Queries are scaled, being smaller before than after."""
    width = query.shape[-1]
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not isinstance(width, int):
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    factor = op.Constant(value_float=1 / math.sqrt(width) if scale is None else scale)
    scaled = op.Mul(query, op.CastLike(factor, query))
    weights = op.Softmax(op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2])), axis=-1)
    return op.MatMul(weights, value)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    aten.to.dtype: _cast,
    aten.to.device: _move,
    aten.__and__.Tensor: _both,
    aten.unflatten.int: _unflatten,
    aten.flatten.using_ints: _flatten,
    aten.scaled_dot_product_attention.default: _attention,
}
"""For `torch.onnx.export(custom_translation_table=…)`."""
