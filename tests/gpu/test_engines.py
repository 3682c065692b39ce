"""TensorRT and TensorRT-RTX on a real GPU, against ONNX Runtime on the CPU and what PyTorch gave at export."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from bolid_sdk.backends import open_backend
from bolid_sdk.bundle import write_bundle
from bolid_sdk.bundle_check import read_golden
from bolid_sdk.cli import doctor
from bolid_sdk.errors import BackendError, BundleError, InputError
from bolid_sdk.generator import Generator
from bolid_sdk.graphs import load_graph
from bolid_sdk.sampling import Sampling

pytestmark = pytest.mark.gpu

PROMPTS = ("standing on a beach at sunset", "walking", "sitting", "lying")

# Exports in fp16 are held to 35 dB against PyTorch (export/verify.py); the same goes for a GPU against the CPU.
MIN_PSNR = 35.0
# Float16 sums in another order: a batch may choose other kernels than a single picture.
MIN_PSNR_BATCH = 40.0


def test_every_graph_gives_what_was_stored_at_export(bundle, backend):
    """Expected: cosine >= 0.999 for each output of each of the nine graphs; measured on CPUs: 0.9999 and more."""
    outcome = CliRunner().invoke(doctor, [str(bundle.path), "--backend", backend, "--json"])
    report = json.loads(outcome.stdout)["bundle"]
    assert report["problems"] == []
    assert all(engine["matches"] for engine in report["engines"][backend].values())
    assert {name: graph["golden_cosine"] >= 0.999 for name, graph in report["graphs"].items()} == dict.fromkeys(
        bundle.manifest.graphs, True
    )


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m", "lcm"])
def test_a_whole_picture_is_that_of_the_cpu(generator, cpu, person, psnr, sampler):
    sampling = Sampling(sampler=sampler)
    found, expected = (g(person, PROMPTS[0], seed=7, sampling=sampling).image for g in (generator, cpu))
    assert psnr(found, expected) >= MIN_PSNR


def test_identify_sees_the_person_that_the_cpu_sees(generator, person, reference):
    found = generator.identify(reference)
    one, other = found.tokens.astype(float).ravel(), person.tokens.astype(float).ravel()
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) >= 0.999
    np.testing.assert_allclose(found.keypoints, person.keypoints, atol=0.02)


@pytest.mark.parametrize("graphs", [1, 0])
def test_captured_graphs_change_nothing(bundle, backend, person, generator, monkeypatch, graphs):
    """The same kernels in the same order: equal to the bit, in the first picture (warm-up, capture) and the third."""
    monkeypatch.setenv("BOLID_CUDA_GRAPHS", str(graphs))
    fresh = Generator(bundle.path, backend=backend, device="cuda:0")
    expected = np.asarray(generator(person, "walking", seed=3).image, int)
    pictures = [np.asarray(fresh(person, "walking", seed=3).image, int) for _ in range(3)]
    assert max(np.abs(picture - expected).max() for picture in pictures) <= 1
    assert fresh._backend.notices == ()  # nothing that could not be captured


def test_a_picture_does_not_depend_on_its_batch(generator, person, psnr):
    alone = [generator(person, prompt, seed=11 + i).image for i, prompt in enumerate(PROMPTS)]
    together = generator.batch([(person, prompt) for prompt in PROMPTS], seed=11)
    assert min(psnr(one, other.image) for one, other in zip(alone, together, strict=True)) >= MIN_PSNR_BATCH


def test_sizes_within_the_range_need_no_other_engine(generator, cpu, person, psnr):
    for width, height in ((96, 96), (128, 160), (160, 96), (128, 128)):
        found, expected = (g(person, "walking", seed=5, width=width, height=height).image for g in (generator, cpu))
        assert found.size == (width, height)
        assert psnr(found, expected) >= MIN_PSNR


def test_what_a_request_changes_is_no_part_of_an_engine(generator, cpu, person, reference, psnr):
    """Scales, poses, guidance and steps from call to call, each as on the CPU, on the engine that is loaded."""
    denoiser = generator._graphs["denoiser"]
    calls = [
        {},
        {"identity_scale": 0.0},
        {"identity_scale": np.linspace(0, 1, 7)},
        {"image_prompt": reference, "image_scale": 0.6},
        {"pose": None},
        {"pose_scale": 0.5},
        {"sampling": Sampling(guidance=1.0, steps=4)},
    ]
    pictures = []
    for call in calls:
        found, expected = (g(person, PROMPTS[0], seed=7, **call).image for g in (generator, cpu))
        assert psnr(found, expected) >= MIN_PSNR, call
        pictures.append(np.asarray(found, int))
    assert all(np.abs(picture - pictures[0]).max() > 2 for picture in pictures[1:])
    assert generator._graphs["denoiser"] is denoiser


def test_threads_get_the_picture_of_one_alone(generator, person, psnr):
    alone = [generator(person, prompt, seed=3).image for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: generator(person, prompt, seed=3).image, 4 * PROMPTS))
    assert min(psnr(image, alone[i % 4]) for i, image in enumerate(together)) >= MIN_PSNR_BATCH


def test_steps_can_be_watched_and_left(generator, person):
    steps = generator.stream(person, "walking", seed=3)
    first = next(steps)
    assert first.preview().size == (128, 128)
    steps.close()
    *_, last = generator.stream(person, "walking", seed=3)
    np.testing.assert_array_equal(last.result().image, generator(person, "walking", seed=3).image)


def test_memory_does_not_grow(generator, person):
    """Of the device, over thirty pictures: less than two megabytes."""
    from cuda.bindings import runtime

    for _ in range(3):
        generator(person, "walking", seed=3)
    before = runtime.cudaMemGetInfo()[1]
    for seed in range(30):
        generator(person, "walking", seed=seed)
    assert before - runtime.cudaMemGetInfo()[1] < 2e6


def test_the_samplers_update_stays_float32(bundle, backend):
    """With coefficients that keep the sample, it comes back to the last bit, whatever the UNet computes in."""
    inputs = dict(read_golden(bundle)["denoiser"]["inputs"])
    inputs["coefficients"] = np.array([1, 0, 0, 1, 0, 0, 0], np.float32)
    inputs["sample"] = np.random.default_rng(0).standard_normal(inputs["sample"].shape, np.float32)
    outputs = load_graph(bundle, open_backend(backend), "denoiser").run(inputs)
    np.testing.assert_array_equal(outputs["next_sample"], inputs["sample"])


def test_an_engine_of_another_gpu_is_told_what_to_do(bundle, backend, device, tmp_path):
    graphs = {name: _for_another_gpu(graph) for name, graph in bundle.manifest.graphs.items()}
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    other = write_bundle(tmp_path / "other", replace(bundle.manifest, graphs=graphs), files)
    command = f"bolid-export --backend {backend} --compute-capability {device.capability}"
    with pytest.raises(BundleError, match=f"was built for compute capability 5.0, this GPU has .*{command}"):
        load_graph(other, open_backend(backend), "denoiser")


def _for_another_gpu(graph):
    engines = {
        name: replace(engine, key=replace(engine.key, compute_capabilities=("5.0",)))
        for name, engine in graph.engines.items()
    }
    return replace(graph, engines=engines)


def test_too_many_pictures_at_once(bundle, backend, person):
    wide = Generator(bundle.path, backend=backend, max_batch=8)
    with pytest.raises(InputError, match=r"max_batch"):
        wide.batch([(person, "walking")] * 5)


def test_a_device_that_is_not_there(backend):
    with pytest.raises(BackendError, match="there is no CUDA device 99"):
        open_backend(backend, "cuda:99")


def test_latency(generator, person, bundle, backend, capsys):
    """No expectation, a figure to report: milliseconds for a picture, and for a step of it."""
    generator(person, PROMPTS[0], seed=0)
    seconds, stages = [], []
    for seed in range(20):
        start = time.perf_counter()
        result = generator(person, PROMPTS[0], seed=seed)
        seconds.append(time.perf_counter() - start)
        stages.append(result.timings["denoise"])
    steps = bundle.manifest.sampling.steps
    with capsys.disabled():
        print(
            f"\n{generator.backend}: a picture in {1e3 * np.median(seconds):.2f} ms (worst {1e3 * max(seconds):.2f}), "
            f"a step in {1e3 * np.median(stages) / steps:.3f} ms; {steps} steps, median of 20"
        )
