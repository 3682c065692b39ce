"""Collects what the benchmarks measure in benchmarks/results/avatar.json, from which README takes its tables."""

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from bolid_sdk.backends import BACKENDS
from bolid_sdk.bundle import Bundle
from bolid_training.evaluate.provenance import commit, cpu_name

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "engines" / "avatar"
RESULTS = ROOT / "benchmarks" / "results" / "avatar.json"
INSTALLED = [entry for entry in BACKENDS if entry.installed]
SEED = 7


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.open(EMBEDDED)


@pytest.fixture(scope="module", params=[entry.name for entry in INSTALLED])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def results(bundle: Bundle) -> Iterator[list[dict]]:
    """Filled by the benchmarks; written once they have all run."""
    measured: list[dict] = []
    load = os.getloadavg()[0]
    yield measured
    previous = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    # Numbers of one table must come from one run: a selection of the benchmarks leaves the file alone.
    if {row["name"] for row in measured} >= {row["name"] for row in previous}:
        RESULTS.parent.mkdir(exist_ok=True)
        document = {"environment": environment(bundle, load), "results": measured}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")


@pytest.fixture(autouse=True)
def recorded(benchmark, backend: str, results: list[dict]) -> Iterator[None]:
    """Takes every benchmark's statistics; a test names its row in `benchmark.extra_info["name"]`."""
    yield
    if benchmark.stats is None:
        return
    stats = benchmark.stats.stats
    results.append(
        {
            "group": benchmark.group,
            "name": benchmark.extra_info["name"],
            "backend": backend,
            "median_ms": round(1000 * stats.median, 3),
            "q1_ms": round(1000 * stats.q1, 3),
            "q3_ms": round(1000 * stats.q3, 3),
            "min_ms": round(1000 * stats.min, 3),
            "max_ms": round(1000 * stats.max, 3),
            "rounds": stats.rounds,
        }
    )


def environment(bundle: Bundle, load: float) -> dict:
    """What the numbers depend on. The load before the first says whether the machine had other work."""
    packages = ["bolid-sdk", "numpy", *(entry.needs for entry in INSTALLED)]
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(load, 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
        "bundle": bundle.digest,
        "seed": SEED,
    }
