"""The verification as a person reads it: in the terminal, and as report.md in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def report(name: str, precision: str, verification: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Markdown. `verification` as in the manifest; `sizes`: bytes of each graph."""
    rows = [_row(check, sizes) for check in verification["graphs"]]
    return "\n".join(
        [
            f"# {name}, {precision}",
            "",
            _loop(verification["loop"], verification["limits"]),
            "",
            *_table(("graph", "MB", "output", "cosine", "max error", "relative"), rows),
            "",
            _accepted(verification["limits"]),
            "",
            *_islands(verification.get("islands", [])),
        ]
    )


def _loop(loop: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    return (
        f"{loop['steps']} steps with guidance, identity, image prompt and pose, against diffusers at equal noise, the "
        f"worst of {loop['pictures']} pictures: **PSNR {loop['psnr']:.1f} dB** (at least {limits['psnr']:.0f}), "
        f"**SSIM {loop['ssim']:.4f}** (at least {limits['ssim']})."
    )


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
