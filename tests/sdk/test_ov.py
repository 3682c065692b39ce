"""OpenVINO against ONNX Runtime on the embedded bundle, and the promises of the Engine and Loop protocols."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from bolid_sdk.backends import open_backend, ov, ov_compiler
from bolid_sdk.backends.ov import PIXEL_GRAPHS
from bolid_sdk.bundle import open_bundle
from bolid_sdk.errors import BackendError, BundleError, InputError
from bolid_sdk.generator import Generator

ROOT = Path(__file__).parents[2]
MIN_COSINE = {True: 0.999, False: 0.99999}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def backend(cache):
    return open_backend("openvino", threads=1)


def load(backend, bundle, name):
    entry = bundle.manifest.graphs[name]
    return backend.load(bundle.file(entry.file), entry.spec)


def latents(batch=1, side=4, seed=0):
    return {"latents": np.random.default_rng(seed).standard_normal((batch, 4, side, side), np.float32)}


def golden(bundle, name):
    with np.load(bundle.file(bundle.manifest.golden)) as arrays:
        return {key.split("/")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}/inputs/")}


@pytest.mark.parametrize("name", sorted(open_bundle().manifest.graphs))
def test_every_graph_agrees_with_onnxruntime(backend, name):
    bundle = open_bundle()
    inputs = golden(bundle, name)
    expected = load(open_backend("onnxruntime", threads=1), bundle, name).run(inputs)
    for key, value in load(backend, bundle, name).run(inputs).items():
        one, other = value.astype(float).ravel(), expected[key].astype(float).ravel()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) >= MIN_COSINE[name in PIXEL_GRAPHS]


@pytest.mark.parametrize(("batch", "side"), [(1, 4), (2, 4), (1, 8), (2, 8)])
def test_sizes_and_batches(backend, tiny_bundle, batch, side):
    inputs = latents(batch, side)
    expected = load(open_backend("onnxruntime"), tiny_bundle, "vae_decoder").run(inputs)["pixels"]
    found = load(backend, tiny_bundle, "vae_decoder").run(inputs)["pixels"]
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_whole_picture_agrees_with_onnxruntime():
    """Twelve guided steps, in bfloat16 where the processor has it: 50 dB were measured."""
    pictures = []
    for name in ("onnxruntime", "openvino"):
        generator = Generator(backend=name, threads=1)
        result = generator(ROOT / "examples" / "ref.png", "standing on a beach at sunset", seed=7)
        pictures.append(np.asarray(result.image, float))
    error = np.square(pictures[0] - pictures[1]).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40


def test_the_samplers_update_stays_float32(backend):
    """With coefficients that keep the sample, it comes back to the last bit, whatever the UNet computes in."""
    bundle = open_bundle()
    inputs = golden(bundle, "denoiser")
    inputs["coefficients"] = np.array([1, 0, 0, 1, 0, 0, 0], np.float32)
    inputs["sample"] = np.random.default_rng(0).standard_normal(inputs["sample"].shape, np.float32)
    outputs = load(backend, bundle, "denoiser").run(inputs)
    np.testing.assert_array_equal(outputs["next_sample"], inputs["sample"])


def test_threads_give_the_picture_of_one_alone(tiny_bundle, reference):
    generator = Generator(tiny_bundle.path, backend="openvino", threads=1)
    alone = np.asarray(generator(reference, "walking", seed=3).image)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: generator(reference, "walking", seed=3).image, range(8)))
    assert all(np.array_equal(alone, image) for image in results)


def test_a_size_is_compiled_once_for_all_threads(backend, tiny_bundle):
    engine = load(backend, tiny_bundle, "vae_decoder")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: engine.run(latents(seed=seed)), range(8)))
    assert len(engine._compiled) == 1


def test_outputs_of_a_loop_keep_their_values(backend, tiny_bundle):
    loop = load(backend, tiny_bundle, "vae_decoder").bind({})
    outputs = [loop.run(latents(seed=seed))["pixels"] for seed in range(4)]
    before = [output.numpy() for output in outputs]
    loop.run(latents(seed=9))
    assert all(np.array_equal(output.numpy(), value) for output, value in zip(outputs, before, strict=True))


def test_compiled_graphs_are_kept_and_damage_is_survived(cache, tiny_bundle):
    expected = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents())["pixels"]
    blobs = list(cache.rglob("*.blob"))
    assert blobs
    for content in (b"", b"noise", blobs[0].read_bytes()[:100]):
        blobs[0].write_bytes(content)
        found = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents())["pixels"]
        assert np.array_equal(found, expected)


def test_the_second_start_compiles_nothing(tiny_bundle, monkeypatch):
    expected = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents())["pixels"]
    monkeypatch.setattr(ov_compiler, "compile_static", None)
    assert np.array_equal(load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents())["pixels"], expected)


def refuse_to_compile(*arguments):
    raise AssertionError("compiled again")


def test_the_second_start_reads_back_every_graph_of_the_embedded_bundle(monkeypatch):
    """Each blob ends in other bytes, and OpenVINO has refused some with what follows them."""
    picture = {"seed": 7, "pose": None}
    expected = np.asarray(Generator(backend="openvino")(ROOT / "examples" / "ref.png", "on a beach", **picture).image)
    monkeypatch.setattr(ov_compiler.OvCompiler, "_write", refuse_to_compile)
    again = Generator(backend="openvino")(ROOT / "examples" / "ref.png", "on a beach", **picture)
    assert np.array_equal(np.asarray(again.image), expected)


def test_changed_weights_are_another_graph(tiny_bundle, tmp_path):
    """Beside equal names, sizes and shapes."""
    entry = tiny_bundle.manifest.graphs["vae_decoder"]
    model = onnx.load(tiny_bundle.file(entry.file))
    answers = []
    for factor in (1, 2):
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4 and tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.CopyFrom(onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, tmp_path / "graph.onnx")
        answers.append(open_backend("openvino").load(tmp_path / "graph.onnx", entry.spec).run(latents())["pixels"])
    assert not np.array_equal(*answers)


def test_a_large_graph_is_compiled_by_another_process(tiny_bundle, monkeypatch):
    expected = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents(batch=2))["pixels"]
    monkeypatch.setattr(ov_compiler, "COMPILED_ELSEWHERE", 0)
    monkeypatch.setattr(ov_compiler, "compile_static", None)
    # another size, so that the cache has nothing for it
    found = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents(batch=1))["pixels"]
    single = {"latents": latents(batch=2)["latents"][:1]}
    assert found.shape == (1, 3, 32, 32)
    again = load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(single)["pixels"]
    np.testing.assert_allclose(again[0], expected[0], atol=0.02)


def test_a_failing_process_is_an_error_with_its_reason(tiny_bundle, monkeypatch):
    monkeypatch.setattr(ov_compiler, "COMPILED_ELSEWHERE", 0)
    engine = load(open_backend("openvino"), tiny_bundle, "vae_decoder")
    with pytest.raises(BackendError, match="cannot compile vae_decoder"):
        engine.run({"latents": np.zeros((1, 5, 4, 4), np.float32)})


def test_another_graph_than_promised_is_refused_by_that_process_too(cache, tiny_bundle, monkeypatch):
    entry = tiny_bundle.manifest.graphs["vae_decoder"]
    other = tiny_bundle.file(tiny_bundle.manifest.graphs["vae_encoder"].file)
    monkeypatch.setattr(ov_compiler, "COMPILED_ELSEWHERE", 0)
    with pytest.raises(BundleError, match=r"vae_encoder\.onnx has the inputs \['pixels'\].*export the bundle again"):
        open_backend("openvino").load(other, entry.spec).run({"latents": np.zeros((1, 4, 4, 4), np.float32)})
    assert not list(cache.rglob("*.blob"))


def test_a_large_image_encoder_does_not_stay(tiny_bundle, monkeypatch):
    monkeypatch.setattr(ov, "LARGE", 0)
    monkeypatch.setattr(ov, "ONCE_A_PERSON", {"vae_decoder"})
    engine = load(open_backend("openvino"), tiny_bundle, "vae_decoder")
    first = engine.run(latents())["pixels"]
    assert not engine._compiled
    assert np.array_equal(engine.run(latents())["pixels"], first)


def test_the_cache_keeps_its_limit(cache, tiny_bundle, monkeypatch):
    sizes = [(1, 4), (1, 8), (2, 4)]
    for batch, side in sizes[:1]:
        load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents(batch, side))
    (first,) = cache.rglob("*.blob")
    monkeypatch.setenv("BOLID_CACHE_LIMIT", str(int(2.5 * first.stat().st_size)))
    # clocks of file systems tick every few milliseconds
    later = first.stat().st_mtime + 60
    for batch, side in sizes[1:]:
        os.utime(first, (later, later))
        load(open_backend("openvino"), tiny_bundle, "vae_decoder").run(latents(batch, side))
    kept = list(cache.rglob("*.blob"))
    assert len(kept) == 2
    assert first in kept  # the others are older


@pytest.mark.parametrize("text", ["many", "-5", "5T", "1.5G"])
def test_a_limit_that_is_no_size(text, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_LIMIT", text)
    with pytest.raises(InputError, match="BOLID_CACHE_LIMIT"):
        open_backend("openvino")


def test_precision_is_the_users_choice(tiny_bundle, monkeypatch):
    monkeypatch.setenv("BOLID_PRECISION", "f32")
    backend = open_backend("openvino")
    assert backend.description.endswith("float32")
    expected = load(open_backend("onnxruntime"), tiny_bundle, "vae_decoder").run(latents())["pixels"]
    np.testing.assert_allclose(load(backend, tiny_bundle, "vae_decoder").run(latents())["pixels"], expected, atol=1e-4)
    monkeypatch.setenv("BOLID_PRECISION", "fp4")
    with pytest.raises(BackendError, match="bf16 or f32"):
        open_backend("openvino")


def test_an_unwritable_cache_is_a_notice(tmp_path, tiny_bundle, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "file"))
    backend = open_backend("openvino")
    assert "not cached" in backend.notices[0]
    assert load(backend, tiny_bundle, "vae_decoder").run(latents())["pixels"].shape == (1, 3, 32, 32)


def test_wrong_inputs(backend, tiny_bundle):
    engine = load(backend, tiny_bundle, "vae_decoder")
    with pytest.raises(InputError, match="expected"):
        engine.run({"pixels": np.zeros((1, 4, 4, 4), np.float32)})
    with pytest.raises(BackendError, match="vae_decoder"):
        engine.run({"latents": np.zeros((1, 5, 4, 4), np.float32)})
    with pytest.raises(BackendError, match="vae_decoder"):
        engine.run({"latents": np.zeros((1, 4, 4, 4), np.int64)})


def test_damage_and_strange_devices(backend, tiny_bundle, tmp_path):
    entry = tiny_bundle.manifest.graphs["vae_decoder"]
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    with pytest.raises(BundleError, match=r"noise\.onnx"):
        backend.load(tmp_path / "noise.onnx", entry.spec)
    with pytest.raises(BackendError, match="CPU"):
        open_backend("openvino", "cuda")
