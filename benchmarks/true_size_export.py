"""Exports of true-size checkpoints: seconds by stage, peak memory, bytes, into benchmarks/results/export.json.

    python benchmarks/true_size.py --out runs/sd15
    python benchmarks/true_size_export.py runs/sd15      fp32 (float16 on disk), fp16, int8, TensorRT-RTX
    python benchmarks/true_size_export.py runs/sd15 --only fp16

Each export is a process of its own; bundles are left in runs/bundles for `benchmarks/peers`. Before the clock starts,
what is pending for the disk is written, and the checkpoint read once: another export's bundle and a cold disk are not
measured.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import click

from bolid_training.evaluate.provenance import commit, cpu_name

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "export.json"
BUNDLES = ROOT / "runs" / "bundles"
PACKAGES = ("bolid-sdk", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx")
EXPORTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
    "tensorrt-rtx": {"precision": "fp16", "compute_capability": "8.9", "batch": "1:1:4"},
    "tensorrt-rtx-int8": {"precision": "int8", "compute_capability": "8.9", "batch": "1:1:4"},
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--only", type=click.Choice(list(EXPORTS)), multiple=True, help="[default: all]")
@click.option("--worker", hidden=True)
def main(model: Path, only: tuple[str, ...], worker: str | None) -> None:
    """Measure the exports of MODEL."""
    if worker:
        click.echo(json.dumps(export(model, worker)))
        return
    rows = [measure(model, name) for name in only or EXPORTS]
    kept = [row for row in previous() if (row["model"], row["export"]) not in {(model.name, r["export"]) for r in rows}]
    RESULTS.write_text(json.dumps({"rows": kept + rows}, indent=2) + "\n")


def measure(model: Path, name: str) -> dict[str, Any]:
    """One export in a process of its own; its errors are shown, and end this one."""
    click.echo(f"{model.name}, {name}", err=True)
    settle_disk(model)
    command = [sys.executable, __file__, str(model), "--worker", name]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(output.splitlines()[-1]), "setup": setup()}


def settle_disk(model: Path) -> None:
    """Leaves nothing to be written, and the checkpoint in the system's cache of files."""
    os.sync()
    for file in filter(Path.is_file, model.rglob("*")):
        with file.open("rb") as content:
            while content.read(1 << 24):
                pass


def export(model: Path, name: str) -> dict[str, Any]:
    """What the command line does, with a clock at every stage."""
    start = time.perf_counter()
    from bolid_export.engines.target import EngineRequest
    from bolid_export.pipeline import Target, export_bundle
    from bolid_export.sources import model_sizes, open_source

    settings = EXPORTS[name]
    source = open_source(model)
    capability = settings.get("compute_capability")
    request = EngineRequest.parse("tensorrt-rtx", capability, settings["batch"], None) if capability else None
    marks = [Mark("opening", start, 0.0)]
    memory = FamilyMemory()
    memory.start()

    def progress(stage: str) -> None:
        click.echo(f"{time.perf_counter() - start:7.1f} s  {peak_rss() >> 20:6} MB  {stage}", err=True)
        if stage.startswith("building"):
            memory.ended.set()  # a builder's memory has a column of its own
        marks.append(Mark(stage, time.perf_counter(), processor_seconds()))

    target = Target(
        folder=BUNDLES / f"{model.name}-{name}",
        precision=settings["precision"],
        licence="none",
        overwrite=True,
        engines=request.resolve(model_sizes(source.checkpoint)) if request else None,
    )
    bundle = export_bundle(source, target, progress)
    end = Mark("", time.perf_counter(), processor_seconds())
    spans = list(pairwise([*marks, end]))
    engines = {graph: e.build for graph, entry in bundle.manifest.graphs.items() for e in entry.engines.values()}
    return {
        "model": model.name,
        "export": name,
        "precision": settings["precision"],
        "family": bundle.manifest.family,
        "seconds": round(end.clock - start, 1),
        "processor_seconds": round(end.processor, 1),
        "engine_seconds": round(sum(build["seconds"] for build in engines.values()), 1),
        "rss_mb": max(peak_rss(), memory.peak) >> 20,
        "engine_rss_mb": max([(build["peak_bytes"] or 0) >> 20 for build in engines.values()], default=0),
        "bytes": sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()),
        "stages": {mark.stage: round(after.clock - mark.clock, 1) for mark, after in spans},
        "processor_stages": {mark.stage: round(after.processor - mark.processor, 1) for mark, after in spans},
        "engines": engines,
        "verification": {key: bundle.manifest.verification[key] for key in ("effort", "loop")},
        "load": os.getloadavg()[0],
    }


class Mark(NamedTuple):
    """When a stage began: by the clock, and in seconds of processor time, which others on the machine do not change."""

    stage: str
    clock: float
    processor: float


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(os.times()[:4])


class FamilyMemory(Thread):
    """Largest resident memory of this process together with its children, in bytes: one of them traces."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            self.peak = max(self.peak, sum(map(resident, ["self", *children])))


def resident(process: str) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss() -> int:
    """Bytes. Not getrusage: Linux counts the memory of the process that started this one in its maximum."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def setup() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }


def previous() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
