"""Networks of billions of weights in little memory: float16 as they are stored, float32 only while they run.

What was stored in float16 comes back from float32 to the last bit, so nothing is lost on the way. One network at a time
is in float32. Networks are traced at rest (`bolid_export.tracing.stand_ins`) and given up then. Parameters are what is
counted, for graphs may share them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bolid_export.graphs import Graph
from bolid_export.memory import give_back_memory


class Residency:
    """Watches over the float16 parameters of `graphs`; networks that came in float32 are left alone."""

    def __init__(self, graphs: Iterable[Graph]) -> None:
        self._graphs = list(graphs)
        self._stored_half = {id(p) for graph in self._graphs for p in graph.parameters() if p.dtype == torch.float16}
        self._warm: list[nn.Parameter] = []

    @property
    def large(self) -> bool:
        """Whether there are any: so much weight is kept in float16 only."""
        return bool(self._stored_half)

    @contextmanager
    def automatic(self) -> Iterator[None]:
        """Inside, whatever runs is warmed; afterwards everything is as it is stored."""
        # the network too: diffusers' loop, which is the reference, calls it without its graph
        modules = {id(m): m for graph in self._graphs for m in (graph, graph.network)}.values()
        hooks = [module.register_forward_pre_hook(lambda module, args: self.warm(module)) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.cool()

    def warm(self, network: nn.Module) -> None:
        """`network` (or a graph) in float32, everything else as it is stored."""
        wanted = self._watched(network)
        if all(p.dtype == torch.float32 for p in wanted):
            return
        self.cool()
        for parameter in wanted:
            parameter.data = parameter.data.float()
        self._warm = wanted

    def cool(self) -> None:
        """Everything as it is stored."""
        for parameter in self._warm:
            parameter.data = parameter.data.half()
        if self._warm:
            give_back_memory()
        self._warm = []

    def release(self, graph: Graph) -> None:
        """Gives up the parameters of `graph` that no other graph needs; it cannot run any more.

        Of a model that has none in float16, which is not large, nothing is given up.
        """
        self.cool()
        self._graphs.remove(graph)
        if not self.large:
            return
        needed = {id(p) for other in self._graphs for p in other.parameters()}
        for parameter in graph.parameters():
            if id(parameter) not in needed:
                # the shape stays: sizes are read from it
                parameter.data = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        gc.collect()  # what was traced here is in cycles, and copies of weights with it
        give_back_memory()

    def _watched(self, module: nn.Module) -> list[nn.Parameter]:
        return [p for p in module.parameters() if id(p) in self._stored_half]
