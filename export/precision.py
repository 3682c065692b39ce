"""Precision of a graph: float32, or float16 weights and activations with named float32 islands.

For int8 see `bolid_export.quantise`: its graphs are float32 except for the layers that are quantised.

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
from collections.abc import Iterable
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

# Graphs whose network is one Resampler.
POLICY = {
    "identity_encoder": "Resampler: its internals overflow float16",
    "image_projector": "Resampler: its internals overflow float16",
}


@dataclass(frozen=True, kw_only=True)
class Island:
    """A module that stays float32 inside an fp16 graph; `module` is its path in the graph, "" for all of it."""

    graph: str
    module: str
    reason: str


def find_islands(graph: Graph, samples: Iterable[tuple[Tensor, ...]]) -> list[Island]:
    """Policy for this graph, or what running it in float32 on `samples` shows."""
    name = graph.spec.name
    if name in POLICY:
        return [Island(graph=name, module="network", reason=POLICY[name])]
    peaks = measure_peaks(graph.network, [lambda s=sample: graph(*s) for sample in samples])
    found = {_enclosing(module, peaks): peak for module, peak in peaks.items() if peak > LIMIT}
    outer = [m for m in found if not any(_is_inside(m, other) for other in found)]
    return [Island(graph=name, module=_path(m), reason=f"values reach {found[m]:.0f}") for m in sorted(outer)]


@torch.no_grad()
def measure_peaks(network: nn.Module, runs: Iterable[Any]) -> dict[str, float]:
    """Largest absolute value in the output of each module ("" is the network) over all runs (callables)."""
    peaks: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
            peaks[name] = max([peaks.get(name, 0.0), *(float(t.abs().max()) for t in tensors if t.numel())])

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        for run in runs:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return peaks


def lower(graph: Graph, precision: Precision, islands: Iterable[Island] = ()) -> Graph:
    """A copy of `graph` in that precision; fp32 returns the graph itself, int8 too (`bolid_export.quantise`)."""
    if precision != "fp16":
        return graph
    lowered = _half_copy(graph)
    for island in islands:
        _raise_island(lowered.get_submodule(island.module), graph.get_submodule(island.module))
    return lowered


def _half_copy(graph: Graph) -> Graph:
    """A copy whose parameters are float16 from the start: a float32 one would be twice as large for a moment."""
    halves = {id(p): nn.Parameter(p.detach().to(torch.float16, copy=True), False) for p in graph.parameters()}
    return copy.deepcopy(graph, halves).half()


def _raise_island(module: nn.Module, original: nn.Module) -> None:
    """float32 inside, with the weights as they were; the caller sees the dtype it passed in."""
    module.float().load_state_dict(original.state_dict())
    dtypes: list[torch.dtype] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        floats = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        dtypes.append(floats[0] if floats else torch.float32)
        return tree_map(_cast(torch.float32), (args, kwargs))

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(_cast(dtypes.pop()), output)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)


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
