"""Builds one TensorRT-RTX engine, in a process of its own: `python -m bolid_export.tensorrt_worker REQUEST RESULT`.

A builder that crashes takes its process along. REQUEST and RESULT are JSON files; on a refusal RESULT says why under
"error", empty when only the log tells. The library logs to stdout and stderr.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class RefusalError(Exception):
    """The library said no; the reason is empty when it is in its log alone."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the engine; `seconds` it took, and `peak_bytes` of memory, None where the system does not tell."""
    start = time.perf_counter()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # no flag: all networks are strongly typed here, so the ONNX graph's precision is the engine's
    network = builder.create_network(0)
    _parse(trt.OnnxParser(network, logger), request["onnx"])
    plan = builder.build_serialized_network(network, _config(builder, request))
    if plan is None:
        raise RefusalError
    Path(request["engine"]).write_bytes(plan)
    return {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": _peak_bytes()}


def _parse(parser: Any, onnx: str) -> None:
    if not parser.parse_from_file(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise RefusalError("; ".join(_describe(error) for error in errors))


def _describe(error: Any) -> str:
    at = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return at + error.desc().strip()


def _config(builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    # on by default; float32 islands are float32 because ten bits of mantissa are too few for them
    config.clear_flag(trt.BuilderFlag.TF32)
    targets = request["compute_capabilities"]
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}"), i)
    profile = builder.create_optimization_profile()
    for name, shapes in request["shapes"].items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return config


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
