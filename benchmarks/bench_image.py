"""A whole picture: in a process that runs already, and from nothing to the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from bolid_sdk import Generator

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "examples" / "ref.png"
PROMPT = "a person sitting on a red sofa"

pytestmark = pytest.mark.benchmark(group="image", min_rounds=5, max_time=4.0, warmup=True, warmup_iterations=1)


@pytest.fixture(scope="module")
def generator(backend: str, bundle) -> Generator:
    return Generator(bundle.path, backend=backend)


def test_picture(benchmark, generator: Generator, seed: int):
    benchmark.extra_info["name"] = "picture from a reference"
    benchmark(generator, REFERENCE, PROMPT, seed=seed)


def test_picture_of_a_known_person(benchmark, generator: Generator, seed: int):
    benchmark.extra_info["name"] = "picture of a person identified before"
    benchmark(generator, generator.identify(REFERENCE), PROMPT, seed=seed)


def test_identify(benchmark, generator: Generator):
    benchmark.extra_info["name"] = "identify alone"
    benchmark(generator.identify, REFERENCE)


def test_identify_several(benchmark, generator: Generator):
    benchmark.extra_info["name"] = "identify alone, 4 references"
    benchmark(generator.identify, [REFERENCE] * 4)


def test_cold(benchmark, backend: str, bundle, seed: int, tmp_path: Path):
    benchmark.extra_info["name"] = "process start to file (`bolid-infer`)"
    program = Path(sys.executable).with_name("bolid-infer")
    options = ["--bundle", bundle.path, "--backend", backend, "--seed", str(seed), "-o", tmp_path / "out.png"]
    command = [program, REFERENCE, PROMPT, *options]
    # A process is a round of its own: nothing to warm up but the file cache, which the first round fills.
    benchmark.pedantic(subprocess.run, [command], {"check": True, "capture_output": True}, rounds=5, warmup_rounds=1)
