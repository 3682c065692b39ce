"""What large models are exported with, on small ones: weights streamed to disk, float16 at rest, less to verify."""

import copy
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bolid_export.graphs import Graph, bind_graphs
from bolid_export.half import HalfOnFloat32
from bolid_export.pipeline import Target, export_bundle
from bolid_export.residency import Residency
from bolid_export.sources import open_source, stored
from bolid_export.tracing import stream, worker
from bolid_export.tracing.ahead import WORKER, TraceAhead, request_file
from bolid_export.verification.as_written import AsWritten
from bolid_export.verification.effort import choose_effort
from bolid_export.verification.remembered import Remembered
from bolid_export.verification.runtimes import ONNX_RUNTIME, open_runtime
from bolid_export.verification.torch_engine import TorchEngine
from bolid_export.verify import load_engines
from bolid_sdk.backends import open_backend
from bolid_sdk.contracts import GraphSpec, TensorSpec


@pytest.fixture(scope="module")
def large_source(model_folder):
    """The tiny checkpoint, opened as a large one is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "LARGE", 0)
        return open_source(model_folder)


def test_a_large_checkpoint_stays_float16(large_source):
    assert large_source.checkpoint.unet.dtype == large_source.checkpoint.vae.dtype == torch.float16


def test_float32_weights_are_never_rounded(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 0)
    checkpoint.vae.save_pretrained(tmp_path)
    assert stored.memory_dtype(tmp_path) == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_large_model_is_exported_and_verified(model_folder, tmp_path, monkeypatch, precision):
    """The whole path, with everything that size decides set to large. A source can be exported once: it is given up."""
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr("bolid_export.verification.effort.MOST_OPERATIONS", 0)
    monkeypatch.setattr(stream, "EXTERNAL_DATA_BYTES", 1 << 16)
    loaded = Counter()

    def load(files, specs, backend):
        assert isinstance(backend, AsWritten)
        loaded.update(list(files))
        return load_engines(files, specs, backend)

    monkeypatch.setattr("bolid_export.verify.load_engines", load)
    target = Target(folder=tmp_path / "bundle", precision=precision, licence="none")
    bundle = export_bundle(open_source(model_folder), target)
    assert (loaded["image_encoder"], loaded["denoiser"]) == (1, 1)
    effort, loop = bundle.manifest.verification["effort"], bundle.manifest.verification["loop"]
    assert effort["reduced"]
    assert (loop["pictures"], loop["steps"]) == (1, 4)
    assert bundle.manifest.graphs["denoiser"].data == ("denoiser.onnx.data",)
    assert "verified with 1 picture" in (bundle.path / "report.md").read_text()


class Affine(Graph):
    def run(self, pixels):
        return (self.network(pixels),)


@pytest.fixture
def affine(sizes):
    """100 x 100 weights that float16 holds exactly, and as many that it does not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(100, 100), nn.GELU(), nn.Linear(100, 100))
    network[0].weight.data = network[0].weight.data.half().float()
    pixels, latents = (TensorSpec(name=n, dtype="float32", shape=("batch", 100)) for n in ("pixels", "latents"))
    spec = GraphSpec(name="affine", inputs=(pixels,), outputs=(latents,))
    return Affine(spec, network).eval().requires_grad_(False)


def test_streamed_weights_compute_the_same(affine, sizes, tmp_path):
    units = {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor}
    streamed = stream.stream_onnx(stream.trace_apart(affine, **units), affine.parameters(), tmp_path)
    inputs = {"pixels": np.random.default_rng(0).standard_normal((3, 100), np.float32)}
    expected = affine(torch.from_numpy(inputs["pixels"]))[0].numpy()
    found = load_engines({"affine": streamed}, {"affine": affine.spec})["affine"].run(inputs)["latents"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_streamed_weights_are_the_embedded_ones(affine, sizes, tmp_path):
    units = {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor}
    folders = [tmp_path / name for name in ("streamed", "embedded")]
    for folder in folders:
        folder.mkdir()
    writers = (stream.stream_onnx, stream.write_onnx)
    traces = [stream.trace_apart(affine, **units) for _ in folders]
    models = [
        onnx.load(write(traced, affine.parameters(), folder))
        for write, traced, folder in zip(writers, traces, folders, strict=True)
    ]
    weights = [{t.name: numpy_helper.to_array(t) for t in model.graph.initializer} for model in models]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], array) for name, array in weights[1].items())
    assert [node.op_type for node in models[0].graph.node] == [node.op_type for node in models[1].graph.node]
    assert sorted(str(array.dtype) for array in weights[0].values() if array.size == 10_000) == ["float16", "float32"]
    assert (folders[0] / "affine.onnx.data").stat().st_size < 70_000
    assert not (folders[1] / "affine.onnx.data").exists()


def test_weights_at_rest_are_traced_as_float32_ones(sizes, tmp_path):
    """Stand-ins for large weights, also where a transposed one is folded; a float16 network makes the same graph."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(300, 400, bias=False), nn.GELU(), nn.Linear(400, 300)).half().float()
    pixels, latents = (TensorSpec(name=n, dtype="float32", shape=("batch", 300)) for n in ("pixels", "latents"))
    spec = GraphSpec(name="affine", inputs=(pixels,), outputs=(latents,))
    graph = Affine(spec, network).eval().requires_grad_(False)
    inputs = {"pixels": np.random.default_rng(0).standard_normal((3, 300), np.float32)}
    expected = graph(torch.from_numpy(inputs["pixels"]))[0].numpy()
    contents = []
    for folder, at_rest in ((tmp_path / "warm", torch.float32), (tmp_path / "rest", torch.float16)):
        folder.mkdir()
        network.to(at_rest)
        before = [parameter.data_ptr() for parameter in graph.parameters()]
        traced = stream.trace_apart(graph, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
        file = stream.write_onnx(traced, graph.parameters(), folder)
        assert [parameter.data_ptr() for parameter in graph.parameters()] == before
        assert {parameter.dtype for parameter in graph.parameters()} == {at_rest}
        found = load_engines({"affine": file}, {"affine": spec})["affine"].run(inputs)["latents"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    # 2 bytes a weight
    assert len(contents[0]) < 2 * 240_000 + 10_000


def wait_until_begun(ahead, name):
    while ahead._process.poll() is None and not ahead.begun(name):
        time.sleep(0.1)


@pytest.fixture
def decoder(large_source, sizes):
    return bind_graphs(large_source.checkpoint, sizes)["vae_decoder"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_decoder", "image_encoder"])
def test_a_trace_in_another_process_is_the_same(large_source, sizes, tmp_path, name):
    """The image encoder is transformers', which keeps account of its models by process."""
    graph = bind_graphs(large_source.checkpoint, sizes)[name]
    units = {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor}
    with TraceAhead({name: graph}, **units) as ahead:
        wait_until_begun(ahead, name)
        elsewhere = ahead.result(name)
    here = stream.trace_apart(graph, **units)
    contents = []
    for place, traced in (("here", here), ("elsewhere", elsewhere)):
        (tmp_path / place).mkdir()
        contents.append(stream.write_onnx(traced, graph.parameters(), tmp_path / place).read_bytes())
    assert contents[0] == contents[1]


def test_a_trace_that_failed_elsewhere_is_a_warning(decoder, sizes):
    with TraceAhead({"vae_decoder": decoder}, size_step=sizes.size_step, vae_factor="none") as ahead:
        wait_until_begun(ahead, "vae_decoder")
        with pytest.warns(UserWarning, match="ended with 1; it is done here"):
            assert ahead.result("vae_decoder") is None


def test_a_process_that_never_began_is_a_warning(affine, sizes):
    """It knows nothing of classes that tests define."""
    with TraceAhead({"affine": affine}, size_step=sizes.size_step, vae_factor=sizes.vae_factor) as ahead:
        ahead._process.wait()
        with pytest.warns(UserWarning, match="ended with 1; it is done here"):
            assert ahead.result("affine") is None


def test_what_nobody_has_begun_is_traced_here_and_only_here(decoder, sizes):
    with TraceAhead({"vae_decoder": decoder}, size_step=sizes.size_step, vae_factor=sizes.vae_factor) as ahead:
        # that process is not there before it has imported PyTorch
        assert ahead.result("vae_decoder") is None
        assert ahead.result("another") is None
        assert ahead._process.wait() == 0
        assert not list(ahead._folder.glob("*.result"))


def test_pytorch_leaves_the_process_a_core_while_it_runs(affine, sizes, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    threads = [4]
    with TraceAhead({"affine": affine}, size_step=sizes.size_step, vae_factor=sizes.vae_factor) as ahead:
        with ahead.sharing():
            affine(torch.zeros(1, 100))
            assert threads == [4, 3]
            ahead._process.wait()
            affine(torch.zeros(1, 100))
            assert threads == [4, 3, 4]
        ahead._process.poll = lambda: None
        with ahead.sharing():
            affine(torch.zeros(1, 100))
        affine(torch.zeros(1, 100))
        assert threads == [4, 3, 4, 4, 3, 4]


EXPORTER = """
import subprocess, sys, time
worker = subprocess.Popen([*sys.argv[1:]], stdin=subprocess.PIPE)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_exporter_leaves_no_tracer(tmp_path):
    """The tracer waits for a request that nobody writes."""
    folder = tmp_path / "trace"
    folder.mkdir()
    os.mkfifo(request_file(folder))
    command = [sys.executable, "-c", EXPORTER, *WORKER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as exporter:
        tracer = int(exporter.stdout.readline())
        exporter.kill()
    with suppress(OSError):
        for _ in range(600):
            os.kill(tracer, 0)
            time.sleep(0.1)
    assert not folder.exists()


def test_a_tracer_that_comes_too_late_for_its_request_lets_the_rest_be_cleared_up(tmp_path, monkeypatch):
    cleared = []

    def clear_up(folder):
        time.sleep(0.2)
        cleared.append(folder)

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(worker, "_end_with_exporter", clear_up)
    with pytest.raises(FileNotFoundError):
        worker.main(tmp_path)
    assert cleared == [tmp_path]


def test_what_was_answered_is_neither_run_nor_loaded_again(affine):
    loads = []

    def load():
        loads.append(TorchEngine(affine))
        return loads[-1]

    one, other = ({"pixels": np.full((1, 100), value, np.float32)} for value in (1, 2))
    engine = Remembered(affine.spec, load)
    answers = [engine.run(inputs)["latents"] for inputs in (one, other, one)]
    assert [len(loaded.records) for loaded in loads] == [1, 1]
    np.testing.assert_array_equal(answers[0], answers[2])
    assert not np.array_equal(answers[0], answers[1])
    again = Remembered(affine.spec, load, engine.records)
    np.testing.assert_array_equal(again.run(dict(other))["latents"], answers[1])
    assert len(loads) == 2


def test_an_answer_is_not_a_part_of_what_its_engine_allocated(affine):
    allocated = np.zeros(1 << 20, np.float32)
    engine = Mock(run=lambda inputs: {"latents": allocated[:100]})
    answer = Remembered(affine.spec, lambda: engine).run({"pixels": np.zeros((1, 100), np.float32)})["latents"]
    assert not np.shares_memory(answer, allocated)


def test_a_graph_is_run_as_it_is_written(affine, sizes, tmp_path, monkeypatch):
    file = stream.to_onnx(affine, tmp_path, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
    inputs = {"pixels": np.random.default_rng(0).standard_normal((3, 100), np.float32)}
    runs = {}
    for backend in (AsWritten(), open_backend("onnxruntime", "cpu")):
        written = tmp_path / "as_loaded.onnx"
        options = backend._options()
        options.optimized_model_filepath = str(written)
        monkeypatch.setattr(backend, "_options", lambda options=options: options)
        answer = backend.load(file, affine.spec).run(inputs)["latents"]
        runs[type(backend)] = answer, [node.op_type for node in onnx.load(written).graph.node]
    (answer, nodes), (optimised, fewer) = runs.values()
    assert nodes == [node.op_type for node in onnx.load(file).graph.node]
    assert len(fewer) < len(nodes)
    np.testing.assert_allclose(answer, optimised, atol=1e-5)


@pytest.mark.parametrize(("precision", "few_runs"), [("fp16", True), ("fp32", True), ("int8", True), ("fp16", False)])
def test_int8_and_what_runs_often_is_optimised(precision, few_runs):
    backend = open_runtime(ONNX_RUNTIME, precision, few_runs=few_runs).backend
    assert isinstance(backend, AsWritten) == (few_runs and precision != "int8")


def test_one_network_at_a_time_is_float32_and_comes_back_unchanged(large_source, sizes):
    checkpoint = copy.deepcopy(large_source.checkpoint)
    graphs = bind_graphs(checkpoint, sizes)
    before = {name: tensor.clone() for name, tensor in checkpoint.unet.state_dict().items()}
    own = [p for name, p in checkpoint.unet.named_parameters() if ".processor." not in name]
    residency = Residency(graphs.values())
    residency.warm(graphs["denoiser"])
    assert {p.dtype for p in checkpoint.unet.parameters()} == {torch.float32}
    residency.warm(graphs["vae_decoder"])
    # adapters are small and stay as they came
    assert {p.dtype for p in own} == {torch.float16}
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.unet.state_dict().items())


def test_what_another_graph_needs_is_not_given_up(large_source, sizes):
    checkpoint = copy.deepcopy(large_source.checkpoint)
    graphs = bind_graphs(checkpoint, sizes)
    residency = Residency(graphs.values())
    residency.release(graphs["vae_decoder"])
    assert any(parameter.abs().sum() > 0 for parameter in checkpoint.vae.decoder.parameters())
    residency.release(graphs["vae_encoder"])
    assert all(parameter.abs().sum() == 0 for parameter in checkpoint.vae.parameters())
    # 2 bytes for each network's parameter are left, its shape says how large it was
    assert all(parameter.untyped_storage().nbytes() == 2 for parameter in checkpoint.vae.parameters())


def test_the_avatar_is_verified_in_full(graphs, sizes):
    full = choose_effort(graphs, sizes, pictures=2, steps=12)
    assert (full.pictures, full.steps, full.height, full.reduced) == (2, 12, sizes.native_height, False)
    larger = replace(sizes, native_height=1 << 20)
    assert choose_effort(graphs, larger, pictures=2, steps=12).reduced


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.GroupNorm(2, 8)]
)
def test_rounded_float32_is_float16(layer):
    """PyTorch's own float16 kernels round at other places: as far apart as two of their results may be."""
    torch.manual_seed(0)
    half = copy.deepcopy(layer).half()
    values = torch.randn(2, 8, 8, 8).half()
    with torch.no_grad(), HalfOnFloat32():
        found = half(values)
    with torch.no_grad():
        expected = half(values)
        exact = layer(values.float())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=4e-3)
    errors = [(answer.float() - exact).abs().max() for answer in (found, expected)]
    assert errors[0] <= 1.1 * errors[1] + exact.abs().max() * 2**-11


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}, {"attn_mask": torch.ones(6, 6).tril().bool()}])
def test_rounded_attention_is_attention(mask):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 6, 16).half()
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad(), HalfOnFloat32():
        found = attend(query, key, value, **mask)
    torch.testing.assert_close(
        found.float(), attend(query.float(), key.float(), value.float(), **mask), atol=3e-3, rtol=3e-3
    )


def test_attention_overflows_as_it_would_on_a_gpu():
    """Scores above 65504 are infinite in float16; PyTorch's fused attention keeps them in float32 and hides that."""
    query = torch.full((1, 1, 2, 64), 200.0).half()
    with torch.no_grad(), HalfOnFloat32():
        assert torch.nn.functional.scaled_dot_product_attention(query / 200, query / 200, query).isfinite().all()
        assert not torch.nn.functional.scaled_dot_product_attention(query, query, query).isfinite().all()
