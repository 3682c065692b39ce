"""Precision of a graph: float32, or float16 weights and activations with named float32 islands.

For int8 see `bolid_export.int8.quantise`: its graphs are float32 except for the layers that are quantised.

A network is lowered before it is traced, not rewritten afterwards: then what is traced is what runs. Post-export
converters (onnxruntime's `convert_float_to_float16`) send float32 inputs and neighbouring float32 nodes through
float16 casts, also those of the sampler's update, and compute the timestep's sinusoids in float16.

An island is a module that keeps float32 weights and activations. It is either policy (the Resamplers, whose internals
reach five digits, IP-Adapter issue 434), or measured: the smallest module that contains every value above `LIMIT`.

The lowered network itself is verified in PyTorch, whose float16 is real on every machine.

onnxruntime has no float16 arithmetic on x86: it computes in float32 and keeps casts where data only moves. With the
avatar's sizes on one thread a step takes 32 ms in fp16 and 29 in fp32, and all graphs load in 0.91 and 0.45 s. On a CPU
prefer fp32: its weights are float16 on disk too (`compact`), so it is no larger. fp16 is for GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bolid_export.graphs import Graph

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# A quarter of float16's largest number: calibration sees few inputs, users bring others.
LIMIT = 65504 / 4

# Graphs that stay float32 whatever calibration sees.
POLICY = {
    "identity_encoder": "Resampler: its internals overflow float16",
    "image_projector": "Resampler: its internals overflow float16",
    "pose_estimator": "keypoints are places of peaks: of two alike, rounding makes another one the highest",
}


@dataclass(frozen=True, kw_only=True)
class Island:
    """A module that stays float32 inside an fp16 graph; `module` is its path in the graph, "" for all of it."""

    graph: str
    module: str
    reason: str


Peaks: TypeAlias = Mapping[nn.Module, float]
"""Largest absolute value in the output of each module that has run."""


def islands(graph: Graph, peaks: Peaks) -> list[Island]:
    """Policy for this graph, or what `watch_peaks` has seen of it."""
    name = graph.spec.name
    if name in POLICY:
        return [Island(graph=name, module="network", reason=POLICY[name])]
    named = {path: peaks[module] for path, module in graph.network.named_modules() if module in peaks}
    found = {_enclosing(module, named): peak for module, peak in named.items() if peak > LIMIT}
    outer = [m for m in found if not any(_is_inside(m, other) for other in found)]
    return [Island(graph=name, module=_path(m), reason=f"values reach {found[m]:.0f}") for m in sorted(outer)]


@contextmanager
def watch_peaks(networks: Iterable[nn.Module]) -> Iterator[Peaks]:
    """Fills what it yields while `networks`, which may share modules, run inside the block."""
    peaks: dict[nn.Module, float] = {}

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
        highest = [max(abs(float(end)) for end in torch.aminmax(tensor)) for tensor in tensors]
        peaks[module] = max([peaks.get(module, 0.0), *highest])

    modules = {module for network in networks for module in network.modules()}
    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def lower(graph: Graph, precision: Precision, islands: Iterable[Island] = ()) -> Graph:
    """A copy of `graph` in that precision; fp32 returns the graph itself, int8 too (`bolid_export.int8.quantise`)."""
    if precision != "fp16":
        return graph
    lowered = _half_copy(graph)
    for island in islands:
        _raise_island(lowered.get_submodule(island.module), graph.get_submodule(island.module))
    return lowered


def _half_copy(graph: Graph) -> Graph:
    """A copy whose parameters are float16 from the start, and shared where they are float16 already."""
    halves = {id(p): nn.Parameter(p.detach().to(torch.float16), False) for p in graph.parameters()}
    return copy.deepcopy(graph, halves).half()


def _raise_island(module: nn.Module, original: nn.Module) -> None:
    """float32 inside, with the weights as they were; the caller sees the dtype it passed in."""
    module.float().load_state_dict(original.state_dict())
    border = _Border()
    module.register_forward_pre_hook(border.enter, with_kwargs=True)
    module.register_forward_hook(border.leave)


class _Border:
    """Of an island; a class, because a graph goes to another process with it."""

    def __init__(self) -> None:
        self._dtypes: list[torch.dtype] = []

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        floats = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        self._dtypes.append(floats[0] if floats else torch.float32)
        return tree_map(_cast(torch.float32), (args, kwargs))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(_cast(self._dtypes.pop()), output)


def _cast(dtype: torch.dtype) -> Any:
    return lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t


def _enclosing(module: str, peaks: dict[str, float]) -> str:
    """The smallest module around `module` whose own output fits, since the next consumer reads that in float16."""
    while module and peaks.get(module, 0.0) > LIMIT:
        module = module.rpartition(".")[0]
    return module


def _is_inside(module: str, other: str) -> bool:
    return module != other and (not other or module.startswith(f"{other}."))


def _path(module: str) -> str:
    return f"network.{module}" if module else "network"
