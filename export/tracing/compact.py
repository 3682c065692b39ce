"""Weights stored as float16 where that loses nothing.

Checkpoints on disk are float16, so this halves fp32 bundles and float32 islands alike and changes no result. Runtimes
fold the Cast when they load the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

# Smaller tensors save less than the Cast node costs.
MIN_ELEMENTS = 4096


def as_half(values: NDArray[Any]) -> NDArray[np.float16] | None:
    """float32 values as float16, or None where that is not exact; float16 ones as they are."""
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None


def declare_half(model: onnx.ModelProto, names: Collection[str]) -> None:
    """float32 tensors whose data, in a file of its own, is float16 already become float16 tensors and a Cast."""
    casts = []
    for tensor in model.graph.initializer:
        if (name := tensor.name) in names:
            tensor.name, tensor.data_type = f"{name}.float16", TensorProto.FLOAT16
            casts.append(_cast(tensor.name, name))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def _cast(stored: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [stored], [name], name=f"{name}/Cast", to=TensorProto.FLOAT)
