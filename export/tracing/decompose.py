"""Captured programs as the exporter wants them, without running through them again and again.

The exporter traces every captured program a second and a third time, to take apart what ONNX has no translation for and
to remove writes in place, and runs through it a fourth time to promote types. That is about half of the time that a
trace takes, and the programs here hardly need it: what they have to decompose is translated
(`bolid_export.tracing.translations`), writes are rewritten here, and the values of operations, of which types are all
that is wanted, are known since the first time. A program with anything else goes the exporter's own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten

# The exporter removes them after it has decomposed.
CHECKS = {aten._assert_scalar.default, aten._assert_tensor_metadata.default}


@contextmanager
def traced_once() -> Iterator[None]:
    """Inside, `torch.onnx.export` decomposes what has to be, and computes again what has changed."""
    decompose, run_node = ExportedProgram.run_decompositions, Interpreter.run_node

    def run_decompositions(program: ExportedProgram, table: Mapping[Any, Any], **options: Any) -> ExportedProgram:
        done = program if _made_functional(program, table) else decompose(program, table, **options)
        Interpreter.run_node = _unless_known(_nodes(done), run_node)
        return done

    ExportedProgram.run_decompositions = run_decompositions
    try:
        yield
    finally:
        ExportedProgram.run_decompositions, Interpreter.run_node = decompose, run_node


def _nodes(program: ExportedProgram) -> list[Node]:
    modules = [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    return [node for module in modules for node in module.graph.nodes]


def _unless_known(nodes: list[Node], run: Callable[..., Any]) -> Callable[..., Any]:
    """`Interpreter.run_node` that takes the recorded value of an operation which is as it was."""
    known = {n: (n.target, n.args, n.kwargs) for n in nodes if n.op == "call_function" and "val" in n.meta}

    def run_node(interpreter: Interpreter, node: Node) -> Any:
        if known.get(node) == (node.target, node.args, node.kwargs):
            return node.meta["val"]
        return run(interpreter, node)

    return run_node


def _made_functional(program: ExportedProgram, table: Mapping[Any, Any]) -> bool:
    """Whether nothing has to be decomposed; then nothing is written in place any more."""
    nodes = _nodes(program)
    writes = [node for node in nodes if _writes(node)]
    if any(_is_in(node, table) for node in nodes if node not in writes) or not all(map(_only_name, writes)):
        return False
    for node in writes:
        _write_apart(node)
    return True


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
