"""A whole picture: in a process that runs already, and from nothing to the file."""

import subprocess
import sys
from pathlib import Path

import pytest

PROMPT = "a person sitting on a red sofa"

pytestmark = pytest.mark.benchmark(group="image", min_rounds=5, max_time=5.0, warmup=True, warmup_iterations=1)


def test_picture(benchmark, generator, reference, seed):
    benchmark.extra_info["name"] = "picture from a reference"
    benchmark(generator, reference, PROMPT, seed=seed)


def test_picture_of_a_known_person(benchmark, generator, reference, seed):
    benchmark.extra_info["name"] = "picture of a person identified before"
    benchmark(generator, generator.identify(reference), PROMPT, seed=seed)


def test_identify(benchmark, generator, reference):
    benchmark.extra_info["name"] = "identify alone"
    benchmark(generator.identify, reference)


def test_cold(benchmark, reference, seed, tmp_path):
    benchmark.extra_info["name"] = "process start to file (`bolid-infer`)"
    program = Path(sys.executable).with_name("bolid-infer")
    command = [program, reference, PROMPT, "--seed", str(seed), "-o", tmp_path / "out.png"]
    # A process is a round of its own: nothing to warm up, but the file cache, which the first round fills.
    benchmark.pedantic(subprocess.run, [command], {"check": True, "capture_output": True}, rounds=5, warmup_rounds=1)
