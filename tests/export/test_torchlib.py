"""The exporter's translations are read once, and what one export registers is not another's."""

import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from bolid_export.tracing import torchlib
from bolid_export.tracing.torchlib import torchlib_read_once

SIN = torch.ops.aten.sin.default


def own_sine(x):
    return x


def test_translations_are_read_once_and_shared(monkeypatch):
    read = []

    def from_torchlib(opset_version):
        read.append(opset_version)
        return ONNXRegistry()

    monkeypatch.setattr(torchlib, "_read", torchlib.cache(from_torchlib))
    with torchlib_read_once():
        first = ONNXRegistry().from_torchlib(opset_version=21)
        first.register_op(SIN, own_sine)
        second = ONNXRegistry().from_torchlib(opset_version=21)
        ONNXRegistry.from_torchlib(opset_version=18)
    assert read == [21, 18]
    assert [translation.onnx_function for translation in first.get_decomps(SIN)] == [own_sine]
    assert second.get_decomps(SIN) == []


def test_they_are_the_exporters_own(monkeypatch):
    monkeypatch.setattr(torchlib, "_read", torchlib.cache(ONNXRegistry.from_torchlib))
    expected = ONNXRegistry.from_torchlib(opset_version=21)
    with torchlib_read_once():
        found = ONNXRegistry.from_torchlib(opset_version=21)
    assert found.opset_version == expected.opset_version
    assert found.functions.keys() == expected.functions.keys()
    assert ONNXRegistry.from_torchlib.__func__ is not torchlib._copied
