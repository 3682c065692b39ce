"""Builds one engine, in a process of its own: `python -m bolid_export.engines.tensorrt_worker REQUEST RESULT`.

One of TensorRT 10 or 11, or of TensorRT-RTX: what they do not share is asked for by name (`hasattr`). A builder that
crashes takes its process along. REQUEST and RESULT are JSON files; on a refusal RESULT says why under "error", empty
when only the log tells. The library logs to stdout and stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


class RefusalError(Exception):
    """The library said no; the reason is empty when it is in its log alone."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the engine; `seconds` it took, and `peak_bytes` of memory, None where the system does not tell."""
    start = time.perf_counter()
    trt = importlib.import_module(request["module"])
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    _parse(trt.OnnxParser(network, logger), request["onnx"])
    config = _config(trt, builder, request)
    _make_refittable(trt, network, config, request["refittable"])
    cache = _load_timing_cache(config, request["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RefusalError
    Path(request["engine"]).write_bytes(plan)
    _save_timing_cache(cache, request["timing_cache"])
    return {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": _peak_bytes()}


def _network_flags(trt: Any) -> int:
    """The ONNX graph's precision is the engine's. TensorRT 11 knows no other way, and may forget the flag for it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(parser: Any, onnx: str) -> None:
    if not parser.parse_from_file(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise RefusalError("; ".join(_describe(error) for error in errors))


def _describe(error: Any) -> str:
    at = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return at + error.desc().strip()


def _config(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    # on by default; float32 islands are float32 because ten bits of mantissa are too few for them
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(config, "set_compute_capability"):
        _set_compute_capabilities(trt, config, request["compute_capabilities"])
    else:
        _set_compatibility(trt, config, request["options"])
    profile = builder.create_optimization_profile()
    for name, shapes in request["shapes"].items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return config


def _set_compute_capabilities(trt: Any, config: Any, targets: list[str]) -> None:
    """TensorRT-RTX, for GPUs that need not be here."""
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}"), i)


def _set_compatibility(trt: Any, config: Any, options: dict[str, bool]) -> None:
    """TensorRT, for the GPU here: for all of its compute capability where the version can, as an engine's key says."""
    levels = trt.HardwareCompatibilityLevel
    if options["hardware_compatible"]:
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    elif hasattr(levels, "SAME_COMPUTE_CAPABILITY"):
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY
    if options["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _make_refittable(trt: Any, network: Any, config: Any, weights: list[str]) -> None:
    if not weights:
        return
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    missing = [name for name in weights if not network.mark_weights_refittable(name)]
    if missing:
        raise RefusalError(f"these weights cannot be made refittable: {', '.join(missing[:5])}")


def _load_timing_cache(config: Any, file: str | None) -> Any:
    """None without a file. A cache of another GPU or version is refused by the library, and begun anew."""
    if file is None:
        return None
    for content in (Path(file).read_bytes() if Path(file).is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _save_timing_cache(cache: Any, file: str | None) -> None:
    """Renamed into place: builds may run side by side. A cache that cannot be written costs time, nothing else."""
    if cache is None or file is None:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{file}.{time.monotonic_ns()}.part")
        part.write_bytes(cache.serialize())
        part.replace(file)
    except OSError as error:
        print(f"the timing cache cannot be written: {error}", file=sys.stderr)


def _peak_bytes() -> int | None:
    """Not getrusage: Linux counts the memory of the process that started this one in its maximum."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(request: str, result: str) -> None:
    try:
        answer = build(json.loads(Path(request).read_text(encoding="utf-8")))
    except RefusalError as error:
        answer = {"error": str(error)}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
