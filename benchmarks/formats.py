"""Numbers and tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    rule = ("---", *("---:" for _ in header[1:]))
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def precise(milliseconds: float) -> str:
    """About three digits."""
    return f"{milliseconds:.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2}f}"


def interval(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    if "ci95" not in summary:
        return f"{summary['value']:.2f}"
    low, high = summary["ci95"]
    return f"**{summary['value']:.3f}** ({low:.3f}–{high:.3f})"


def within(value: float, limit: float | None, unit: str, digits: int = 0) -> str:
    """A value beside its upper limit, marked where it is exceeded."""
    text = f"**{value:.{digits}f} {unit}**"
    if limit is None:
        return text
    return f"{text} (≤ {limit:g}{'' if value <= limit else ', **exceeded**'})"
