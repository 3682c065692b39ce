"""What the exporter is spared, against PyTorch and against the exporter's own way."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from bolid_export.to_onnx import OPSET
from bolid_export.tracing.decompose import traced_once
from bolid_export.tracing.translations import TRANSLATIONS


@pytest.fixture
def decomposed(monkeypatch):
    """How many programs were decomposed."""
    seen = []
    everything = ExportedProgram.run_decompositions
    monkeypatch.setattr(
        ExportedProgram, "run_decompositions", lambda self, table: seen.append(self) or everything(self, table)
    )
    return seen


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def check(function, *inputs, atol=1e-6):
    """Traces `function` at one batch and runs it at another."""
    batch = torch.export.Dim("batch")
    dynamic = ({0: batch},) * len(inputs)
    with traced_once():
        program = torch.onnx.export(
            Function(function).eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(dynamic,),
            custom_translation_table=dict(TRANSLATIONS),
            verbose=False,
        )
    # other numbers, and twice as many
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    others = [torch.cat([x, x.flip(0)]) for x in inputs]
    feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), others, strict=True)}
    expected = function(*[x.clone() for x in others])
    answers = expected if isinstance(expected, tuple) else (expected,)
    for found, answer in zip(session.run(None, feed), answers, strict=True):
        assert found.dtype == answer.numpy().dtype
        np.testing.assert_allclose(found, answer.numpy(), atol=atol)
    return [node.op_type for node in program.model_proto.graph.node]


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def read_before_and_after(x, y):
    new = x / 2
    before = new * 3
    new += y
    return before, new, new * 5


def written_twice(x, y):
    new = x / 2
    new += y
    new *= x
    return new - 1


def through_a_view(x, y):
    new = x / 2
    part = new[:, :2]
    new += y
    return part * 2, new


def into_a_view(x, y):
    new = x / 2
    new[:, :2] += y[:, :2]
    return new


def into_what_may_be_the_same(x, y):
    new = x / 2
    same = new.to(torch.float32)
    same += y
    return new, same


def into_a_copy(x, y):
    copy = x.clone()
    copy += y
    return x, copy


@pytest.mark.parametrize("function", [read_before_and_after, written_twice, into_a_copy])
def test_writes_in_place_are_values(decomposed, function):
    check(function, random(3, 4), random(3, 4))
    assert not decomposed


@pytest.mark.parametrize("function", [through_a_view, into_a_view, into_what_may_be_the_same])
def test_writes_that_a_view_sees_go_the_exporters_way(decomposed, function):
    check(function, random(3, 4), random(3, 4))
    assert len(decomposed) == 1


def test_what_has_no_translation_is_decomposed(decomposed):
    check(lambda x: F.hardshrink(x) + torch.special.entr(x.sigmoid()), random(3, 4))
    assert len(decomposed) == 1


def test_integers_are_joined_bit_by_bit(decomposed):
    whole = torch.arange(12).reshape(3, 4)
    check(lambda x, y: x.__and__(y), whole, whole.flip(0))
    assert not decomposed


def test_types_are_promoted(decomposed):
    """Integers with floats, float16 with float32, and what PyTorch computes in float32 and gives in float16."""
    half, whole = random(3, 4).half(), torch.arange(12).reshape(3, 4)

    def mixed(x, y, z):
        return x * y + 0.5, (z + 1) / 2 * x, torch.rsqrt(y.abs() + 1) * 2.5, z * 0.1

    check(mixed, random(3, 4), half, whole, atol=1e-3)
    assert not decomposed


def test_types_and_booleans(decomposed):
    check(lambda x: (x.to(torch.float16).to(torch.float32), ((x > 0) & (x < 1)).to(torch.int64)), random(3, 4))
    assert not decomposed


@pytest.mark.parametrize(("dim", "sizes"), [(-1, (2, -1)), (2, (3, 2)), (1, (2, -1)), (-1, (6,))])
def test_an_axis_is_divided(decomposed, dim, sizes):
    check(lambda x: x.unflatten(dim, sizes), random(2, 4, 6))
    assert not decomposed


@pytest.mark.parametrize(("start", "end"), [(1, -1), (2, 3), (2, -1), (1, 2), (0, -1)])
def test_axes_are_united(decomposed, start, end):
    check(lambda x: x.flatten(start, end), random(2, 3, 2, 5))
    assert not decomposed


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("scale", [None, 0.3, 0.0])
def test_attention_transposes_keys_once(queries, scale):
    q, k, v = random(2, 2, queries, 8), random(2, 2, 7, 8), random(2, 2, 7, 8).flip(0)
    nodes = check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale), q, k, v)
    assert sorted(nodes) == ["MatMul", "MatMul", "Mul", "Softmax", "Transpose"]


def test_attention_with_a_mask():
    q, k, v = random(2, 2, 5, 8), random(2, 2, 5, 8).flip(2), random(2, 2, 5, 8).flip(0)
    mask = torch.ones(5, 5).tril().log()
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), q, k, v)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
