"""ONNX -> engines of TensorRT (on its GPU) or TensorRT-RTX (without one), each built in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bolid_export.engines.refit import refittable_weights
from bolid_export.engines.shapes import graph_profile
from bolid_export.engines.target import MODULES, BuildOptions, EngineTarget
from bolid_sdk.built_engine import BuiltEngine, EngineKey
from bolid_sdk.bundle import file_sha256
from bolid_sdk.contracts import GraphSpec, Sizes
from bolid_sdk.errors import BolidError
from bolid_sdk.files import cache_folder

# -P: a file of the user's working folder may be called like a module
WORKER = (sys.executable, "-P", "-m", "bolid_export.engines.tensorrt_worker")

LOG_LINES, LOG_CHARACTERS = 3, 400
LOG_PREFIX = re.compile(r"^\[[^]]*\] \[TRT\] ")


class EngineBuildError(BolidError):
    """The library cannot build a verified graph: our failure, or its own."""

    exit_code = 1


def engine_file(graph: str, backend: str) -> str:
    """Where a graph's engine is, relative to the bundle."""
    return f"{backend}/{graph}.engine"


def build_engines(
    specs: Mapping[str, GraphSpec],
    sizes: Sizes,
    target: EngineTarget,
    precision: str,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, BuiltEngine]:
    """Builds each graph's engine from `<graph>.onnx` into the same folder. Raises EngineBuildError."""
    (folder / target.backend).mkdir()
    built = {}
    for name, spec in specs.items():
        progress(f"building the engine of {name}")
        key = _key(folder, spec, sizes, target, precision)
        file = engine_file(name, target.backend)
        build = build_engine(folder / f"{name}.onnx", folder / file, key, target.options)
        built[name] = BuiltEngine(file=file, key=key, build=build)
    return built


def build_engine(onnx: Path, engine: Path, key: EngineKey, options: BuildOptions | None = None) -> dict[str, Any]:
    """Writes one engine; `seconds` and `peak_bytes` of its builder. Raises EngineBuildError."""
    request, result, log = (engine.with_suffix(f".{name}") for name in ("request", "result", "log"))
    request.write_text(json.dumps(_request(onnx, engine, key, options or BuildOptions())), encoding="utf-8")
    try:
        with log.open("wb") as output:
            code = subprocess.run([*WORKER, request, result], stdout=output, stderr=output, check=False).returncode
        return _answer(onnx.stem, key.library, code, result, log)
    finally:
        for file in (request, result, log):
            file.unlink(missing_ok=True)


def _key(folder: Path, spec: GraphSpec, sizes: Sizes, target: EngineTarget, precision: str) -> EngineKey:
    # as GraphEntry.files: the graph, then its external tensors
    files = [file for name in ("onnx", "onnx.data") if (file := folder / f"{spec.name}.{name}").exists()]
    return EngineKey(
        graph_sha256=tuple(file_sha256(file) for file in files),
        shapes=graph_profile(spec, target.shapes, sizes),
        precision=precision,
        runtime=target.runtime,
        compute_capabilities=target.compute_capabilities,
    )


def _request(onnx: Path, engine: Path, key: EngineKey, options: BuildOptions) -> dict[str, Any]:
    cache = timing_cache(key)
    return {
        "module": MODULES[key.library],
        "onnx": str(onnx),
        "engine": str(engine),
        "shapes": dict(key.shapes),
        "compute_capabilities": key.compute_capabilities,
        "options": vars(options),
        "refittable": refittable_weights(onnx) if options.refit else [],
        "timing_cache": None if cache is None else str(cache),
    }


def timing_cache(key: EngineKey) -> Path | None:
    """Where TensorRT remembers how fast its kernels are on this GPU. TensorRT-RTX measures nothing beforehand."""
    if key.library == "tensorrt-rtx":
        return None
    name = f"{key.runtime} {' '.join(key.compute_capabilities)}".replace(" ", "-")
    return cache_folder() / "tensorrt" / f"{name}.timing"


def _answer(graph: str, backend: str, code: int, result: Path, log: Path) -> dict[str, Any]:
    library = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[backend]
    if code != 0 or not result.exists():
        raise EngineBuildError(
            f"{library} {_ending(code)} while it built {graph}, so nothing was written; its log ends: {_tail(log)}"
        )
    answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in answer:
        reason = " ".join(answer["error"].split()) or _tail(log)
        raise EngineBuildError(f"{library} refuses {graph}, so nothing was written: {reason}")
    return answer


def _ending(code: int) -> str:
    """A negative code is the signal that ended the process."""
    if code == -9:
        return "was killed (signal 9, often for want of memory)"
    return f"crashed (signal {-code})" if code < 0 else f"failed (exit code {code})"


def _tail(log: Path) -> str:
    lines = [LOG_PREFIX.sub("", line).strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-LOG_LINES:])[-LOG_CHARACTERS:] or "(empty)"
