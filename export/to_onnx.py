"""Graph -> ONNX: dynamic shapes and names from the GraphSpec, nothing private to the exporter left inside."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript import rewriter
from torch import Tensor

from bolid_export.graphs import Graph
from bolid_export.int8 import quantised
from bolid_export.tracing import translations
from bolid_export.tracing.decompose import traced_once
from bolid_export.tracing.norm_shapes import norm_shapes_told
from bolid_export.tracing.norms import expand_group_norms
from bolid_export.tracing.torchlib import torchlib_read_once
from bolid_sdk.contracts import GraphSpec, TensorSpec

# At 23, scaled_dot_product_attention becomes `Attention`, and two of them sharing one query, which is what decoupled
# cross-attention is, crash TensorRT-RTX's builder.
OPSET = 21

RULES, QUADRATIC = "_DEFAULT_REWRITE_RULES", "SlicesSplit"

# Small, and all different: an axis that is 0 or 1, or equal to another, is what torch.export would specialise.
_EXAMPLE_AXES = {"batch": 2, "guided_batch": 6, "views": 5, "identity_tokens": 7, "lora_rank": 11}

# torch.export finds this bound of attention only after tracing, and traces again; the ONNX graph has none.
_MAX_BATCH = 63


def trace(graph: Graph, *, size_step: int, vae_factor: int) -> torch.onnx.ONNXProgram:
    """As the exporter leaves it: weights are the network's own tensors, not copies.

    `size_step`: a picture's sides are multiples of it; `vae_factor`: pixels a latent.
    """
    units = {"height": size_step, "latent_height": size_step // vae_factor}
    inputs = example_inputs(graph.spec, {axis: 3 * unit for axis, unit in units.items()})
    dims = {name: torch.export.Dim(name) for name in ("views", "identity_tokens", "lora_rank", "rows", "columns")}
    dims |= {name: torch.export.Dim(name, max=_MAX_BATCH) for name in ("batch", "guided_batch")}
    shapes = tuple(_dynamic_axes(tensor, units, dims) for tensor in graph.spec.inputs)
    with _quiet(), _linear_time(), torchlib_read_once(), norm_shapes_told(), traced_once():
        return torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(shapes,),
            input_names=list(graph.spec.input_names),
            output_names=list(graph.spec.output_names),
            custom_translation_table={**translations.TRANSLATIONS, **quantised.TRANSLATIONS},
            verbose=False,
        )


def finish(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """The spec's names and axes, inferred shapes, and nothing that is private to the exporter."""
    _name_nodes(model.graph)
    _strip_metadata(model)
    expand_group_norms(model.graph)
    _name_axes(model.graph, spec)
    model.graph.name, model.producer_name = spec.name, "bolid-export"
    return onnx.shape_inference.infer_shapes(model)


def example_inputs(spec: GraphSpec, heights: dict[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of the spec's dtypes: float32 in [0, 1), int64 zero. Heights give widths two units larger."""
    random = torch.Generator().manual_seed(seed)
    axes = {**_EXAMPLE_AXES, **heights, **{axis.replace("height", "width"): n // 3 * 5 for axis, n in heights.items()}}
    return tuple(_example(tensor, axes, random) for tensor in spec.inputs)


def _example(tensor: TensorSpec, axes: dict[str, int], random: torch.Generator) -> Tensor:
    shape = [axis if isinstance(axis, int) else _divided(axis, axes) for axis in tensor.shape]
    if tensor.dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    return torch.rand(shape, generator=random)


def _divided(axis: str, axes: dict[str, int]) -> int:
    """Size of "latent_height/4" given {"latent_height": 16}."""
    name, _, divisor = axis.partition("/")
    return axes[name] // int(divisor or 1)


def _dynamic_axes(tensor: TensorSpec, units: dict[str, int], dims: dict[str, Any]) -> dict[int, Any]:
    return {i: _dim(axis, units, dims) for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}


def _dim(axis: str, units: dict[str, int], dims: dict[str, Any]) -> Any:
    """A picture is `rows` x `columns` steps of `size_step` pixels: the UNet needs latents that halve evenly."""
    if axis in dims:
        return dims[axis]
    step = dims["rows" if "height" in axis else "columns"]
    unit = _divided(axis.replace("width", "height"), units)
    return step if unit == 1 else unit * step


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names a node after its module, `network.down_blocks.0.resnets.0.conv1/Conv`, numbered when there are several."""
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        # the last scope is the traced operation, not a module
        scope = next((name for name in reversed(ast.literal_eval(scopes)[:-1]) if name), "graph")
        name = f"{scope}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Stack traces and class hierarchies: a megabyte of the exporting machine's file names."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _name_axes(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    """Input and output shapes exactly as the spec says them; the exporter's own symbols go with the value infos."""
    graph.ClearField("value_info")
    for value, tensor in zip([*graph.input, *graph.output], [*spec.inputs, *spec.outputs], strict=True):
        shape = value.type.tensor_type.shape
        shape.ClearField("dim")
        for axis in tensor.shape:
            shape.dim.add(**{"dim_value" if isinstance(axis, int) else "dim_param": axis})


@contextmanager
def _linear_time() -> Iterator[None]:
    """Without the one rule of onnxscript's optimiser that compares every node with every other.

    It makes one Split of two Slices, which no graph of ours has, and takes two fifths of all time to trace a UNet. The
    rules are no public name: a version that has renamed them traces as slowly as it would.
    """
    rules = getattr(rewriter, RULES, ())
    setattr(rewriter, RULES, tuple(rule for rule in rules if rule.name != QUADRATIC))
    try:
        yield
    finally:
        setattr(rewriter, RULES, rules)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about the absence of torchvision and about shared axis names: neither concerns a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
