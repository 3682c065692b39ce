"""Captured programs as the exporter wants them, without tracing them again.

The exporter traces every captured program a second and a third time, to take apart what ONNX has no translation for and
to remove writes in place. That is half of the time that a trace takes, and the programs here hardly need it: what they
have of either is translated (`bolid_export.translations`) or rewritten here. A program that has more of it goes the
exporter's own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

aten = torch.ops.aten


# The exporter removes them after it has decomposed.
CHECKS = {aten._assert_scalar.default, aten._assert_tensor_metadata.default}


@contextmanager
def decompositions_where_needed() -> Iterator[None]:
    """Inside, an ExportedProgram is decomposed only if it has something to decompose."""
    everything = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, table: Mapping[Any, Any], **options: Any) -> ExportedProgram:
        modules = [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]
        writes = [node for module in modules for node in module.graph.nodes if _writes(node)]
        if any(_is_in(node, table) for module in modules for node in module.graph.nodes if node not in writes):
            return everything(program, table, **options)
        if not all(_only_name(node) for node in writes):
            return everything(program, table, **options)
        for node in writes:
            _write_apart(node)
        return program

    ExportedProgram.run_decompositions = run
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = everything


def _is_in(node: Node, table: Mapping[Any, Any]) -> bool:
    return node.op == "call_function" and node.target in table and node.target not in CHECKS


def _writes(node: Node) -> bool:
    """Whether the operation is one like `add_`."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _only_name(node: Node) -> bool:
    """Whether what the node writes into is a value of the program that no other name stands for.

    A view would have to see the write too.
    """
    written = node.args[0]
    if not isinstance(written, Node) or written.op != "call_function" or _apart(node.target) is None:
        return False
    return not any(_may_be_view(other) for other in (written, *written.users) if other is not node)


def _may_be_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info for result in schema.returns if not _writes(node))


def _apart(target: Any) -> Any:
    """`add` of `add_`, None where there is no such operation."""
    packet, overload = target._schema.name.partition("::")[2], target._overloadname
    return getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)


def _write_apart(node: Node) -> None:
    """Makes a new value of what is written in place: whoever reads the old one afterwards reads the new one."""
    written: Any = node.args[0]
    later, readers = False, set()
    for other in node.graph.nodes:
        if later and other in written.users:
            readers.add(other)
        later = later or other is node
    node.target = _apart(node.target)
    written.replace_all_uses_with(node, delete_user_cb=readers.__contains__)
