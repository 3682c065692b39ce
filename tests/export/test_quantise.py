"""int8: what a pair of Q/DQ means, what layers are chosen, and that runtimes take the traced graph as int8."""

import shlex
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from onnx import TensorProto, numpy_helper
from torch import nn

from bolid_export.graphs import Graph
from bolid_export.int8.quantise import GRAPHS, POLICY, quantise
from bolid_export.int8.quantised import LEVELS, quantise_dequantise, quantise_weight, quantised
from bolid_export.int8.ranges import BINS, best_step, channel_peaks, input_scales
from bolid_export.int8.sensitivity import installed, output_error
from bolid_export.int8.smoothing import smooth
from bolid_export.pipeline import Target, export_bundle, stage_count
from bolid_export.sources import model_sizes
from bolid_export.to_onnx import example_inputs
from bolid_export.to_tensorrt import build_engine
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.gate import CommandGate
from bolid_export.verify import load_engines
from bolid_sdk.built_engine import EngineKey
from bolid_sdk.contracts import GraphSpec, TensorSpec
from bolid_sdk.doctor import diagnose

IN, OUT = ((TensorSpec(name=name, dtype="float32", shape=("batch", 8)),) for name in "xy")


class Plain(Graph):
    def run(self, x):
        return (self.network(x),)


def graph_of(*layers):
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    return Plain(GraphSpec(name="plain", inputs=IN, outputs=OUT), network)


def test_rounding_is_half_to_even_and_saturates():
    x = torch.tensor([0.5, 1.5, -0.5, 2.5, 200.0, -200.0, 0.0])
    found = quantise_dequantise(0.25 * x, torch.tensor(0.25))
    assert found.tolist() == [0.25 * value for value in (0, 2, 0, 2, 127, -128, 0)]


def test_weights_have_one_scale_an_output_channel():
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-4, 1, 10, 1e3, 0]).view(-1, 1, 1, 1)
    values, scale = quantise_weight(weight)
    assert values.dtype == torch.int8
    assert values.abs().amax((1, 2, 3)).tolist() == [LEVELS] * 4 + [0]
    assert ((values * scale.view(-1, 1, 1, 1) - weight).abs().amax((1, 2, 3)) <= scale / 2 * 1.001).all()


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(6, 4, 3, 2, 1)])
def test_what_int8_holds_exactly_is_computed_exactly(layer):
    """Integers up to 127 on both sides: the float layer is the closed form."""
    values = np.random.default_rng(0)
    weight = values.integers(-LEVELS, LEVELS, layer.weight.shape)
    weight.reshape(4, -1)[:, 0] = LEVELS  # so that the scale is one
    layer.weight.data = torch.from_numpy(weight).float()
    x = torch.from_numpy(values.integers(-LEVELS, LEVELS, (2, 6, 6, 6))).float()
    torch.testing.assert_close(quantised(layer, 1.0)(x), layer(x), rtol=0, atol=2e-2)


def test_the_best_step_clips_a_rare_giant_but_no_even_distribution():
    flat = torch.ones(BINS, dtype=torch.float64)
    assert best_step(flat, 2.0) == pytest.approx(2.0 / LEVELS, rel=0.02)
    rare = torch.zeros(BINS, dtype=torch.float64)
    rare[: BINS // 5], rare[-1] = 1e6, 1.0
    assert best_step(rare, 2.0) == pytest.approx(0.2 * 2.0 / LEVELS, rel=0.1)


def test_ranges_are_those_of_what_layers_read():
    graph = graph_of(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    layers = {name: graph.network.get_submodule(name) for name in "02"}
    x = torch.randn(64, 8)
    runs = [lambda: graph(x[:32]), lambda: graph(x[32:])]
    peaks = channel_peaks(layers, runs)
    hidden = graph.network[:2](x)
    torch.testing.assert_close(peaks["0"], x.abs().amax(0))
    torch.testing.assert_close(peaks["2"], hidden.abs().amax(0))
    scales = input_scales(layers, peaks, runs)
    error = lambda step: float((quantise_dequantise(hidden, torch.tensor(step)) - hidden).square().sum())  # noqa: E731
    assert error(scales["2"]) <= 1.02 * error(float(hidden.max()) / LEVELS)


@torch.no_grad()
def test_smoothing_changes_ranges_and_no_result():
    torch.manual_seed(0)
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=16, attention_bias=False).eval()
    block.norm3.weight[3] = 50.0
    x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    names = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj", "ff.net.2"]
    layers = {name: block.get_submodule(name) for name in names}
    run = lambda: block(x, encoder_hidden_states=context)  # noqa: E731
    before, expected = channel_peaks(layers, [run]), run()
    claimed = smooth(block, before)
    torch.testing.assert_close(run(), expected, rtol=1e-6, atol=1e-6)
    after = channel_peaks(layers, [run])
    for name in names:
        torch.testing.assert_close(after[name], claimed[name], rtol=1e-5, atol=1e-7)
    spread = lambda peaks: float(peaks["ff.net.0.proj"].max() / peaks["ff.net.0.proj"].median())  # noqa: E731
    assert spread(after) < spread(before) / 3


def test_smoothing_leaves_alone_what_is_read_in_float_too():
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=16).eval()
    weight = block.norm1.weight
    smooth(block, {"attn1.to_q": torch.ones(16), "attn1.to_k": torch.ones(16)})
    assert block.norm1.weight is weight


class Brittle(nn.Module):
    """Adds a tiny signal to a huge one, which cancels afterwards: no step of one input resolves both."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 8, bias=False)
        self.layer.weight.data[:, 8:] = 1e-3 * torch.randn(8, 8)

    def forward(self, x):
        return self.layer(torch.cat([x, 1e3 * torch.ones_like(x)], -1))


def test_the_search_keeps_the_layer_that_int8_destroys_and_no_other():
    graph = graph_of(nn.Linear(8, 8), Brittle(), nn.Linear(8, 8))
    samples = [(torch.randn(32, 8),) for _ in range(4)]
    found = quantise(graph, samples[:2], samples[2:])
    (kept,) = found.kept
    assert kept.module == "network.1.layer"
    assert "it alone moves the output by" in kept.reason
    assert (found.layers, found.error < 0.04) == (2, True)
    assert found.work == pytest.approx(128 / 256)
    assert isinstance(graph.network[0], nn.Linear), "the original is left alone"


def test_what_is_installed_is_taken_out_again():
    graph = graph_of(nn.Linear(8, 8))
    before = graph.network[0]
    with installed(graph.network, {"0": nn.Identity()}):
        assert isinstance(graph.network[0], nn.Identity)
    assert graph.network[0] is before


def test_output_error_is_relative_to_the_deviation_of_the_worst_output():
    expected = [(torch.tensor([1.0, 3.0]), torch.tensor([5.0, -5.0]))]
    found = [(torch.tensor([1.5, 3.5]), torch.tensor([5.0, -5.0]))]
    assert output_error(found, expected) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def decoder(graphs, sizes, tmp_path_factory):
    """(float32 graph, int8 graph, ONNX file, ONNX model) of the smallest graph that is quantised."""
    graph = graphs["vae_decoder"]
    samples = [example_inputs(graph.spec, {"latent_height": 9}, seed) for seed in range(6)]
    found = quantise(graph, samples[:4], samples[4:])
    folder = tmp_path_factory.mktemp("int8")
    file = to_onnx(found.graph, folder, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
    return graph, found, file, onnx.load(file)


def test_every_pair_is_explicit_symmetric_and_its_weights_are_int8(decoder):
    _, found, _, model = decoder
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    pairs = [node for node in convolutions if made.get(node.input[1]) is not None]
    assert len(pairs) == found.layers == len(convolutions) - 2
    for node in pairs:
        x, weight = made[node.input[0]], made[node.input[1]]
        assert (x.op_type, made[x.input[0]].op_type, weight.op_type) == (
            *("DequantizeLinear", "QuantizeLinear", "DequantizeLinear"),
        )
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        assert list(constants[weight.input[1]].dims) == [constants[weight.input[0]].dims[0]]
        (zero,) = [numpy_helper.to_array(constants[name]) for name in made[x.input[0]].input[2:]]
        assert (zero.dtype, zero.item()) == (np.int8, 0)


def test_first_and_last_convolutions_stay_float32(decoder):
    _, found, _, _ = decoder
    reasons = {island.module.rpartition("layers.")[2]: island.reason for island in found.kept}
    assert reasons["0"] == next(iter(POLICY.values()))
    assert len(reasons) == 2


def test_onnxruntime_computes_what_pytorch_computes(decoder):
    """Rounding is discontinuous: a value that differs in the last bit may fall one step further.

    So the pairs are compared as they are written, and what optimised kernels make of them with the float network only.
    How many values do differs by processor: their error was 0.31 of what rounding costs on one without AVX-512.
    """
    graph, found, file, _ = decoder
    (latents,) = example_inputs(graph.spec, {"latent_height": 12}, seed=9)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = ort.InferenceSession(file, options).run(None, {"latents": latents.numpy()})
    engine = load_engines({"vae_decoder": file}, {"vae_decoder": graph.spec})["vae_decoder"]
    fused = engine.run({"latents": latents.numpy()})["pixels"]
    with torch.no_grad():
        expected, rounded = graph(latents), found.graph(latents)
    loss = output_error([rounded], [expected])
    assert 1e-3 < loss < 0.05
    assert output_error([(torch.from_numpy(literal[0]),)], [rounded]) < 0.5 * loss
    assert output_error([(torch.from_numpy(fused),)], [expected]) < 1.2 * loss


LATENTS = {"latent_height": 6}


@pytest.fixture(scope="module")
def halves(graphs):
    """The whole denoiser and its shallow half, each (float32 graph, what `quantise` makes of it)."""
    made = {}
    for name in ("denoiser", "denoiser_shallow"):
        samples = [example_inputs(graphs[name].spec, LATENTS, seed) for seed in range(4)]
        made[name] = graphs[name], quantise(graphs[name], samples[:2], samples[2:])
    return made


def test_the_shallow_half_is_quantised_as_the_whole_is(halves, sizes, tmp_path):
    """Its layers by the same policy, its own copy of what it shares with the whole, and runtimes take it."""
    assert set(halves) < set(GRAPHS)
    graph, found = halves["denoiser_shallow"]
    reasons = {island.module.rpartition(".")[2]: island.reason for island in found.kept}
    for name in ("conv_in", "conv_out", "time_emb_proj", "to_k", "to_v", "to_k_ip"):
        assert any(last.startswith(name) and reason in POLICY.values() for last, reason in reasons.items()), name
    assert found.layers > 5
    assert not any(type(module).__name__.startswith("Quantised") for module in graph.modules())
    inputs = example_inputs(graph.spec, LATENTS, seed=9)
    with torch.no_grad():
        expected, rounded = graph(*inputs), found.graph(*inputs)
    assert 1e-4 < output_error([rounded], [expected]) < 0.05
    file = to_onnx(found.graph, tmp_path, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
    engine = load_engines({"denoiser_shallow": file}, {"denoiser_shallow": graph.spec})["denoiser_shallow"]
    arrays = {name: tensor.numpy() for name, tensor in zip(graph.spec.input_names, inputs, strict=True)}
    outputs = engine.run(arrays)
    traced = tuple(torch.from_numpy(np.asarray(outputs[name])) for name in graph.spec.output_names)
    assert output_error([traced], [rounded]) < 0.02


def test_both_halves_in_int8_still_are_one_network(halves):
    """With the feature of its own step the shallow half computes what the whole does, to within their rounding."""
    whole, shallow = (found.graph for _, found in halves.values())
    values = dict(zip(whole.spec.input_names, example_inputs(whole.spec, LATENTS, seed=9), strict=True))
    with torch.no_grad():
        full = dict(zip(whole.spec.output_names, whole(*values.values()), strict=True))
        deep = {"deep_feature": full["deep_feature"], "earlier_deep_feature": full["deep_feature"]}
        given = {**values, **deep, "extrapolation": torch.zeros(1)}
        half = shallow(*(given[name] for name in shallow.spec.input_names))
    assert output_error([half], [tuple(full[name] for name in shallow.spec.output_names)]) < 0.05


def test_openvino_runs_the_pairs_as_integer_kernels(decoder):
    openvino = pytest.importorskip("openvino", reason="pip install 'bolid-sdk[openvino]'")
    _, found, file, _ = decoder
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({"latents": [1, 4, 8, 8]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = [(info["layerType"].value, info["runtimePrecision"].value) for info in infos]
    integer = [kind for kind in kinds if kind[0] == "Convolution" and kind[1] in ("i8", "u8")]
    assert len(integer) == found.layers


def test_tensorrt_rtx_builds_an_engine_of_the_pairs(decoder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'bolid-sdk[tensorrt-rtx]'")
    _, _, file, _ = decoder
    key = EngineKey(
        graph_sha256=("0" * 64,),
        shapes={"latents": ((1, 4, 8, 8), (1, 4, 8, 8), (2, 4, 8, 8))},
        precision="int8",
        runtime="tensorrt-rtx",
        compute_capabilities=("8.9",),
    )
    build_engine(file, tmp_path / "vae_decoder.engine", key)
    assert (tmp_path / "vae_decoder.engine").stat().st_size > 10_000


LIST_FILES = "import json, os, sys; print(json.dumps({'files': os.listdir(sys.argv[1])}))"


@pytest.mark.slow
def test_a_whole_int8_bundle_is_verified_and_shown_to_the_gate(source, tmp_path):
    target = Target(
        folder=tmp_path / "tiny",
        precision="int8",
        licence="CC0-1.0",
        gate=CommandGate(shlex.join([sys.executable, "-c", LIST_FILES, "{}"])),
    )
    announced = []
    bundle = export_bundle(source, target, announced.append)
    assert len(announced) == stage_count(model_sizes(source.checkpoint), gate=True)
    verification = bundle.manifest.verification
    assert {row["graph"] for row in verification["quantised"]} == set(GRAPHS)
    assert {"manifest.json", "denoiser.onnx"} <= set(verification["gate"]["files"])
    assert {row["graph"] for row in verification["islands"]} <= set(GRAPHS)
    text = (bundle.path / "report.md").read_text()
    assert "int8 by explicit, symmetric Q/DQ" in text
    assert "time embedding: one row a step" in text
    assert diagnose(bundle.path)["bundle"]["ok"]
