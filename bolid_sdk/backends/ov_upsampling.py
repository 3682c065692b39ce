"""Upsamplers of a UNet or a VAE with 4/9 of their arithmetic: no convolution of pixels that are the same.

After a doubling by nearest neighbours a 3x3 convolution reads 2x2 different pixels, most of them more than once. So the
even and the odd rows and columns of its output are four 2x2 convolutions of the picture before the doubling, whose taps
are sums of the nine (sub-pixel convolution, arXiv 1609.05158), interleaved. Sums of int8 taps are rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13

from bolid_sdk.backends.ov_weights import Weight, quantised, read_bias, read_weight, readers

TAPS = (((0,), (1, 2)), ((0, 1), (2,)))
"""By parity of the output's row (or column): which of the three taps meet the first and the second pixel."""

PARITIES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""In the order of DepthToSpace's blocks."""

SAME_3X3 = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "auto_pad": "explicit"}

DOUBLED = [1.0, 1.0, 2.0, 2.0]


@dataclass(frozen=True)
class Upsampler:
    """`reader` is the input that is given the doubled picture: the `convolution`'s, or its quantisation's."""

    convolution: Any
    reader: Any
    weight: Weight

    def interleaved(self, bias: NDArray[np.float32] | None) -> Any:
        """The node [batch, out, 2 height, 2 width] for a convolution that is given [batch, in, height, width]."""
        given = self.convolution.input_value(0)
        parts = [
            opset13.convolution(given, self._kernel(row, column), [1, 1], [1 - row, 1 - column], [row, column], [1, 1])
            for row, column in PARITIES
        ]
        if bias is not None:
            shaped = opset13.constant(bias.reshape(1, -1, 1, 1).astype(given.get_element_type().to_dtype()))
            parts = [opset13.add(part, shaped) for part in parts]
        return opset13.depth_to_space(opset13.concat(parts, 1), "blocks_first", 2)

    def _kernel(self, row: int, column: int) -> Any:
        taps = sum_taps(self.weight.floats, row, column)
        if self.weight.scale is not None:
            return quantised(taps).node()
        return opset13.constant(taps.astype(self.convolution.get_element_type().to_dtype()))


def split_upsamplers(model: Any) -> int:
    """Of an OpenVINO model, in place. Returns how many there were."""
    found = [upsampler for upsampler in map(_upsampler, model.get_ops()) if upsampler is not None]
    for upsampler in found:
        end, bias = read_bias(upsampler.convolution, len(upsampler.weight.values))
        upsampler.reader.replace_source_output(upsampler.reader.get_source_output().get_node().input_value(0))
        interleaved = upsampler.interleaved(bias)
        interleaved.set_friendly_name(end.get_friendly_name())
        end.output(0).replace(interleaved.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def sum_taps(weight: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """What of a [out, in, 3, 3] meets each of the 2x2 pixels, for output pixels of this parity: [out, in, 2, 2]."""
    rows = np.stack([weight[:, :, taps, :].sum(2) for taps in TAPS[row]], axis=2)
    return np.stack([rows[..., taps].sum(3) for taps in TAPS[column]], axis=3)


def _upsampler(convolution: Any) -> Upsampler | None:
    """None where it is no 3x3 convolution of twice a picture that keeps the size."""
    if convolution.get_type_name() != "Convolution":
        return None
    attributes, weight = convolution.get_attributes(), read_weight(convolution.input_value(1))
    if {name: attributes[name] for name in SAME_3X3} != SAME_3X3 or weight is None:
        return None
    reader = convolution.input(0) if weight.scale is None else _quantisation(convolution)
    doubled = weight.values.shape[2:] == (3, 3) and reader is not None and _is_doubled(reader.get_source_output())
    return Upsampler(convolution, reader, weight) if doubled else None


def _quantisation(convolution: Any) -> Any:
    """The input that is rounded for this convolution alone; None where there is none. Rounding keeps equal pixels."""
    node = convolution.input_value(0).get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert") and readers(node) == 1:
        node = node.input_value(0).get_node()
    alone = node.get_type_name() == "FakeQuantize" and readers(node) == 1
    return node.input(0) if alone else None


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
