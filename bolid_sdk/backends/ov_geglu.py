"""Linear layers whose output is cut in two, as before a GEGLU (arXiv:2002.05202): two layers, nothing to cut.

The CPU plugin copies both halves. Two products with half of the channels each write them where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset13

from bolid_sdk.backends.ov_weights import Weight, behind, read_bias, read_weight, readers


@dataclass(frozen=True)
class Halved:
    """`cut` is what cuts in two the `product`, of `weight` [in, out], or [out, in] if transposed, and `bias` [out]."""

    cut: Any
    product: Any
    weight: Weight
    bias: NDArray[np.float32] | None

    def halves(self) -> list[Any]:
        """Nodes [..., out / 2]."""
        transposed = self.product.get_attributes()["transpose_b"]
        weights = [half.node() for half in self.weight.halves(0 if transposed else 1)]
        products = [opset13.matmul(self.product.input_value(0), weight, False, transposed) for weight in weights]
        if self.bias is None:
            return products
        return [opset13.add(product, half) for product, half in zip(products, np.split(self.bias, 2), strict=True)]


def split_geglu(model: Any) -> int:
    """Of an OpenVINO model in float32 or int8, in place. Returns how many there were."""
    found = [halved for halved in map(_halved, model.get_ops()) if halved is not None]
    for halved in found:
        for output, half in zip(halved.cut.outputs(), halved.halves(), strict=True):
            output.replace(half.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _halved(cut: Any) -> Halved | None:
    """None where it does not cut the channels of a linear layer of our own in two."""
    if cut.get_type_name() != "Split" or cut.get_output_size() != 2 or not _is_of_channels(cut):
        return None
    given = cut.input_value(0).get_node()
    product = behind(given, "Add")
    if product.get_type_name() != "MatMul" or product.get_attributes()["transpose_a"]:
        return None
    weight = read_weight(product.input_value(1))
    if weight is None or weight.values.ndim != 2 or product.get_element_type().to_dtype() != np.float32:
        return None
    end, bias = read_bias(product, given.get_output_partial_shape(0)[-1].get_length())
    alone = readers(product) == readers(end) == 1 and end.get_friendly_name() == given.get_friendly_name()
    return Halved(cut, product, weight, bias) if alone else None


def _is_of_channels(cut: Any) -> bool:
    """Whether it cuts the last axis."""
    axis, rank = cut.input_value(1).get_node(), len(cut.input_value(0).get_partial_shape())
    return axis.get_type_name() == "Constant" and int(axis.data) % rank == rank - 1
