"""Group normalisation as it is exported, at every rank that networks use."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bolid_export.norms import expand_group_norms


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
