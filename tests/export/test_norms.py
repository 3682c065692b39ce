"""Group normalisation as it is captured and exported, at every rank that networks use."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch._subclasses.fake_impls import get_fast_op_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from bolid_export.tracing import norm_shapes
from bolid_export.tracing.norm_shapes import GROUP_NORM, norm_shapes_told
from bolid_export.tracing.norms import expand_group_norms


@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (2, 8, 7)])
def test_the_expanded_form_equals_pytorch(shape):
    """Rank 3 is the attention of a full autoencoder, where scales of [C, 1, 1] would meet the wrong axis."""
    random = np.random.default_rng(0)
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.from_numpy(random.standard_normal(8)))
    names = {"scale": norm.weight, "bias": norm.bias}
    node = helper.make_node("GroupNormalization", ["x", *names], ["y"], "norm", num_groups=4, epsilon=1e-6)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape)) for name in "xy"]
    weights = [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in names.items()]
    graph = helper.make_graph([node], "norms", infos[:1], infos[1:], weights)
    expand_group_norms(graph)
    assert "GroupNormalization" not in {node.op_type for node in graph.node}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    x = random.standard_normal(shape).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert found.shape == shape
    np.testing.assert_allclose(found, norm(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


class Norms(torch.nn.Module):
    """Group norms at both ranks, and something that uses their shapes."""

    def __init__(self):
        super().__init__()
        self.pictures, self.tokens = torch.nn.GroupNorm(4, 8), torch.nn.GroupNorm(2, 8, affine=False)

    def forward(self, x):
        x = self.pictures(x)
        return self.tokens(x.flatten(2)) + x.mean((2, 3))[..., None]


def capture():
    """The operations of a program with symbolic sizes, and the shapes and types of what they give."""
    shapes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(Norms().eval(), (torch.rand(2, 8, 6, 10),), dynamic_shapes=(shapes,))
    values = [(node.target, node.meta.get("val")) for node in program.graph.nodes if node.op == "call_function"]
    return [(target, value.dtype, str(value.shape), str(value.stride())) for target, value in values]


def test_shapes_that_are_told_are_those_that_pytorch_derives(monkeypatch):
    expected, told, answer = capture(), [], norm_shapes._group_norm
    monkeypatch.setattr(norm_shapes, "_group_norm", lambda *args: told.append(args) or answer(*args))
    with norm_shapes_told():
        assert capture() == expected
    assert len(told) == 2
    assert GROUP_NORM not in get_fast_op_impls()


def test_mean_and_scale_have_shapes_too():
    with norm_shapes_told(), FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = mode.from_tensor(torch.rand(3, 8, 5, 7), static_shapes=False)
        output, mean, scale = GROUP_NORM(x, None, None, x.shape[0], 8, x.shape[2] * x.shape[3], 4, 1e-5)
    assert output.shape == x.shape
    assert mean.shape == scale.shape == (x.shape[0], 4)
