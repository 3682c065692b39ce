"""Which weights of a graph belong to the adapter: those that a TensorRT engine may exchange without being rebuilt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

ADAPTER_GRAPHS = ("identity_encoder", "image_projector", "pose_guider")
ADAPTER_LAYERS = (".to_k_ip/", ".to_v_ip/")
"""In the names of a denoiser's nodes: IP-Adapter's keys and values."""


def refittable_weights(file: Path) -> list[str]:
    """Names of initializers, in the graph's order. All of an adapter's graph; none of, say, a text encoder."""
    graph = onnx.load(file, load_external_data=False).graph
    weights = [weight.name for weight in graph.initializer if weight.data_type != onnx.TensorProto.INT64]
    if graph.name in ADAPTER_GRAPHS:
        return weights
    used = set(_adapter_inputs(graph))
    return [name for name in weights if name in used]


def _adapter_inputs(graph: onnx.GraphProto) -> Iterator[str]:
    """What adapter layers read, and what that was cast from (weights are float16 on disk) or dequantised from."""
    casts = {n.output[0]: n.input for n in graph.node if n.op_type in ("Cast", "Transpose", "DequantizeLinear")}
    for node in graph.node:
        if any(layer in node.name for layer in ADAPTER_LAYERS):
            yield from node.input
            yield from (source for name in node.input for source in casts.get(name, ()))
