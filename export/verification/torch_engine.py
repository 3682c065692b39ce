"""PyTorch behind the runtime's Engine protocol: what the exported graphs are compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from bolid_export.graphs import Graph
from bolid_sdk.backends import wanted_outputs
from bolid_sdk.contracts import GraphSpec

Arrays: TypeAlias = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Record:
    """One run of a graph: its inputs and what PyTorch answered."""

    inputs: Arrays
    outputs: Arrays


@dataclass
class TorchEngine:
    """A float32 Graph that keeps a record of every run."""

    graph: Graph
    records: list[Record] = field(default_factory=list)

    @property
    def spec(self) -> GraphSpec:
        return self.graph.spec

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        spec = self.graph.spec
        # PyTorch takes no arrays that cannot be written, as those that the runtime keeps
        arrays = {name: np.require(inputs[name], requirements="W") for name in spec.input_names}
        outputs = self.graph(*(torch.from_numpy(array) for array in arrays.values()))
        record = Record(arrays, dict(zip(spec.output_names, (tensor.numpy() for tensor in outputs), strict=True)))
        self.records.append(record)
        return record.outputs

    def bind(self, constants: Mapping[str, Any], outputs: Collection[str] | None = None) -> TorchLoop:
        return TorchLoop(self, constants, wanted_outputs(self.spec, outputs))


@dataclass(frozen=True)
class TorchLoop:
    """The runtime's Loop protocol; torch tensors have the shape and numpy() that it asks of a tensor."""

    engine: TorchEngine
    constants: Mapping[str, Any]
    outputs: Collection[str]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        outputs = self.engine.run({**self.constants, **inputs})
        return {name: torch.from_numpy(outputs[name]) for name in self.outputs}
