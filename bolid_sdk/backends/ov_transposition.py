"""Weights of matrix products as OpenVINO's kernels read them.

ONNX stores the weight of x @ W as [in, out]; the CPU plugin packs it from [out, in]. A float16 constant is transposed
only when the compiled model is read, into float32 that stays beside the packed weights: 570 MB of SD1.5's denoiser.
Transposed before it is compiled, it is read from the file like any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13


def transpose_weights(model: Any) -> int:
    """Of an OpenVINO model's products with float16 constants [in, out], in place. Returns how many."""
    found = [(node, _weight(node)) for node in model.get_ops() if node.get_type_name() == "MatMul"]
    products = [(node, weight) for node, weight in found if weight is not None]
    for node, weight in products:
        transposed = opset13.constant(np.ascontiguousarray(weight.data.T))
        transposed.set_friendly_name(weight.get_friendly_name())
        weight.output(0).replace(transposed.output(0))
        node.set_attribute("transpose_b", True)
    model.validate_nodes_and_infer_types()
    return len(products)


def _weight(product: Any) -> Any:
    """The constant that nobody else multiplies by, where it is float16 [in, out]; else None."""
    convert = product.input_value(1).get_node()
    if any(product.get_attributes().values()) or convert.get_type_name() != "Convert":
        return None
    constant = convert.input_value(0).get_node()
    readers = [*convert.output(0).get_target_inputs(), *constant.output(0).get_target_inputs()]
    alone = constant.get_type_name() == "Constant" and len(readers) == 2
    return constant if alone and constant.data.dtype == np.float16 and constant.data.ndim == 2 else None
