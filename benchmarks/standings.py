"""Who is how fast, from the rows of cpu.json: what the table, the chart and the verdict have in common.

Every session of the comparison has BoLID in bfloat16 (`OURS`) as its first system, so the ratio of two systems that
were never measured side by side is that of their ratios to it, round by round; a slower hour cancels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OURS = "BoLID, OpenVINO bf16"
DIFFUSERS = "diffusers + IP-Adapter bf16"
OPENVINO = "plain OpenVINO bf16"
OWN_DECODER = "kl"
"""The checkpoint's own autoencoder; `taesd` is a small one in its place."""

Row = Mapping[str, Any]


@dataclass(frozen=True, order=True, kw_only=True)
class Case:
    """What is drawn: a square picture of `size` pixels."""

    size: int
    steps: int
    batch: int = 1

    def __str__(self) -> str:
        batch = f", {self.batch} at once" if self.batch > 1 else ""
        return f"{self.size} px, {self.steps} steps{batch}"


def case_of(row: Row) -> Case:
    return Case(size=row["size"], steps=row["steps"], batch=row["batch"])


def cases(rows: Iterable[Row]) -> list[Case]:
    """One picture before several, few steps before many."""
    return sorted({case_of(row) for row in rows}, key=lambda case: (case.batch, case.steps, case.size))


def select(rows: Iterable[Row], case: Case, vae: str | None = None) -> dict[str, Row]:
    """One row for each system: with that decoder, or with None the faster. Of several measurements the first counts."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if case_of(row) == case and vae in (None, row["vae"]):
            found.setdefault((row["system"], row["vae"]), row)
    best: dict[str, Row] = {}
    for (system, _), row in found.items():
        if system not in best or row["seconds_per_image"] < best[system]["seconds_per_image"]:
            best[system] = row
    return best


def fastest_peer(rows: Iterable[Row], case: Case, vae: str) -> Row | None:
    return _fastest(row for row in select(rows, case, vae).values() if not row["ours"])


def best_gated(rows: Iterable[Row], case: Case, vae: str | None = None) -> Row | None:
    """The fastest of ours whose levers have passed the body gates."""
    return _fastest(row for row in select(rows, case, vae).values() if row["ours"] and row["gated"])


def advantage(ours: Row | None, peer: Row | None) -> float | None:
    """How many times as fast ours is; None where one of them was not measured."""
    if ours is None or peer is None:
        return None
    if ours["vae"] == peer["vae"] and ours["compared_with"] == peer["compared_with"]:
        return peer["ratio"] / ours["ratio"]
    return peer["seconds_per_image"] / ours["seconds_per_image"]


def gigabytes(mebibytes: float) -> float:
    """Of 10^9 bytes; what Linux says of a process is in units of 1,024."""
    return mebibytes * 2**20 / 1e9


def gemm_peak(document: Mapping[str, Any]) -> float | None:
    """bf16 GFLOP/s: the fastest of all minutes."""
    return max((peak["bf16_gflops"] for peak in document.get("gemm", {}).values()), default=None)


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row["seconds_per_image"], default=None)
