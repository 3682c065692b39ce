"""Weights of an OpenVINO graph as it holds them: constants in floating point, or int8 beside a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13

INT8_LEVELS = 127
SMALLEST_SCALE = 1e-12
"""So that a channel of zeros is divided by something."""


@dataclass(frozen=True)
class Weight:
    """`values` float16, float32 or int8; `scale`, float32, what int8 values are multiplied by. It broadcasts."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None

    @property
    def floats(self) -> NDArray[np.float32]:
        floats = self.values.astype(np.float32)
        return floats if self.scale is None else floats * self.scale

    def halves(self, axis: int) -> list[Weight]:
        """The first and the second half of its channels on an axis."""
        halves = np.split(self.values, 2, axis)
        if self.scale is None or self.scale.ndim <= axis or self.scale.shape[axis] == 1:
            return [Weight(half, self.scale) for half in halves]
        return [Weight(*pair) for pair in zip(halves, np.split(self.scale, 2, axis), strict=True)]

    def node(self) -> Any:
        """What a float32 graph multiplies by."""
        constant = opset13.constant(np.ascontiguousarray(self.values))
        if self.values.dtype == np.float32:
            return constant
        floats = opset13.convert(constant, np.float32)
        return floats if self.scale is None else opset13.multiply(floats, opset13.constant(self.scale))


def quantised(floats: NDArray[np.float32]) -> Weight:
    """A [out, ...] in int8, symmetric, with a scale for each output channel."""
    peaks = np.abs(floats).max(tuple(range(1, floats.ndim)), keepdims=True)
    scale = np.maximum(peaks / INT8_LEVELS, SMALLEST_SCALE).astype(np.float32)
    return Weight(np.rint(floats / scale).astype(np.int8), scale)


def read_weight(value: Any) -> Weight | None:
    """None for what is no weight, of another type, or with a zero point."""
    node = value.get_node()
    if node.get_type_name() == "Multiply":
        values, scale = (behind(node.input_value(index).get_node(), "Convert", "Reshape") for index in (0, 1))
        if _is_constant(values, np.int8) and _is_constant(scale, np.float16, np.float32):
            broadcast = scale.data.reshape(list(node.input_value(1).get_shape()))
            return Weight(values.data, broadcast.astype(np.float32))
        return None
    constant = behind(node, "Convert")
    return Weight(constant.data) if _is_constant(constant, np.float16, np.float32) else None


def read_bias(node: Any, channels: int) -> tuple[Any, NDArray[np.float32] | None]:
    """The Add after a convolution or a product whose constant is its bias, and that [channels]; the node itself and
    None where it has none.

    ONNX's bias of a convolution is read as an Add of the constant in a shape that is told from the convolution's own.
    """
    for add in (reader.get_node() for reader in node.output(0).get_target_inputs()):
        if add.get_type_name() == "Add":
            bias = behind(add.input_value(1).get_node(), "Reshape", "Convert")
            if _is_constant(bias, np.float16, np.float32) and bias.data.shape == (channels,):
                return add, bias.data.astype(np.float32)
    return node, None


def behind(node: Any, *kinds: str) -> Any:
    """The first node that is of none of these kinds: itself, or what it is given first, and so on."""
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    return node


def readers(node: Any) -> int:
    """How many read its only output."""
    return len(node.output(0).get_target_inputs())


def _is_constant(node: Any, *dtypes: Any) -> bool:
    return node.get_type_name() == "Constant" and node.data.dtype in dtypes
