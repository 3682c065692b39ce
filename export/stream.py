"""Graph -> ONNX file for networks of gigabytes: weights go from the network to the disk, one tensor at a time.

A protobuf ends at 2 GB, and every pass over one (shape inference, checks, saving) copies all of it. So tensors leave
the traced program before it becomes a protobuf, and come back at the very end where they are small enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from bolid_export.compact import MIN_ELEMENTS, as_half, declare_half
from bolid_export.graphs import Graph
from bolid_export.package import EXTERNAL_DATA_BYTES
from bolid_export.stand_ins import Weights, stand_ins, stood_for
from bolid_export.to_onnx import finish, trace

# Runtimes map the file into memory: tensors start at pages.
PAGE = 4096


def write_onnx(
    graph: Graph, folder: Path, *, size_step: int, vae_factor: int, dtype: torch.dtype | None = torch.float32
) -> Path:
    """Traces `graph` into `folder`, weights as float16 where that is exact. Returns the `.onnx` file.

    Above 1 GiB the weights are in `<graph>.onnx.data`. `dtype`: the network's, whatever its weights are stored in;
    None leaves each as it is.
    """
    file = stream_onnx(graph, folder, size_step=size_step, vae_factor=vae_factor, dtype=dtype)
    data = _data_file(file)
    if data.stat().st_size <= EXTERNAL_DATA_BYTES:
        onnx.save(onnx.load(file), file)
        data.unlink()
    return file


def stream_onnx(
    graph: Graph, folder: Path, *, size_step: int, vae_factor: int, dtype: torch.dtype | None = torch.float32
) -> Path:
    """The same with all weights in the data file, and none of them in memory."""
    file = folder / f"{graph.spec.name}.onnx"
    with stand_ins(graph, dtype) as weights:
        program = trace(graph, size_step=size_step, vae_factor=vae_factor)
        halves = _move_weights(program, weights, _data_file(file))
        model = finish(program.model_proto, graph.spec)
    declare_half(model, halves)
    onnx.save(model, file)
    onnx.checker.check_model(str(file))
    return file


def _data_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.data")


def _move_weights(program: torch.onnx.ONNXProgram, weights: Weights, file: Path) -> set[str]:
    """Writes large initializers to `file`. Returns the names of float32 ones that it holds as float16."""
    halves = set()
    with file.open("wb") as data:
        for name, value in program.model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.size < MIN_ELEMENTS:
                continue
            array = stood_for(tensor.numpy(), weights)
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
