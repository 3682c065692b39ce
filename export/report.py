"""The verification as a person reads it: in the terminal, and as report.md in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bolid_export.engine_target import EngineTarget
from bolid_sdk.built_engine import BuiltEngine


def report(name: str, precision: str, verification: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Markdown. `verification` as in the manifest; `sizes`: bytes of each graph."""
    rows = [_row(check, sizes) for check in verification["graphs"]]
    return "\n".join(
        [
            f"# {name}, {precision}",
            "",
            _loop(verification["loop"], verification["limits"]),
            *_effort(verification.get("effort", {})),
            "",
            *_table(("graph", "MB", "output", "cosine", "max error", "relative"), rows),
            "",
            _accepted(verification["limits"]),
            "",
            *_islands(verification.get("islands", [])),
        ]
    )


def engine_report(target: EngineTarget, engines: Mapping[str, BuiltEngine], folder: Path) -> str:
    """Markdown: engine sizes, and what building each of them took."""
    rows = [_engine_row(name, engine, folder) for name, engine in engines.items()]
    capabilities = ", ".join(target.compute_capabilities)
    return "\n".join(
        [
            "",
            f"## {target.runtime}",
            "",
            f"Engines for compute capability {capabilities}, for {target.shapes}",
            "(smallest:optimal:largest), built from the verified ONNX graphs. Engines themselves have not been run.",
            "",
            *_table(("graph", "MB", "seconds", "peak MB"), rows),
            "",
        ]
    )


def _engine_row(graph: str, engine: BuiltEngine, folder: Path) -> tuple[str, ...]:
    peak = engine.build["peak_bytes"]
    megabytes = f"{(folder / engine.file).stat().st_size / 1e6:.1f}"
    return graph, megabytes, f"{engine.build['seconds']:.1f}", f"{peak / 1e6:.0f}" if peak else "unknown"


def _loop(loop: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    return (
        f"{loop['steps']} steps with guidance, identity, image prompt and pose, against diffusers at equal noise, the "
        f"worst of {loop['pictures']} pictures: **PSNR {loop['psnr']:.1f} dB** (at least {limits['psnr']:.0f}), "
        f"**SSIM {loop['ssim']:.4f}** (at least {limits['ssim']})."
    )


def _effort(effort: Mapping[str, Any]) -> list[str]:
    if not effort.get("reduced"):
        return []
    size = f"{effort['width']} x {effort['height']}"
    text = f"verified with {effort['pictures']} picture of {size} pixels and {effort['steps']} steps"
    return ["", f"The model is large: it was {text}, whose reference is a drawing."]


def _accepted(limits: Mapping[str, float]) -> str:
    return (
        f"Each graph ran on inputs recorded from PyTorch; accepted are cosines from {limits['cosine']} and errors "
        f"up to {limits['relative_error']} of the largest value."
    )


def _row(check: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    numbers = (f"{check['cosine']:.6f}", f"{check['max_error']:.2e}", f"{check['relative_error']:.2e}")
    return check["graph"], f"{sizes[check['graph']] / 1e6:.1f}", check["output"], *numbers


def _islands(islands: Sequence[Mapping[str, str]]) -> list[str]:
    if not islands:
        return ["No float32 islands.", ""]
    rows = [(island["graph"], island["module"], island["reason"]) for island in islands]
    return ["Modules that stay float32:", "", *_table(("graph", "module", "reason"), rows), ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
