"""float16: what stays float32, why, and that storing weights compactly loses nothing."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bolid_export.compact import store_compactly
from bolid_export.graphs import Graph
from bolid_export.precision import LIMIT, find_islands, lower
from bolid_export.torch_engine import TorchEngine
from bolid_export.verify import LIMITS, check_graph
from bolid_sdk.contracts import GraphSpec, TensorSpec

IN, OUT = ((TensorSpec(name=name, dtype="float32", shape=("batch", 4)),) for name in "xy")


class Loud(nn.Module):
    """A block whose inner value exceeds float16 and whose output does not."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.constant_(self.up.weight, 2e4)
        nn.init.constant_(self.down.weight, 1e-5)

    def forward(self, x):
        return self.down(self.up(x))


class Plain(Graph):
    def run(self, x):
        return (self.network(x.to(self.dtype)),)


@pytest.fixture
def loud():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), Loud(), nn.Linear(4, 4)).requires_grad_(False)
    return Plain(GraphSpec(name="loud", inputs=IN, outputs=OUT), network)


def test_the_island_is_the_smallest_module_that_holds_the_overflow(loud):
    (island,) = find_islands(loud, [(torch.ones(2, 4),)])
    assert (island.graph, island.module) == ("loud", "network.1")
    assert "values reach" in island.reason


def test_an_island_saves_what_float16_overflows(loud):
    inputs = 3 * torch.ones(2, 4)
    islands = find_islands(loud, [(inputs,)])
    assert not torch.isfinite(lower(loud, "fp16")(inputs)[0]).all()
    torch.testing.assert_close(lower(loud, "fp16", islands)(inputs)[0], loud(inputs)[0], rtol=1e-2, atol=1e-2)


def test_the_gate_sees_real_float16_arithmetic(loud):
    """ONNX Runtime computes float16 graphs in float32 on CPUs, where this overflow would pass."""
    engine, inputs = TorchEngine(loud), 3 * torch.ones(2, 4)
    engine.run({"x": inputs.numpy()})
    for islands, passes in (([], False), (find_islands(loud, [(inputs,)]), True)):
        lowered = TorchEngine(lower(loud, "fp16", islands))
        (check,) = check_graph(loud.spec, lowered, engine.records, LIMITS["fp16"])
        assert check.passed is passes


def test_lowering_leaves_the_original_alone_and_keeps_float32_at_the_border(loud):
    lowered = lower(loud, "fp16", find_islands(loud, [(torch.ones(2, 4),)]))
    assert {p.dtype for p in loud.parameters()} == {torch.float32}
    assert lowered.network[0].weight.dtype == torch.float16
    assert lowered.network[1].up.weight.dtype == torch.float32
    assert lowered(torch.ones(2, 4))[0].dtype == torch.float32
    assert lower(loud, "fp32") is loud


def test_quiet_networks_have_no_islands(loud):
    loud.network[1].up.weight.fill_(1.0)
    assert find_islands(loud, [(torch.full((2, 4), LIMIT / 100),)]) == []


def test_resamplers_are_islands_by_policy(graphs):
    (island,) = find_islands(graphs["identity_encoder"], [])
    assert (island.module, "Resampler" in island.reason) == ("network", True)


def test_compact_storage_is_lossless():
    random = np.random.default_rng(0)
    exact = random.standard_normal((80, 80)).astype(np.float16).astype(np.float32)
    other = random.standard_normal((80, 80)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "exact"], ["h"]), helper.make_node("MatMul", ["h", "other"], ["y"])]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 80])  # noqa: E731
    weights = [numpy_helper.from_array(exact, "exact"), numpy_helper.from_array(other, "other")]
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("y")], weights))
    store_compactly(model)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: array.dtype.name for name, array in stored.items()} == {
        "exact.float16": "float16",
        "other": "float32",
    }
    np.testing.assert_array_equal(stored["exact.float16"].astype(np.float32), exact)
