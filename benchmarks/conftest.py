"""Collects what the benchmarks measure in benchmarks/results/avatar.json, from which README takes its tables."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bolid_sdk import Generator

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "avatar.json"
PACKAGES = ("bolid-sdk", "numpy", "onnxruntime", "openvino")
SEED = 7


@pytest.fixture(scope="session")
def generator() -> "Generator":
    if not (ROOT / "engines" / "avatar" / "manifest.json").exists():
        pytest.skip("engines/avatar has not been exported yet")
    from bolid_sdk import Generator

    return Generator()


@pytest.fixture(scope="session")
def reference() -> Path:
    return ROOT / "examples" / "ref.png"


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def results(generator: "Generator") -> Iterator[list[dict]]:
    """Filled by the benchmarks; written once they have all run."""
    measured: list[dict] = []
    yield measured
    previous = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    # Numbers of one table must come from one run: a selection of the benchmarks leaves the file alone.
    if {row["name"] for row in measured} >= {row["name"] for row in previous}:
        document = {"environment": environment(generator), "results": measured}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")


@pytest.fixture(autouse=True)
def recorded(benchmark, results: list[dict]) -> Iterator[None]:
    """Takes every benchmark's statistics; a test names its row in `benchmark.extra_info["name"]`."""
    yield
    if benchmark.stats is None:
        return
    stats = benchmark.stats.stats
    results.append(
        {
            "group": benchmark.group,
            "name": benchmark.extra_info["name"],
            "median_ms": 1000 * stats.median,
            "iqr_ms": 1000 * stats.iqr,
            "min_ms": 1000 * stats.min,
            "max_ms": 1000 * stats.max,
            "rounds": stats.rounds,
        }
    )


def environment(generator: "Generator") -> dict:
    """What the numbers depend on. The load says whether the machine had other work."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "bundle": generator.bundle.digest,
        "seed": SEED,
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
