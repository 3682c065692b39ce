"""How long an export takes and how much memory, before it starts: arithmetic, and constants of runs that were measured.

The constants are fitted to the runs in benchmarks/results/export.json, on two cores of an AMD EPYC. Another machine may
be several times as fast, or busy; `MACHINE` goes with every figure. Engines, a gate and OpenVINO come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bolid_export.graphs import Graph
from bolid_export.precision import Precision
from bolid_export.verification.effort import Effort, operations
from bolid_sdk.contracts import Sizes

MACHINE = "two cores of an AMD EPYC"
WITHIN = 2
"""The factor that estimates are within, of what was measured there."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an export's time and memory depend on.

    `graphs`, and the `layers` in all of them, are traced; `held_bytes` of weights are in memory from the start, and of
    the largest graph, with `largest` weights, float32 copies come and go; `operations` as in
    `bolid_export.verification.effort`.
    """

    graphs: int
    layers: int
    held_bytes: int
    largest: int
    operations: float
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Estimate:
    seconds: float
    memory_bytes: int
    """Of the process at its peak."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "machine": MACHINE, "within_a_factor_of": WITHIN}


IMPORTS_SECONDS = 12.0
GRAPH_SECONDS = 1.0
LAYER_SECONDS = 0.02
SECONDS_A_BYTE = 10e-9
"""Read, hashed, traced, written, loaded by ONNX Runtime, copied into the bundle."""
SECONDS_AN_OPERATION = 4e-12
"""Calibration, the reference and the loop: four pictures."""
SLOWER: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 1.1, "int8": 3.1}

IMPORTS_BYTES = 550 * 10**6
COPIES = 0.9
"""Of the largest graph, in float32."""


def estimate(work: Work) -> Estimate:
    """What the export of `work` would take on `MACHINE`."""
    seconds = IMPORTS_SECONDS + GRAPH_SECONDS * work.graphs + LAYER_SECONDS * work.layers
    seconds += SECONDS_A_BYTE * work.held_bytes + SECONDS_AN_OPERATION * work.operations
    memory = IMPORTS_BYTES + work.held_bytes + COPIES * 4 * work.largest
    return Estimate(seconds=seconds * SLOWER[work.precision], memory_bytes=int(memory))


def work_of(graphs: Mapping[str, Graph], sizes: Sizes, effort: Effort, precision: Precision) -> Work:
    """Counts it, for networks as they have been opened."""
    held = {id(tensor): tensor.nbytes for graph in graphs.values() for tensor in graph.parameters()}
    return Work(
        graphs=len(graphs),
        layers=sum(_layers(graph) for graph in graphs.values()),
        held_bytes=sum(held.values()),
        largest=max(sum(parameter.numel() for parameter in graph.parameters()) for graph in graphs.values()),
        operations=operations(graphs.values(), effort, sizes),
        precision=precision,
    )


def _layers(network: nn.Module) -> int:
    """Modules that have no others in them: the exporter's work grows with operations, not with weights."""
    return sum(1 for module in network.modules() if next(module.children(), None) is None)
