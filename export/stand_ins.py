"""Tracing without weights: a tracer asks for shapes and types, and folding transposes a weight without a look at it.

Inside `stand_ins` the large parameters of a graph are memory that nobody has written to, which a system hands out but
does not fill. So a network that is float16 at rest is traced in float32, and no float32 weight exists. What a traced
program holds is a stand-in, or a transposed view of one, and is told by its address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from bolid_export.graphs import Graph

MIN_ELEMENTS = 1 << 16
"""Smaller parameters stay as they are: a folded scale or bias is computed from its values."""

Weights: TypeAlias = dict[int, Tensor]
"""Parameters by the address of their stand-ins."""


@contextmanager
def stand_ins(graph: Graph, dtype: torch.dtype | None = None) -> Iterator[Weights]:
    """Inside, `graph` can be traced but not run; its parameters are of `dtype`, where that is given."""
    weights: Weights = {}
    parameters = list(graph.parameters())
    tensors = [parameter.data for parameter in parameters]
    try:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            wanted = dtype or tensor.dtype
            if tensor.numel() < MIN_ELEMENTS:
                parameter.data = tensor.to(wanted)
            else:
                parameter.data = torch.empty(tensor.shape, dtype=wanted)
                weights[parameter.data_ptr()] = tensor
        yield weights
    finally:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data = tensor


def stood_for(array: NDArray[Any], weights: Weights) -> NDArray[Any]:
    """The weight, as it is stored, in place of a stand-in or of a view of one; anything else is itself."""
    weight = weights.get(array.ctypes.data)
    if weight is None:
        return array
    strides = [stride // array.itemsize for stride in array.strides]
    return torch.as_strided(weight.contiguous(), array.shape, strides).numpy()
