"""float16: what stays float32, why, and that weights are stored as float16 only where that loses nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from bolid_export.graphs import Graph
from bolid_export.precision import LIMIT, islands, lower, watch_peaks
from bolid_export.tracing.compact import as_half
from bolid_export.verification.torch_engine import TorchEngine
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


def watched(graph, *inputs):
    """The islands that one run of the graph shows, or none."""
    with watch_peaks([graph.network]) as peaks:
        if inputs:
            graph(*inputs)
    return islands(graph, peaks)


def test_the_island_is_the_smallest_module_that_holds_the_overflow(loud):
    (island,) = watched(loud, torch.ones(2, 4))
    assert (island.graph, island.module) == ("loud", "network.1")
    assert "values reach" in island.reason


def test_an_island_saves_what_float16_overflows(loud):
    inputs = 3 * torch.ones(2, 4)
    found = watched(loud, inputs)
    assert not torch.isfinite(lower(loud, "fp16")(inputs)[0]).all()
    torch.testing.assert_close(lower(loud, "fp16", found)(inputs)[0], loud(inputs)[0], rtol=1e-2, atol=1e-2)


def test_the_gate_sees_real_float16_arithmetic(loud):
    """ONNX Runtime computes float16 graphs in float32 on CPUs, where this overflow would pass."""
    engine, inputs = TorchEngine(loud), 3 * torch.ones(2, 4)
    engine.run({"x": inputs.numpy()})
    for found, passes in (([], False), (watched(loud, inputs), True)):
        lowered = TorchEngine(lower(loud, "fp16", found))
        (check,) = check_graph(loud.spec, lowered, engine.records, LIMITS["fp16"])
        assert check.passed is passes


def test_lowering_leaves_the_original_alone_and_keeps_float32_at_the_border(loud):
    lowered = lower(loud, "fp16", watched(loud, torch.ones(2, 4)))
    assert {p.dtype for p in loud.parameters()} == {torch.float32}
    assert lowered.network[0].weight.dtype == torch.float16
    assert lowered.network[1].up.weight.dtype == torch.float32
    assert lowered(torch.ones(2, 4))[0].dtype == torch.float32
    assert lower(loud, "fp32") is loud


def test_quiet_networks_have_no_islands(loud):
    loud.network[1].up.weight.fill_(1.0)
    assert watched(loud, torch.full((2, 4), LIMIT / 100)) == []


def test_resamplers_are_islands_by_policy(graphs):
    (island,) = watched(graphs["identity_encoder"])
    assert (island.module, "Resampler" in island.reason) == ("network", True)


def test_float16_is_stored_where_it_is_exact():
    exact = np.random.default_rng(0).standard_normal((80, 80)).astype(np.float16)
    np.testing.assert_array_equal(as_half(exact.astype(np.float32)), exact)
    assert as_half(exact) is exact
    for other in (0.1, 1e5, 2.0**-26):
        assert as_half(np.array([1, other], np.float32)) is None
