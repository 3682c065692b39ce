"""The TensorRT backend on an imaginary GPU (conftest.py): what it computes, and what it asks of the device and when."""

import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bolid_sdk.backends import open_backend
from bolid_sdk.errors import BackendError, BundleError, InputError
from bolid_sdk.generator import Generator
from bolid_sdk.graphs import load_graph
from bolid_sdk.sampling import Sampling

BACKENDS = ("tensorrt", "tensorrt-rtx")


def load(bundle, name, backend="tensorrt"):
    return load_graph(bundle, open_backend(backend), name)


def denoiser_inputs(bundle, batch=1, side=8, branches=2, seed=0):
    """Random ones, split into what a loop keeps and what it is given each step."""
    generator = np.random.default_rng(seed)
    axes = {"batch": batch, "guided_batch": batch * branches}
    axes |= dict.fromkeys(("latent_height", "latent_width"), side)
    axes |= {f"{name}/2": side // 2 for name in ("latent_height", "latent_width")}
    spec = bundle.manifest.graphs["denoiser"].spec
    shapes = {t.name: [axes.get(axis, axis) for axis in t.shape] for t in spec.inputs}
    values = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    steps = ("sample", "previous_x0", "timestep", "coefficients")
    return {n: v for n, v in values.items() if n not in steps}, {n: values[n] for n in steps}


def step(loop, inputs, outputs=None):
    """One of a loop's steps: the sample goes from output to input."""
    carried = {"sample": outputs["next_sample"], "previous_x0": outputs["x0"]} if outputs else {}
    return loop.run({**inputs, **carried})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"sampling": Sampling(guidance=1.0, steps=6, sampler="lcm")}])
def test_pictures_are_those_of_onnxruntime(machine, engine_bundle, reference, backend, options):
    expected = Generator(engine_bundle.path, backend="onnxruntime", threads=1)(reference, "walking", seed=3, **options)
    generator = Generator(engine_bundle.path, backend=backend)
    for _ in range(2):  # the second picture repeats the graph that the first one captured
        np.testing.assert_array_equal(generator(reference, "walking", seed=3, **options).image, expected.image)
    assert f"{backend} 10.16.1.11 on cuda:0 (Imaginary GPU, compute capability 8.9)" in generator.backend


def test_batches_sizes_and_scales_need_no_new_engine(machine, engine_bundle, reference):
    pictures = []
    for backend in ("onnxruntime", "tensorrt"):
        generator = Generator(engine_bundle.path, backend=backend)
        person = generator.identify(reference)
        calls = [{}, {"identity_scale": 0.3}, {"width": 96}, {"image_prompt": reference, "image_scale": 0.5}, {}]
        results = [generator.batch([(person, "walking"), (person, "sitting")], seed=5, **call) for call in calls]
        pictures.append([np.asarray(result.image, int) for pair in results for result in pair])
    # no vae_encoder, and without caching no denoiser_shallow
    assert len(machine.tensorrt.deserialised) == len(engine_bundle.manifest.graphs) - 2
    for found, expected in zip(*reversed(pictures), strict=True):
        assert np.abs(found - expected).max() <= 1  # ONNX Runtime rounds differently with several threads


def test_a_step_of_the_loop_neither_allocates_nor_moves_what_stays(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    loop, outputs = load(engine_bundle, "denoiser").bind(constants), None
    for _ in range(4):
        outputs = step(loop, inputs, outputs)
    before = len(machine.cuda.calls)
    for _ in range(5):
        outputs = step(loop, {name: inputs[name] for name in ("timestep", "coefficients")}, outputs)
    calls = machine.cuda.calls[before:]
    assert Counter(call.name for call in calls) == {"copy": 5 * 7, "synchronize": 5, "launch": 5}
    up = [call.size for call in calls if call.kind == "HostToDevice"]
    assert up == 5 * [inputs["timestep"].nbytes, inputs["coefficients"].nbytes]
    assert not any(call.kind == "DeviceToHost" for call in calls)
    # sample and previous_x0 to the addresses of the captured graph, both outputs and the deep feature away from them
    moved = Counter(call.size for call in calls if call.kind == "DeviceToDevice")
    deep = 4 * int(np.prod(outputs["deep_feature"].shape))
    assert moved == {inputs["sample"].nbytes: 5 * 4, deep: 5}


def test_an_output_that_nobody_wants_is_not_moved(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    engine = load(engine_bundle, "denoiser")
    expected = engine.bind(constants).run(inputs)
    found = engine.bind(constants, ["next_sample", "x0"]).run(inputs)
    deep = expected["deep_feature"]
    moved = [call.size for call in machine.cuda.calls if call.kind == "DeviceToDevice"]
    assert moved.count(4 * int(np.prod(deep.shape))) == 1  # by the first loop
    assert set(expected) - set(found) == {"deep_feature"}
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy(), expected[name].numpy())


def test_one_allocation_for_each_tensor_of_a_shape(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    loop = load(engine_bundle, "denoiser").bind(constants)
    outputs = None
    for _ in range(10):
        outputs = step(loop, inputs, outputs)
    tensors = len(constants) + len(inputs) + len(outputs)
    # besides: the activations, and copies of every output, of this step and of the last one
    assert machine.cuda.count("malloc") == tensors + 1 + 2 * len(outputs)


def test_constants_are_uploaded_once(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    loop = load(engine_bundle, "denoiser").bind(constants)
    for _ in range(6):
        loop.run(inputs)
    uploads = Counter(call.size for call in machine.cuda.calls if call.kind == "HostToDevice")
    states = constants["encoder_hidden_states"].nbytes
    assert uploads[states] == 1
    assert sum(uploads.values()) == len(constants) + 6 * len(inputs)


def test_a_shape_is_warmed_up_captured_once_and_then_repeated(machine, engine_bundle):
    engine = load(engine_bundle, "denoiser")
    for _ in range(2):  # two pictures
        for side in (8, 12, 8):
            constants, inputs = denoiser_inputs(engine_bundle, side=side)
            loop = engine.bind(constants)
            for _ in range(3):
                loop.run(inputs)
            del loop
    names = [call.name for call in machine.cuda.calls if call.name in ("execute", "capture", "launch")]
    # the larger one needs more memory for activations, which ends the first one's graph
    warm_up, again = ["execute", "capture", "execute", "launch", "launch"], ["launch"] * 3
    assert names == [*warm_up, *warm_up, *warm_up, *again, *again, *again]


def test_nothing_runs_on_the_default_stream(machine, engine_bundle, reference):
    Generator(engine_bundle.path, backend="tensorrt")(reference, "walking", seed=3)
    used = {call.stream for call in machine.cuda.calls if call.name not in ("malloc", "free")}
    assert used
    assert 0 not in used


def test_rtx_captures_by_itself(machine, engine_bundle, monkeypatch):
    for switch, expected in (("1", "WHOLE_GRAPH_CAPTURE"), ("0", "DISABLED")):
        monkeypatch.setenv("BOLID_CUDA_GRAPHS", switch)
        constants, inputs = denoiser_inputs(engine_bundle)
        loop = load(engine_bundle, "denoiser", "tensorrt-rtx").bind(constants)
        for _ in range(3):
            loop.run(inputs)
        assert machine.rtx.engines[-1].contexts[0].config.cuda_graph_strategy.name == expected
        assert machine.cuda.count("capture") == 0


def test_graphs_can_be_switched_off(machine, engine_bundle, monkeypatch):
    monkeypatch.setenv("BOLID_CUDA_GRAPHS", "0")
    constants, inputs = denoiser_inputs(engine_bundle)
    loop = load(engine_bundle, "denoiser").bind(constants)
    for _ in range(3):
        loop.run(inputs)
    assert (machine.cuda.count("execute"), machine.cuda.count("launch")) == (3, 0)


def test_a_graph_that_cannot_be_captured_is_a_notice(machine, engine_bundle, reference):
    expected = Generator(engine_bundle.path, backend="onnxruntime", threads=1)(reference, "walking", seed=3)
    machine.cuda.breaks_captures = True
    result = Generator(engine_bundle.path, backend="tensorrt")(reference, "walking", seed=3)
    np.testing.assert_array_equal(result.image, expected.image)
    backend = open_backend("tensorrt")
    constants, inputs = denoiser_inputs(engine_bundle)
    loop = load_graph(engine_bundle, backend, "denoiser").bind(constants)
    for _ in range(4):
        loop.run(inputs)
    (notice,) = backend.notices
    assert "CUDA graphs of tensorrt/denoiser.engine cannot be captured" in notice
    assert "cudaErrorCaptureInvalid (capture failed)" in notice


def test_outputs_keep_their_values(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    loop = load(engine_bundle, "denoiser").bind(constants)
    kept, values = [], []
    for seed in range(5):
        sample = denoiser_inputs(engine_bundle, seed=seed)[1]["sample"]
        kept.append(loop.run({**inputs, "sample": sample}))
        values.append(kept[-1]["x0"].numpy())
    assert all(np.array_equal(outputs["x0"].numpy(), value) for outputs, value in zip(kept, values, strict=True))
    assert not np.array_equal(values[0], values[1])


def test_outputs_outlive_their_loop_and_go_into_others(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    engine = load(engine_bundle, "denoiser")
    one, other = engine.bind(constants), engine.bind(constants)
    first = one.run(inputs)
    found = other.run({**inputs, "sample": first["next_sample"]})["x0"].numpy()  # whose stream has not been waited for
    del one
    gc.collect()
    expected = engine.run({**constants, **inputs, "sample": first["next_sample"].numpy()})
    np.testing.assert_array_equal(found, expected["x0"])


def test_threads_share_an_engine(machine, engine_bundle):
    engine = load(engine_bundle, "denoiser")
    given = [{k: v for part in denoiser_inputs(engine_bundle, seed=seed) for k, v in part.items()} for seed in range(8)]
    alone = [engine.run(inputs)["x0"] for inputs in given]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: engine.run(inputs)["x0"], 4 * given))
    assert all(np.array_equal(found, alone[i % 8]) for i, found in enumerate(together))


def test_memory_is_not_freed_while_something_is_captured(machine, engine_bundle):
    """As the garbage collector may want to: it would end the capture."""
    backend = open_backend("tensorrt")
    stream, unwanted = backend.device.create_stream(), [backend.device.allocate(8)]
    stream.capture(unwanted.clear)
    assert machine.cuda.blocks == {}


def test_what_others_read_does_not_get_into_a_capture(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    output = load(engine_bundle, "denoiser").bind(constants).run(inputs)["x0"]
    expected = output.numpy()
    with ThreadPoolExecutor(1) as pool:
        reading = []

        def capture():
            reading.append(pool.submit(output.numpy))
            with pytest.raises(TimeoutError):  # it waits for the capture's end
                reading[0].result(timeout=0.2)

        output.stream.capture(capture)
        np.testing.assert_array_equal(reading[0].result(timeout=10), expected)


def test_memory_is_given_back(machine, engine_bundle):
    constants, inputs = denoiser_inputs(engine_bundle)
    engine = load(engine_bundle, "denoiser")
    outputs = engine.bind(constants).run(inputs)
    del engine, outputs
    machine.tensorrt.engines.clear()
    gc.collect()
    assert machine.cuda.blocks == {}


def test_a_missing_driver_is_found_before_the_library_is_asked(machine, engine_bundle):
    machine.cuda.error = 35
    with pytest.raises(BackendError, match=r"no CUDA device works: cudaErrorInsufficientDriver \(CUDA driver"):
        open_backend("tensorrt")
    assert machine.tensorrt.runtimes == 0


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:1", "there is no CUDA device 1; there are 1"), ("cpu", "NVIDIA GPUs, not on 'cpu'"), ("cuda:x", "not on")],
)
def test_wrong_devices(machine, device, message):
    with pytest.raises(BackendError, match=message):
        open_backend("tensorrt", device)


def test_no_device_at_all(machine):
    machine.cuda.devices = 0
    with pytest.raises(BackendError, match="the driver finds none; install or update"):
        open_backend("tensorrt-rtx", "cuda")


def test_a_full_device_is_one_clear_error(machine, engine_bundle):
    engine = load(engine_bundle, "denoiser")
    machine.cuda.memory = 10_000
    constants, inputs = denoiser_inputs(engine_bundle)
    with pytest.raises(BackendError, match=r"cudaErrorMemoryAllocation \(out of memory\)"):
        engine.run({**constants, **inputs})
    machine.cuda.memory = 1 << 30
    assert np.isfinite(engine.run({**constants, **inputs})["x0"]).all()


def test_another_gpu_is_told_what_to_do(machine, engine_bundle):
    machine.cuda.capability = "12.0"
    command = "bolid-export --backend tensorrt --compute-capability 12.0"
    with pytest.raises(BundleError, match=rf"built for compute capability 8.9, this GPU has 12.0: .*{command}"):
        load(engine_bundle, "denoiser")
    assert machine.tensorrt.deserialised == []


def test_another_version_is_told_what_to_do(machine, engine_bundle):
    machine.tensorrt.__version__ = "11.4.0.106"
    with pytest.raises(BundleError, match=r"was built by tensorrt 10.16.1.11, here is tensorrt 11.4.0.106: install"):
        load(engine_bundle, "denoiser")
    assert machine.tensorrt.deserialised == []


@pytest.mark.parametrize(
    ("version", "capability", "loads"),
    [("10.16.1.11", "8.0", True), ("10.20.0", "12.1", True), ("10.9.0", "8.9", False), ("11.0", "8.9", False)]
    + [("10.16.1.11", "7.5", False)],
)
def test_compatible_engines(machine, make_engine_bundle, version, capability, loads):
    bundle = make_engine_bundle("tensorrt", runtime="tensorrt 10.16.1.11+", compute_capabilities=("8.0+",))
    machine.tensorrt.__version__, machine.cuda.capability = version, capability
    if loads:
        load(bundle, "vae_decoder")
    else:
        with pytest.raises(BundleError, match="was built"):
            load(bundle, "vae_decoder")


def test_a_tampered_engine_is_never_deserialised(machine, make_engine_bundle):
    bundle = make_engine_bundle("tensorrt")
    path = bundle.path / "tensorrt" / "denoiser.engine"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"changed after export and is not loaded"):
        load(bundle, "denoiser")
    path.unlink()
    with pytest.raises(BundleError, match=r"denoiser.engine cannot be read"):
        load(bundle, "denoiser")
    assert machine.tensorrt.deserialised == []


def test_what_the_library_refuses_is_quoted(machine, make_engine_bundle, tmp_path):
    (tmp_path / "noise").write_bytes(b"noise")
    bundle = make_engine_bundle("tensorrt", "tensorrt-rtx", files={"vae_decoder": tmp_path / "noise"})
    with pytest.raises(BundleError, match=r"vae_decoder.engine cannot be loaded by tensorrt .*: not an engine"):
        load(bundle, "vae_decoder")
    machine.rtx.validity = machine.rtx.EngineValidity.INVALID
    with pytest.raises(BundleError, match=r"cannot run on cuda:0 .*: UNSUPPORTED_CC, OLD; export the bundle again"):
        load(bundle, "vae_decoder", "tensorrt-rtx")


def test_an_engine_of_another_graph_is_refused(machine, make_engine_bundle, tiny_files):
    bundle = make_engine_bundle("tensorrt", files={"vae_decoder": tiny_files["vae_encoder.onnx"]})
    with pytest.raises(BundleError, match=r"has inputs pixels float32; the manifest promises latents float32"):
        load(bundle, "vae_decoder")


def test_a_bundle_without_engines_is_told_what_to_do(machine, tiny_bundle):
    with pytest.raises(BundleError, match=r"no tensorrt engine of denoiser: .*--compute-capability 8.9, or use"):
        load(tiny_bundle, "denoiser")


def test_shapes_beyond_what_was_built(machine, engine_bundle):
    engine = load(engine_bundle, "vae_decoder")
    message = r"built for latents from \[1, 4, 8, 8\] to \[4, 4, 12, 12\], it was given \[5, 4, 8, 8\]: .*max_batch"
    with pytest.raises(InputError, match=message):
        engine.run({"latents": np.zeros((5, 4, 8, 8), np.float32)})
    with pytest.raises(InputError, match=r"was given the inputs \['pixels'\]; expected \['latents'\]"):
        engine.run({"pixels": np.zeros((1, 4, 8, 8), np.float32)})


def test_auto_prefers_the_engines_that_the_bundle_brings(machine, engine_bundle, make_engine_bundle, tiny_bundle):
    assert Generator(engine_bundle.path).backend.startswith("tensorrt 10")
    assert Generator(make_engine_bundle("tensorrt-rtx").path).backend.startswith("tensorrt-rtx 10")
    assert Generator(engine_bundle.path, device="cpu").backend.startswith("onnxruntime")
    assert Generator(tiny_bundle.path).backend.startswith("onnxruntime")


def test_engines_that_cannot_be_used_are_a_notice(machine, make_engine_bundle, reference):
    machine.cuda.error = 35
    generator = Generator(make_engine_bundle("tensorrt").path)
    result = generator(reference, "walking", seed=3)
    assert generator.backend.startswith("onnxruntime")
    (warning,) = [notice.message for notice in result.warnings if notice.code == "device"]
    assert "the bundle's engines are not used, tensorrt: no CUDA device works: cudaErrorInsufficientDriver" in warning
    with pytest.raises(BackendError, match="no CUDA device works"):
        Generator(make_engine_bundle("tensorrt").path, backend="tensorrt")
