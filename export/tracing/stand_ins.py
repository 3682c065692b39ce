"""Tracing without weights: a tracer asks for shapes and types, and folding transposes a weight without a look at it.

Inside `stand_ins` the large parameters of a graph are memory that nobody has written to, which a system hands out but
does not fill. So a network that is float16 at rest is traced in float32, and no float32 weight exists. What a traced
program holds is a stand-in, or a transposed view of one, and is told by its address.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bolid_export.graphs import Graph

MIN_ELEMENTS = 1 << 16
"""Smaller parameters stay as they are: a folded scale or bias is computed from its values."""


HOOKED = "_output_capturing_hooks_installed"


@dataclass(frozen=True, kw_only=True)
class View:
    """A graph's parameter number `index`, as a tracer lays it out; `strides` in elements."""

    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, parameters: Sequence[Tensor]) -> NDArray[Any]:
        """That parameter's values, in the type that they are stored in."""
        weight = parameters[self.index].detach().contiguous()
        return torch.as_strided(weight, self.shape, self.strides).numpy()


@contextmanager
def stand_ins(graph: Graph, dtype: torch.dtype | None = None) -> Iterator[Mapping[int, int]]:
    """Inside, `graph` can be traced but not run; its parameters are of `dtype`, where that is given.

    Yields the numbers of parameters by the addresses of their stand-ins.
    """
    indices: dict[int, int] = {}
    parameters = list(graph.parameters())
    tensors = [parameter.data for parameter in parameters]
    try:
        for index, (parameter, tensor) in enumerate(zip(parameters, tensors, strict=True)):
            wanted = dtype or tensor.dtype
            if tensor.numel() < MIN_ELEMENTS:
                parameter.data = tensor.to(wanted)
            else:
                parameter.data = torch.empty(tensor.shape, dtype=wanted)
                indices[parameter.data_ptr()] = index
        yield indices
    finally:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data = tensor


def seen(array: NDArray[Any], indices: Mapping[int, int]) -> View | NDArray[Any]:
    """What a traced program's array is: a stand-in, or a view of one, or itself."""
    index = indices.get(array.ctypes.data)
    if index is None:
        return array
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(index=index, shape=array.shape, strides=strides)


def without_weights(graph: Graph) -> Graph:
    """A copy whose large parameters are shapes of a single zero, for a tracer in another process."""
    bare = copy.deepcopy(graph, {id(p): nn.Parameter(_bare(p.detach()), False) for p in graph.parameters()})
    for module in bare.modules():
        _forget_capturing(module)
    return bare


def _forget_capturing(module: nn.Module) -> None:
    """Hooks that transformers puts on a model's layers at its first run, and again where it finds none. They are local
    functions, which no other process can be sent."""
    for number, hook in list(module._forward_hooks.items()):
        if "<locals>" in getattr(hook, "__qualname__", ""):
            del module._forward_hooks[number]
    if hasattr(module, HOOKED):
        setattr(module, HOOKED, False)


def _bare(weight: Tensor) -> Tensor:
    large = weight.numel() >= MIN_ELEMENTS
    return torch.zeros((), dtype=weight.dtype).expand(weight.shape) if large else weight.clone()
