"""Under load: threads, many pictures, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from bolid_sdk.backends import BACKENDS
from bolid_sdk.generator import Generator
from bolid_sdk.sampling import Sampling

INSTALLED = [entry.name for entry in BACKENDS if entry.installed]
THREADS = 8
STATUS = Path("/proc/self/statm")


@pytest.fixture(params=INSTALLED)
def generator(request, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "cache"))
    return Generator(tiny_bundle.path, backend=request.param, threads=1)


def test_eight_threads_give_each_the_picture_of_one_alone(generator, reference):
    """Different people, prompts, sizes and levers at once; twice, so that kept encodings are shared as well."""
    samplings = [Sampling(steps=6), Sampling(steps=6, sampler="lcm", caching="fast"), Sampling(caching="balanced")]
    samplings.append(Sampling(steps=5, guidance_interval=(0.2, 0.8)))
    prompts, sides = ("walking", "on a red sofa", "sitting"), (64, 96)

    def make(seed):
        side = sides[seed % 2]
        options = {"seed": seed, "sampling": samplings[seed % 4], "width": side, "height": side}
        return np.asarray(generator(reference, prompts[seed % 3], **options).image)

    alone = [make(seed) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(make, [*range(THREADS)] * 2))
    for seed, picture in enumerate(together):
        np.testing.assert_array_equal(picture, alone[seed % THREADS])


def test_no_lock_is_held_over_a_picture(generator, reference):
    """Eight pictures meet in the middle: with a lock around the picture the first would wait for ever."""
    person, barrier = generator.identify(reference), Barrier(THREADS, timeout=60)

    def make(seed):
        for step in generator.stream(person, "walking", seed=seed, sampling=Sampling(steps=4)):
            if step.index == 2:
                barrier.wait()
        return step.index

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(make, range(THREADS))) == [4] * THREADS


def resident() -> int:
    """Bytes of memory in use."""
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read as Linux tells it")
def test_memory_stays_flat(generator, reference):
    """Of 200 pictures with ever new prompts, the last hundred need no more than the first; 1,000 in benchmarks/."""
    sampling = Sampling(steps=2, caching="fast")
    levels = []
    for seed in range(200):
        generator(reference, f"walking {'a ' * (seed % 50)}", seed=seed, sampling=sampling)
        levels.append(resident())
    assert np.median(levels[150:]) <= 1.02 * np.median(levels[50:100])


def test_ctrl_c_leaves_nothing_behind(tiny_bundle, reference, tmp_path):
    """Interrupted after its first step of a loop that would take for ever."""
    script = (
        "import sys\n"
        "from bolid_sdk import cli, generator\n"
        "step = generator.Generator._step\n"
        "def told(*args):\n"
        "    print('step', flush=True)\n"
        "    return step(*args)\n"
        "generator.Generator._step = told\n"
        "cli.infer()\n"
    )
    (tmp_path / "out.png").write_bytes(b"precious")
    options = ["--bundle", tiny_bundle.path, "--steps", "999", "-n", "1000", "-o", tmp_path / "out.png"]
    command = [sys.executable, "-c", script, reference, "walking", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "interrupted\n"
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    left = [path.name for path in tmp_path.iterdir() if path.suffix != ".png"]
    assert left == []
