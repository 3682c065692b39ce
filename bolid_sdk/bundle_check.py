"""Whether an installed bundle is whole and computes what it computed when it was exported. Needs no PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import BACKENDS, Backend, EngineBackend, open_backend
from bolid_sdk.built_engine import EngineFile
from bolid_sdk.bundle import MANIFEST_NAME, Bundle, default_bundle_path
from bolid_sdk.errors import DAMAGED_ARRAYS, BackendError, BolidError, BundleError
from bolid_sdk.graphs import load_graph
from bolid_sdk.manifest import Manifest

Report: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[str, int], None]
"""Told what comes next, and how many things there are in all."""

Golden: TypeAlias = Mapping[str, Mapping[str, NDArray[Any]]]
"""Stored "inputs" and "outputs" of a graph, by tensor."""

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.98}
"""Of every output with PyTorch's at export. Below what exports are held to: another backend may round differently, and
some compute in bfloat16 (OpenVINO, 0.99998 at worst)."""


def silent(what: str, total: int) -> None:
    """No progress."""


def check_bundle(
    path: Path | None, backend: str | None = None, device: str = "auto", progress: Progress = silent
) -> Report:
    """A report of JSON types about a bundle (None: the embedded one) on a backend (None: the best that works).

    `ok`; `problems`, one message each; `hashes`; `engines`, and whether they are for this machine; `graphs`, with the
    cosine of each stored output. Files are all looked at; graphs run only when no file is damaged.
    """
    report: Report = {"ok": False, "path": None if path is None else str(path), "problems": []}
    try:
        bundle = _read(path)
        report |= {"path": str(bundle.path), "name": bundle.manifest.name, "precision": bundle.manifest.precision}
        report |= {"capabilities": list(bundle.manifest.capabilities), "loras": _loras(bundle.manifest)}
        report |= {"digest": bundle.digest, "unlisted": _unlisted_files(bundle), "engines": _engines(bundle)}
        report["problems"] = _damaged_files(bundle, progress)
        if not report["problems"]:
            report["hashes"] = f"{len(bundle.manifest.files)} files match"
            report |= _run_graphs(bundle, backend, device, progress)
    except BolidError as error:
        report["problems"].append(str(error))
    return {**report, "ok": not report["problems"]}


def min_cosine(manifest: Manifest) -> float:
    """By precision, or what the export was held to where that was less. Raises BundleError."""
    limit = MIN_COSINE.get(manifest.precision, min(MIN_COSINE.values()))
    limits = manifest.verification.get("limits")
    exported = limits.get("cosine", limit) if isinstance(limits, Mapping) else limit
    if isinstance(exported, bool) or not (isinstance(exported, (int, float)) and -1 <= exported <= 1):
        raise BundleError(
            f"the manifest of {manifest.name!r} says that exports were held to a cosine of {exported!r}; expected a "
            "number in [-1, 1]: export the bundle again"
        )
    return min(limit, exported)


def _loras(manifest: Manifest) -> Report | None:
    """What a request's LoRAs may be; None: it may bring none."""
    sizes = manifest.sizes
    return {"rank": sizes.lora_rank, "layers": len(sizes.lora_layers)} if sizes.lora_rank else None


def _read(path: Path | None) -> Bundle:
    chosen = path if path is not None else default_bundle_path()
    if chosen is None:
        raise BundleError("no bundle was given and none is embedded in this installation; pass the folder of one")
    return Bundle.read(chosen)


def _damaged_files(bundle: Bundle, progress: Progress) -> list[str]:
    problems = []
    for name in bundle.manifest.files:
        progress(f"reading {name}", _steps(bundle))
        try:
            bundle.check_file(name)
            bundle.check_hash(name)
        except BolidError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{bundle.file(name)} cannot be read: {error.strerror}; copy or export the bundle again")
    return problems


def _steps(bundle: Bundle) -> int:
    return len(bundle.manifest.files) + len(bundle.manifest.graphs)


def _unlisted_files(bundle: Bundle) -> list[str]:
    """What lies in the folder and is no part of the bundle: never read, but perhaps not meant to be there."""
    found = {file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file()}
    return sorted(found - set(bundle.manifest.files) - {MANIFEST_NAME})


def _engines(bundle: Bundle) -> Report:
    """By backend, then graph; `matches` is None where the backend does not work, so nobody can tell."""
    names = {name for graph in bundle.manifest.graphs.values() for name in graph.engines}
    return {
        entry.name: _engines_of(bundle, entry.name) for entry in BACKENDS if entry.ahead_of_time and entry.name in names
    }


def _engines_of(bundle: Bundle, name: str) -> Report:
    backend, reason = _opened(name)
    files = {graph: bundle.engine_files(graph).get(name) for graph in bundle.manifest.graphs}
    return {
        graph: {
            "file": file.name,
            "key": file.key.digest,
            "runtime": file.key.runtime,
            "compute_capabilities": list(file.key.compute_capabilities),
            **_match(backend, file, reason),
        }
        for graph, file in files.items()
        if file is not None
    }


def _opened(name: str) -> tuple[Backend | None, str]:
    """A backend, or why there is none."""
    try:
        return open_backend(name), ""
    except BackendError as error:
        return None, str(error)


def _match(backend: Backend | None, file: EngineFile, reason: str) -> Report:
    if backend is None:
        return {"matches": None, "detail": reason}
    try:
        cast(EngineBackend, backend).check_engine(file)
    except BundleError as error:
        return {"matches": False, "detail": str(error)}
    return {"matches": True, "detail": ""}


def _run_graphs(bundle: Bundle, name: str | None, device: str, progress: Progress) -> Report:
    backend = open_backend(name, device, built=bundle.manifest.engine_backends)
    golden, limit = read_golden(bundle), min_cosine(bundle.manifest)
    graphs = {}
    for graph in bundle.manifest.graphs:
        progress(f"running {graph}", _steps(bundle))
        graphs[graph] = _graph_report(bundle, backend, graph, golden.get(graph), limit)
    problems = [report["error"] for report in graphs.values() if "error" in report]
    return {
        "backend": backend.description,
        "notices": list(backend.notices),
        "min_cosine": limit,
        "graphs": graphs,
        "problems": problems,
    }


def _graph_report(bundle: Bundle, backend: Backend, name: str, golden: Golden | None, limit: float) -> Report:
    start = time.perf_counter()
    report: Report = {}
    try:
        engine = load_graph(bundle, backend, name)
        report["load_seconds"] = round(time.perf_counter() - start, 3)
        if golden:
            start = time.perf_counter()
            outputs = engine.run(golden["inputs"])
            report["run_seconds"] = round(time.perf_counter() - start, 3)
            report |= _agreement(name, outputs, golden["outputs"], limit)
    except BolidError as error:
        report["error"] = str(error)
    return report


def _agreement(
    graph: str, found: Mapping[str, NDArray[Any]], golden: Mapping[str, NDArray[Any]], limit: float
) -> Report:
    if not golden or golden.keys() - found.keys():
        told = f"outputs {sorted(golden)} are stored, it has {sorted(found)}"
        return {"error": f"{graph}: {told}; export the bundle again"}
    cosines = {name: _cosine(found[name], value) for name, value in golden.items()}
    worst = min(cosines, key=lambda name: cosines[name])
    report: Report = {"outputs": cosines, "golden_cosine": cosines[worst]}
    if cosines[worst] < limit:
        report["error"] = (
            f"{graph}: {worst} differs from the output stored at export (cosine {cosines[worst]:.5f}, expected at "
            f"least {limit}); try another backend, and report this"
        )
    return report


def read_golden(bundle: Bundle) -> dict[str, Golden]:
    """Stored inputs and outputs by graph; empty when the bundle has none. Raises BundleError."""
    if bundle.manifest.golden is None:
        return {}
    path = bundle.file(bundle.manifest.golden)
    stored: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                graph, side, tensor = key.split("/")
                stored.setdefault(graph, {"inputs": {}, "outputs": {}})[side][tensor] = arrays[key]
    except (KeyError, *DAMAGED_ARRAYS) as error:
        raise BundleError(f"{path} is no file of stored outputs ({error}); export the bundle again") from error
    return dict(stored)


def _cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """-1 for another shape and for anything that is not finite: neither agrees with anything."""
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return -1.0
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.array_equal(one, other)) if lengths == 0.0 else float(one @ other) / lengths


def summary_lines(report: Report) -> Iterable[str]:
    """The report for a terminal."""
    about = (report["path"], report.get("name", ""), report.get("precision", ""), report.get("digest", "")[:16])
    yield f"bundle  {' '.join(str(part) for part in about)}"
    if loras := report.get("loras"):
        yield f"  takes LoRAs up to rank {loras['rank']} in {loras['layers']} layers"
    for backend, engines in report.get("engines", {}).items():
        yield from _engine_lines(backend, engines)
    if report.get("unlisted"):
        yield f"  not part of it: {', '.join(report['unlisted'])}"
    if "backend" in report:
        yield f"  on {'; '.join((report['backend'], *report['notices']))}"
    for name, graph in report.get("graphs", {}).items():
        yield f"  {name}: {_graph_line(graph)}"
    for problem in report["problems"]:
        yield f"error: {problem}"
    if report["ok"]:
        yield f"all well: {report['hashes']}"


def _engine_lines(backend: str, engines: Report) -> Iterator[str]:
    """One line for all engines that share a fate."""
    fates: dict[str, list[str]] = {}
    for name, engine in engines.items():
        built = f"{engine['runtime']}, compute capability {', '.join(engine['compute_capabilities'])}"
        verdict = {True: "for this machine", False: "NOT for this machine", None: "cannot be checked here"}
        detail = f" ({engine['detail']})" if engine["matches"] is None else ""
        fates.setdefault(f"{built}: {verdict[engine['matches']]}{detail}", []).append(name)
    for fate, names in fates.items():
        yield f"  {len(names)} {backend} engines, built by {fate}"


def _graph_line(graph: Report) -> str:
    if "load_seconds" not in graph:
        return "does not load"
    golden = ""
    if "golden_cosine" in graph:
        verdict = "differs from" if "error" in graph else "equals"
        golden = f", {verdict} the stored outputs (cosine {graph['golden_cosine']:.6f})"
    return f"loads in {graph['load_seconds']} s{golden}"
