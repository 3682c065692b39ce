"""What is installed, what works, and whether a bundle is whole."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bolid_sdk.backends import BACKENDS, BackendEntry
from bolid_sdk.bundle_check import Progress, Report, check_bundle, silent, summary_lines
from bolid_sdk.errors import BackendError

PACKAGES = (
    "bolid-sdk",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "click",
)


def diagnose(
    bundle_path: Path | None, backend: str | None = None, device: str = "auto", progress: Progress = silent
) -> Report:
    """A report of JSON types; `ok` says whether everything that was looked at is in order.

    `backend` and `device` are those that the bundle's graphs run on, as for `Generator`.
    """
    backends = [_backend_report(entry) for entry in BACKENDS]
    bundle = check_bundle(bundle_path, backend, device, progress)
    works = any(report["works"] for report in backends)
    return {"ok": works and bundle["ok"], "versions": _versions(), "backends": backends, "bundle": bundle}


def report_lines(report: Report) -> Iterable[str]:
    """The report for a terminal."""
    yield "  ".join(f"{name} {version}" for name, version in report["versions"].items())
    for backend in report["backends"]:
        yield f"{'works ' if backend['works'] else 'absent'}  {backend['name']}: {backend['detail']}"
    yield from summary_lines(report["bundle"])


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
