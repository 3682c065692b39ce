"""What a denoising loop computes at every step although it stays the same: in a graph of its own, run once.

That is the keys and values of cross-attention to text, identity and image tokens (2 x 12,480 channels in SD1.5's UNet).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import openvino as ov
from openvino import opset13


def split_invariants(model: Any, invariant_inputs: Collection[str]) -> tuple[Any, Any]:
    """(once, step) of an OpenVINO model, which is used up.

    `once` computes from the invariant inputs alone; its outputs are inputs of `step` by the same names. Only what a
    matrix product went into moves there: the rest is cheaper to compute than to read. Raises ValueError where there is
    nothing to move.
    """
    invariant, products = _invariant_nodes(model, invariant_inputs)
    results, handed_over = [], []
    for node in products:
        readers = [reader for reader in node.output(0).get_target_inputs() if _reader(reader) not in invariant]
        if readers:
            names = {f"{node.get_friendly_name()}:once"}
            parameter = opset13.parameter(node.output(0).get_partial_shape(), node.output(0).get_element_type())
            parameter.output(0).set_names(names)
            for reader in readers:
                reader.replace_source_output(parameter.output(0))
            node.output(0).set_names(names)
            results.append(opset13.result(node.output(0)))
            handed_over.append(parameter)
    if not results:
        raise ValueError(f"no matrix product has only {', '.join(sorted(invariant_inputs))} behind it")
    given = model.get_parameters()
    kept = [p for p in given if p.get_friendly_name() not in invariant or not invariant.issuperset(_readers(p))]
    once = ov.Model(results, [p for p in given if p.get_friendly_name() in invariant], "once")
    return once, ov.Model(model.get_results(), [*kept, *handed_over], "step")


def _invariant_nodes(model: Any, inputs: Collection[str]) -> tuple[set[str], list[Any]]:
    """The names of nodes that have only these inputs and constants behind them; those that a matrix product went into.

    Shapes are not among them: where an input's shape is fixed they cost nothing.
    """
    invariant: set[str] = set()
    varied: set[str] = set()  # from one request to the next: no constants
    products: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [value.get_node().get_friendly_name() for value in node.input_values()]
        if kind == "Parameter":
            if not node.output(0).get_names().isdisjoint(inputs):
                invariant.add(name)
                varied.add(name)
        elif kind not in ("ShapeOf", "Result") and invariant.issuperset(sources):
            invariant.add(name)
            if not varied.isdisjoint(sources):
                varied.add(name)
                if kind == "MatMul" or not products.keys().isdisjoint(sources):
                    products[name] = node
    return invariant, list(products.values())


def _readers(node: Any) -> list[str]:
    return [_reader(target) for target in node.output(0).get_target_inputs()]


def _reader(target: Any) -> str:
    return str(target.get_node().get_friendly_name())
