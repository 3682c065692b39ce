"""Weights stored as float16 where that loses nothing."""

from __future__ import annotations

import numpy as np
import onnx
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
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half, values):
            name, stored = tensor.name, f"{tensor.name}.float16"
            tensor.CopyFrom(numpy_helper.from_array(half, stored))
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}/Cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
