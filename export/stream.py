"""Graph -> ONNX file for networks of gigabytes: weights go from the network to the disk, one tensor at a time.

A protobuf ends at 2 GB, and every pass over one (shape inference, checks, saving) copies all of it. So tensors leave
the traced program before it becomes a protobuf.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from bolid_export.compact import MIN_ELEMENTS, as_half, declare_half, store_compactly
from bolid_export.graphs import Graph
from bolid_export.package import EXTERNAL_DATA_BYTES, save_graph
from bolid_export.to_onnx import finish, to_onnx, trace

# Runtimes map the file into memory: tensors start at pages.
PAGE = 4096


def write_onnx(graph: Graph, folder: Path, *, size_step: int, vae_factor: int) -> Path:
    """Traces `graph` into `folder`, weights as float16 where that is exact. Returns the `.onnx` file."""
    if is_large(graph):
        return stream_onnx(graph, folder, size_step=size_step, vae_factor=vae_factor)
    model = to_onnx(graph, size_step=size_step, vae_factor=vae_factor)
    store_compactly(model)
    return save_graph(model, folder)


def is_large(graph: Graph) -> bool:
    """Whether the weights, in whatever precision they are now, are gigabytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in graph.parameters()) > EXTERNAL_DATA_BYTES


def stream_onnx(graph: Graph, folder: Path, *, size_step: int, vae_factor: int) -> Path:
    """As `to_onnx`, `store_compactly` and `save_graph` with external data, without the weights in memory."""
    file = folder / f"{graph.spec.name}.onnx"
    program = trace(graph, size_step=size_step, vae_factor=vae_factor)
    halves = _move_weights(program, file.with_name(f"{file.name}.data"))
    model = finish(program.model_proto, graph.spec)
    declare_half(model, halves)
    onnx.save(model, file)
    onnx.checker.check_model(str(file))
    return file


def _move_weights(program: torch.onnx.ONNXProgram, file: Path) -> set[str]:
    """Writes large initializers to `file`. Returns the names of float32 ones that it holds as float16."""
    halves = set()
    with file.open("wb") as data:
        for name, value in program.model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.size < MIN_ELEMENTS:
                continue
            array = tensor.numpy()
            if tensor.dtype == ir.DataType.FLOAT and (half := as_half(array)) is not None:
                array, halves = half, halves | {name}
            offset = _append(data, array)
            # float32 for now, whatever the file holds: shape inference compares types
            value.const_value = ir.ExternalTensor(
                file.name, offset, array.nbytes, tensor.dtype, shape=ir.Shape(array.shape), name=name
            )
    return halves


def _append(data: BinaryIO, array: NDArray[np.generic]) -> int:
    """Offset of the array's bytes."""
    data.write(b"\0" * (-data.tell() % PAGE))
    offset = data.tell()
    data.write(np.ascontiguousarray(array).data.cast("B"))
    return offset
