"""Upsamplers of a UNet or a VAE with 4/9 of their arithmetic: no convolution of pixels that are the same.

After a doubling by nearest neighbours a 3x3 convolution reads 2x2 different pixels, most of them more than once. So the
even and the odd rows and columns of its output are four 2x2 convolutions of the picture before the doubling, whose taps
are sums of the nine (sub-pixel convolution, arXiv 1609.05158), interleaved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13

TAPS = (((0,), (1, 2)), ((0, 1), (2,)))
"""By parity of the output's row (or column): which of the three taps meet the first and the second pixel."""

PARITIES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""In the order of DepthToSpace's blocks."""

SAME_3X3 = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "auto_pad": "explicit"}

DOUBLED = [1.0, 1.0, 2.0, 2.0]


def split_upsamplers(model: Any) -> int:
    """Of an OpenVINO model with floating-point constants, in place. Returns how many there were."""
    convolutions = [node for node in model.get_ops() if node.get_type_name() == "Convolution"]
    upsamplers = [node for node in convolutions if _is_doubled(node.input_value(0)) and _weight(node) is not None]
    for convolution in upsamplers:
        end, bias = _bias(convolution)
        small = convolution.input_value(0).get_node().input_value(0)
        interleaved = _interleaved_parts(small, _weight(convolution).data.astype(np.float32), bias)
        interleaved.set_friendly_name(end.get_friendly_name())
        end.output(0).replace(interleaved.output(0))
    model.validate_nodes_and_infer_types()
    return len(upsamplers)


def _interleaved_parts(small: Any, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Any:
    """The node [batch, out, 2 height, 2 width] for an output [batch, in, height, width]."""
    dtype = small.get_element_type().to_dtype()
    kernels = {parity: opset13.constant(sum_taps(weight, *parity).astype(dtype)) for parity in PARITIES}
    parts = [
        opset13.convolution(small, kernel, [1, 1], [1 - row, 1 - column], [row, column], [1, 1])
        for (row, column), kernel in kernels.items()
    ]
    if bias is not None:
        parts = [opset13.add(part, opset13.constant(bias.astype(dtype))) for part in parts]
    return opset13.depth_to_space(opset13.concat(parts, 1), "blocks_first", 2)


def sum_taps(weight: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """What of a [out, in, 3, 3] meets each of the 2x2 pixels, for output pixels of this parity: [out, in, 2, 2]."""
    rows = np.stack([weight[:, :, taps, :].sum(2) for taps in TAPS[row]], axis=2)
    return np.stack([rows[..., taps].sum(3) for taps in TAPS[column]], axis=3)


def _is_doubled(value: Any) -> bool:
    """Whether it is twice the height and width of another value, each pixel four times."""
    node = value.get_node()
    if node.get_type_name() != "Interpolate" or node.get_input_size() < 2:
        return False
    attributes, scales = node.get_attributes(), node.input_value(1).get_node()
    nearest = attributes["mode"] == "nearest" and attributes["coordinate_transformation_mode"] == "asymmetric"
    unpadded = not any((*attributes["pads_begin"], *attributes["pads_end"]))
    scaled = attributes["shape_calculation_mode"] == "scales" and scales.get_type_name() == "Constant"
    return nearest and unpadded and scaled and attributes["nearest_mode"] == "floor" and list(scales.data) == DOUBLED


def _weight(convolution: Any) -> Any:
    """The constant [out, in, 3, 3] of a convolution that keeps the size; None where there is no such."""
    attributes = convolution.get_attributes()
    constant = _behind(convolution.input_value(1).get_node(), "Convert")
    if constant.get_type_name() != "Constant" or constant.data.dtype not in (np.float16, np.float32):
        return None
    same = {name: attributes[name] for name in SAME_3X3} == SAME_3X3 and constant.data.shape[2:] == (3, 3)
    return constant if same else None


def _bias(convolution: Any) -> tuple[Any, NDArray[np.float32] | None]:
    """The node after which a bias [1, out, 1, 1] is in, and the bias; the convolution and None where it has none.

    ONNX's bias is read as an Add of the constant [out] in a shape that is told from the convolution's own.
    """
    out = convolution.input_value(1).get_shape()[0]
    for add in (reader.get_node() for reader in convolution.output(0).get_target_inputs()):
        if add.get_type_name() == "Add":
            bias = _behind(_behind(add.input_value(1).get_node(), "Reshape"), "Convert")
            if bias.get_type_name() == "Constant" and bias.data.shape == (out,):
                return add, bias.data.astype(np.float32).reshape(1, out, 1, 1)
    return convolution, None


def _behind(node: Any, kind: str) -> Any:
    """What a node of this kind is given first; the node itself where it is of another."""
    return node.input_value(0).get_node() if node.get_type_name() == kind else node
