"""The verification as a person reads it: in the terminal, and as report.md in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bolid_export.engines.target import EngineTarget
from bolid_sdk.built_engine import BuiltEngine


def report(name: str, precision: str, verification: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Markdown. `verification` as in the manifest; `sizes`: bytes of each graph."""
    others = [line for other in verification.get("also", []) for line in _by_another(other, sizes)]
    return "\n".join(
        [
            f"# {name}, {precision}",
            "",
            *_checks(verification, sizes, _effort(verification.get("effort", {}))),
            *_gate(verification.get("gate")),
            *_quantised(verification.get("quantised", [])),
            *_islands(verification.get("islands", [])),
            *others,
        ]
    )


def _by_another(verification: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    return [f"## {verification['library']}", "", *_checks(verification, sizes)]


def _checks(verification: Mapping[str, Any], sizes: Mapping[str, int], effort: Sequence[str] = ()) -> list[str]:
    """What one library's run of the loop and of each graph came to."""
    rows = [_row(check, sizes) for check in verification["graphs"]]
    return [
        _loop(verification),
        *effort,
        "",
        *_table(("graph", "MB", "output", "cosine", "max error", "relative"), rows),
        "",
        _accepted(verification),
        "",
    ]


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


def _loop(verification: Mapping[str, Any]) -> str:
    loop, limits = verification["loop"], verification.get("bfloat16_limits", verification["limits"])
    graphs = {check["graph"] for check in verification["graphs"]}
    parts = {"image_projector": "image prompt", "pose_guider": "pose"}
    conditions = ", ".join(["identity", *(name for graph, name in parts.items() if graph in graphs)])
    return (
        f"Run by {verification['library']}: {loop['steps']} steps with guidance, {conditions}, against diffusers at "
        f"equal noise, the worst of {loop['pictures']} pictures: **PSNR {loop['psnr']:.1f} dB** (at least "
        f"{limits['psnr']:.0f}), **SSIM {loop['ssim']:.4f}** (at least {limits['ssim']})."
    )


def _effort(effort: Mapping[str, Any]) -> list[str]:
    if not effort.get("reduced"):
        return []
    size = f"{effort['width']} x {effort['height']}"
    text = f"verified with {effort['pictures']} picture of {size} pixels and {effort['steps']} steps"
    return ["", f"The model is large: it was {text}, whose reference is a drawing."]


def _accepted(verification: Mapping[str, Any]) -> str:
    accepted = _bounds(verification["limits"])
    if "bfloat16" in verification:
        accepted += f"; of {', '.join(verification['bfloat16'])}, which run in bfloat16, "
        accepted += _bounds(verification["bfloat16_limits"])
    return f"Each graph ran on inputs recorded from PyTorch; accepted are {accepted}."


def _bounds(limits: Mapping[str, float]) -> str:
    return f"cosines from {limits['cosine']} and errors up to {limits['relative_error']} of the largest value"


def _row(check: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    numbers = (f"{check['cosine']:.6f}", f"{check['max_error']:.2e}", f"{check['relative_error']:.2e}")
    return check["graph"], f"{sizes[check['graph']] / 1e6:.1f}", check["output"], *numbers


def _gate(gate: Mapping[str, Any] | None) -> list[str]:
    """The answer of `bolid-eval --against`, or that of another command without its details."""
    if gate is None:
        return []
    title = f"Accepted by `{gate['command']}`"
    if "gates" not in gate:
        return [f"{title}.", ""]
    title += f", {gate['pictures']} pictures of {gate['people']} people, in pairs with the same noise:"
    rows = [
        (name, str(row["drop"]["value"]), "{} to {}".format(*row["drop"]["ci95"]), str(row["limit"]))
        for name, row in gate["gates"].items()
    ]
    return [title, "", *_table(("metric", "drop", "95 % interval", "at most"), rows), ""]


def _quantised(graphs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What int8 covers, for an int8 bundle."""
    if not graphs:
        return []
    rows = [(g["graph"], str(g["layers"]), f"{100 * g['work']:.1f} %", f"{100 * g['error']:.2f} %") for g in graphs]
    title = "int8 by explicit, symmetric Q/DQ; `error`: of inputs that no range was taken from, in deviations:"
    return [title, "", *_table(("graph", "layers", "of the multiply-adds", "error"), rows), ""]


def _islands(islands: Sequence[Mapping[str, str]]) -> list[str]:
    if not islands:
        return ["No float32 islands.", ""]
    alike: dict[tuple[str, str], list[str]] = {}
    for island in islands:
        alike.setdefault((island["graph"], island["reason"]), []).append(island["module"])
    rows = [(graph, _named(modules), reason) for (graph, reason), modules in alike.items()]
    return [
        "Modules that stay float32 (manifest.json names all):",
        "",
        *_table(("graph", "module", "reason"), rows),
        "",
    ]


def _named(modules: Sequence[str]) -> str:
    return modules[0] if len(modules) == 1 else f"{modules[0]} and {len(modules) - 1} more"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
