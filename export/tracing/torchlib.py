"""The exporter's own translations, read once.

`torch.onnx.export` reads and parses the sources of all five hundred for every graph: 0.8 s, a quarter of the time that
small graphs take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = cache(ONNXRegistry.from_torchlib)


@contextmanager
def torchlib_read_once() -> Iterator[None]:
    """Inside, exports share what the first of them has read; what one registers beside it stays its own."""
    original = ONNXRegistry.__dict__["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(_copied)
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original


def _copied(opset_version: int) -> ONNXRegistry:
    registry = copy(_read(opset_version=opset_version))
    registry.functions = {target: [*translations] for target, translations in registry.functions.items()}
    return registry
