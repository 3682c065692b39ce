"""What is installed, what works, and whether a bundle is whole."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import BACKENDS, Backend, BackendEntry, open_backend
from bolid_sdk.bundle import Bundle, open_bundle
from bolid_sdk.errors import BackendError, BolidError

Report: TypeAlias = dict[str, Any]

PACKAGES = ("bolid-sdk", "numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "click")
MIN_GOLDEN_COSINE = 0.999
"""Of what a graph gives and what PyTorch gave; less where the export itself accepted less, as for int8."""


def diagnose(bundle_path: Path | None) -> Report:
    """A report of JSON types; `ok` says whether everything that was looked at is in order."""
    backends = [_backend_report(entry) for entry in BACKENDS]
    bundle = _bundle_report(bundle_path)
    works = any(report["works"] for report in backends)
    return {"ok": works and bundle["ok"], "versions": _versions(), "backends": backends, "bundle": bundle}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _backend_report(entry: BackendEntry) -> Report:
    if not entry.installed:
        return {"name": entry.name, "works": False, "detail": f"not installed: {entry.install}"}
    try:
        backend = entry.open("auto", None)
    except BackendError as error:
        return {"name": entry.name, "works": False, "detail": str(error)}
    return {"name": entry.name, "works": True, "detail": "; ".join((backend.description, *backend.notices))}


def _bundle_report(path: Path | None) -> Report:
    """Opens, hashes, loads and, where outputs are stored, runs the bundle; the first failure ends it."""
    report: Report = {"ok": False, "path": None if path is None else str(path)}
    try:
        bundle = open_bundle(path)
        report |= {"path": str(bundle.path), "name": bundle.manifest.name, "digest": bundle.digest}
        bundle.verify_hashes()
        report["hashes"] = f"{len(bundle.manifest.files)} files match"
        report["graphs"] = _graph_reports(bundle, open_backend())
    except BolidError as error:
        return {**report, "error": str(error)}
    worst = min((graph.get("golden_cosine", 1.0) for graph in report["graphs"].values()), default=1.0)
    if worst < _accepted_cosine(bundle):
        reason = f"outputs differ from those stored at export (cosine {worst:.5f}); try another backend and report this"
        return {**report, "error": reason}
    return {**report, "ok": True}


def _accepted_cosine(bundle: Bundle) -> float:
    limits = bundle.manifest.verification.get("limits", {})
    return min(MIN_GOLDEN_COSINE, float(limits.get("cosine", MIN_GOLDEN_COSINE)))


def _graph_reports(bundle: Bundle, backend: Backend) -> dict[str, Report]:
    golden = _golden(bundle)
    return {name: _graph_report(bundle, backend, name, golden.get(name)) for name in bundle.manifest.graphs}


def _graph_report(bundle: Bundle, backend: Backend, name: str, golden: Report | None) -> Report:
    entry = bundle.manifest.graphs[name]
    start = time.perf_counter()
    engine = backend.load(bundle.file(entry.file), entry.spec)
    report: Report = {"load_seconds": round(time.perf_counter() - start, 3)}
    if golden:
        start = time.perf_counter()
        outputs = engine.run(golden["inputs"])
        report["run_seconds"] = round(time.perf_counter() - start, 3)
        report["golden_cosine"] = min(_cosine(outputs[key], value) for key, value in golden["outputs"].items())
    return report


def _golden(bundle: Bundle) -> dict[str, Report]:
    """Stored arrays by graph, then "inputs" or "outputs", then tensor."""
    if bundle.manifest.golden is None:
        return {}
    stored: dict[str, Report] = {}
    with np.load(bundle.file(bundle.manifest.golden), allow_pickle=False) as arrays:
        for key in arrays.files:
            graph, side, tensor = key.split("/")
            stored.setdefault(graph, {"inputs": {}, "outputs": {}})[side][tensor] = arrays[key]
    return stored


def _cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return 1.0 if lengths == 0.0 else float(one @ other) / lengths
