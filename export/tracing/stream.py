"""Graph -> ONNX file for networks of gigabytes: weights go from the network to the disk, one tensor at a time.

A protobuf ends at 2 GB, and every pass over one (shape inference, checks, saving) copies all of it. So tensors leave
the traced program before it becomes a protobuf, and come back at the very end where they are small enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from bolid_export.graphs import Graph
from bolid_export.to_onnx import finish, trace
from bolid_export.tracing.compact import MIN_ELEMENTS, as_half, declare_half
from bolid_export.tracing.stand_ins import View, seen, stand_ins

# A protobuf ends at 2 GB; far below that, one file a graph is simpler to copy and to hash.
EXTERNAL_DATA_BYTES = 1 << 30

# Runtimes map the file into memory: tensors start at pages.
PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A graph whose large initializers are apart from it, by name: parameters to be read, or arrays."""

    model: onnx.ModelProto
    weights: Mapping[str, View | NDArray[Any]]


def to_onnx(graph: Graph, folder: Path, **options: Any) -> Path:
    """Traces and writes a graph with the spec's names and symbolic axes. `options` are those of `trace_apart`."""
    return write_onnx(trace_apart(graph, **options), graph.parameters(), folder)


def trace_apart(graph: Graph, *, size_step: int, vae_factor: int, dtype: torch.dtype | None = torch.float32) -> Traced:
    """`dtype`: the network's, whatever its weights are stored in; None leaves each as it is."""
    with stand_ins(graph, dtype) as indices:
        program = trace(graph, size_step=size_step, vae_factor=vae_factor)
        weights = _take_weights(program, indices)
        return Traced(model=finish(program.model_proto, graph.spec), weights=weights)


def write_onnx(traced: Traced, parameters: Iterable[Tensor], folder: Path) -> Path:
    """Writes a traced graph with the graph's parameters, as float16 where that is exact. Returns the `.onnx` file.

    Above 1 GiB the weights are in `<graph>.onnx.data`.
    """
    file = stream_onnx(traced, parameters, folder)
    data = _data_file(file)
    if data.stat().st_size <= EXTERNAL_DATA_BYTES:
        onnx.save(onnx.load(file), file)
        data.unlink()
    return file


def stream_onnx(traced: Traced, parameters: Iterable[Tensor], folder: Path) -> Path:
    """The same with all weights in the data file, and none of them in memory. `traced` is used up."""
    file = folder / f"{traced.model.graph.name}.onnx"
    halves = _write_weights(traced, list(parameters), _data_file(file))
    declare_half(traced.model, halves)
    onnx.save(traced.model, file)
    onnx.checker.check_model(str(file))
    return file


def _data_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.data")


def _take_weights(program: torch.onnx.ONNXProgram, indices: Mapping[int, int]) -> dict[str, View | NDArray[Any]]:
    """Large initializers, of which names, types and shapes are left in the program."""
    weights: dict[str, View | NDArray[Any]] = {}
    for name, value in program.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS:
            continue
        array = tensor.numpy()
        weights[name] = seen(array, indices)
        value.const_value = ir.ExternalTensor("", 0, 0, tensor.dtype, shape=ir.Shape(array.shape), name=name)
    return weights


def _write_weights(traced: Traced, parameters: list[Tensor], file: Path) -> set[str]:
    """Returns the names of float32 ones that the file holds as float16."""
    halves = set()
    with file.open("wb") as data:
        for tensor in traced.model.graph.initializer:
            weight = traced.weights.get(tensor.name)
            if weight is None:
                continue
            array = weight.of(parameters) if isinstance(weight, View) else weight
            if tensor.data_type == TensorProto.FLOAT and (half := as_half(array)) is not None:
                array, halves = half, halves | {tensor.name}
            _point_to(tensor, file.name, _append(data, array), array.nbytes)
    return halves


def _point_to(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _append(data: BinaryIO, array: NDArray[np.generic]) -> int:
    """Offset of the array's bytes."""
    data.write(b"\0" * (-data.tell() % PAGE))
    offset = data.tell()
    data.write(np.ascontiguousarray(array).data.cast("B"))
    return offset
