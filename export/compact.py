"""Weights stored as float16 where that loses nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Smaller tensors save less than the Cast node costs.
MIN_ELEMENTS = 4096


def store_compactly(model: onnx.ModelProto) -> None:
    """Turns float32 weights that float16 represents exactly into float16 weights and a Cast.

    Checkpoints on disk are float16, so this halves fp32 bundles and float32 islands alike and changes no result.
    Runtimes fold the Cast when they load the graph.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_ELEMENTS:
            continue
        half = as_half(numpy_helper.to_array(tensor))
        if half is not None:
            name, stored = tensor.name, f"{tensor.name}.float16"
            tensor.CopyFrom(numpy_helper.from_array(half, stored))
            casts.append(_cast(stored, name))
    _put_in_front(model.graph, casts)


def as_half(values: NDArray[Any]) -> NDArray[np.float16] | None:
    """float32 values as float16, or None where that is not exact; float16 ones as they are."""
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None


def declare_half(model: onnx.ModelProto, names: Collection[str]) -> None:
    """The same for tensors whose data, in a file of its own, is float16 already."""
    casts = []
    for tensor in model.graph.initializer:
        if (name := tensor.name) in names:
            tensor.name, tensor.data_type = f"{name}.float16", TensorProto.FLOAT16
            casts.append(_cast(tensor.name, name))
    _put_in_front(model.graph, casts)


def _cast(stored: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [stored], [name], name=f"{name}/Cast", to=TensorProto.FLOAT)


def _put_in_front(graph: onnx.GraphProto, casts: list[onnx.NodeProto]) -> None:
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
