"""What was promised for the CPU, what has been reached, and whether it holds.

    python benchmarks/verdict.py             a line for each promise; exit code 1 unless all of them hold
    python benchmarks/verdict.py --json

From benchmarks/results: cpu.json (peers/compare.py), avatar.json (`make bench`), footprint.json (footprint.py), and
docs/results/few_steps.json (`bolid-eval compare`). What has not been measured does not hold.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from standings import (
    DIFFUSERS,
    OPENVINO,
    OURS,
    OWN_DECODER,
    Case,
    Row,
    advantage,
    best_gated,
    case_of,
    cases,
    fastest_peer,
    gigabytes,
    select,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = {
    "cpu": RESULTS / "cpu.json",
    "avatar": RESULTS / "avatar.json",
    "footprint": RESULTS / "footprint.json",
    "few_steps": ROOT / "docs" / "results" / "few_steps.json",
    "manifest": ROOT / "engines" / "avatar" / "manifest.json",
}
FEW = (Case(size=256, steps=4), Case(size=512, steps=4))
DEFAULT_BACKEND = "onnxruntime"
TEACHER = "guided25"
QUALITY = {"id_similarity": "absolute", "pose_pck10": "absolute", "clip_score": "relative"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """`value` against `limit`, at least or at most; None has not been measured."""

    promise: str
    value: float | None
    limit: float
    at_least: bool = True
    unit: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        verdict = "not measured" if self.value is None else "holds" if self.holds else "FALLS SHORT"
        value = "-" if self.value is None else f"{self.value:.3g}{self.unit}"
        sign = ">=" if self.at_least else "<="
        note = f"  ({self.note})" if self.note else ""
        return f"{verdict:12} {value:>9}  {sign} {self.limit:g}{self.unit}  {self.promise}{note}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def checks(found: Mapping[str, Any]) -> list[Check]:
    """Of the documents that there are, by name as in SOURCES."""
    rows = found.get("cpu", {}).get("rows", [])
    return [
        *few_steps_checks(rows),
        *many_steps_checks(rows),
        *plain_checks(rows),
        *arithmetic_checks(rows),
        *memory_checks(rows),
        *embedded_checks(found.get("avatar"), found.get("footprint")),
        *default_checks(found.get("manifest"), found.get("few_steps")),
    ]


def few_steps_checks(rows: Sequence[Row]) -> Iterator[Check]:
    """Ours at its best against peers with the checkpoint's own decoder, then with the same decoder on both sides."""
    for case in FEW:
        ours = best_gated(rows, case)
        peer = fastest_peer(rows, case, OWN_DECODER)
        yield compared(f"{case}: the fastest peer with the checkpoint's decoder", ours, peer, 2.5)
        yield compared(
            f"{case}: diffusers bf16 with the same", ours, select(rows, case, OWN_DECODER).get(DIFFUSERS), 5.0
        )
        for vae in decoders(rows, case):
            yield compared(
                f"{case}: the fastest peer, {vae} on both sides",
                best_gated(rows, case, vae),
                fastest_peer(rows, case, vae),
                2.0,
            )


def many_steps_checks(rows: Sequence[Row]) -> Iterator[Check]:
    many = [case for case in cases(rows) if case.steps == 20 and case.batch == 1] or [Case(size=256, steps=20)]
    for case in many:
        for vae in decoders(rows, case):
            promise = f"{case}: the fastest peer, {vae} on both sides"
            yield compared(promise, best_gated(rows, case, vae), fastest_peer(rows, case, vae), 3.0)


def plain_checks(rows: Sequence[Row]) -> Iterator[Check]:
    """bf16, no caching, same decoder: ours carries identity and pose, the other does not. The worst case counts."""
    pairs = [
        (select(rows, case, vae).get(OURS), select(rows, case, vae).get(OPENVINO), f"{case}, {vae}")
        for case in cases(rows)
        for vae in decoders(rows, case)
    ]
    measured = [(value, note) for ours, peer, note in pairs if (value := advantage(ours, peer)) is not None]
    value, note = min(measured, default=(None, ""))
    yield Check(
        promise="without any lever, against the plain OpenVINO pipeline",
        value=value,
        limit=1.0,
        unit="x",
        note=f"the worst of {len(measured)} cases: {note}" if note else "",
    )


def arithmetic_checks(rows: Sequence[Row]) -> Iterator[Check]:
    for case in FEW:
        reached = [
            row["denoiser_of_peak"]
            for row in rows
            if row["system"] == OURS and case_of(row) == case and "denoiser_of_peak" in row
        ]
        promise = f"{case}: the bf16 denoiser's share of the matrix products' peak in the same run"
        yield Check(promise=promise, value=max(reached, default=None), limit=0.8)


def memory_checks(rows: Sequence[Row]) -> Iterator[Check]:
    for promise, precision, limit in (("fp16 on disk", "fp32", 3.5), ("int8", "int8", 2.5)):
        peaks = [
            gigabytes(row["rss_mb"])
            for row in rows
            if row["ours"]
            and (row["applied"]["backend"], row["applied"]["precision"]) == ("openvino", precision)
            and (row["size"], row["batch"]) == (512, 1)
        ]
        yield Check(
            promise=f"peak memory of SD1.5 at 512 px, {promise}",
            value=max(peaks, default=None),
            limit=limit,
            at_least=False,
            unit=" GB",
        )


def embedded_checks(avatar: Mapping[str, Any] | None, footprint: Mapping[str, Any] | None) -> Iterator[Check]:
    """With the library that nobody has to ask for."""
    measured = {
        row["name"]: row["median_ms"] for row in (avatar or {}).get("results", []) if row["backend"] == DEFAULT_BACKEND
    }
    for name, promise, limit in (
        ("process start to file (`bolid-infer`)", "embedded model, process start to file", 1000),
        ("picture from a reference", "embedded model, a warm picture", 150),
    ):
        yield Check(
            promise=promise, value=measured.get(name), limit=limit, at_least=False, unit=" ms", note=DEFAULT_BACKEND
        )
    total = footprint["total_mb"] if footprint else None
    yield Check(promise="runtime install, engines included", value=total, limit=250, at_least=False, unit=" MB")


def default_checks(manifest: Mapping[str, Any] | None, few_steps: Mapping[str, Any] | None) -> Iterator[Check]:
    """Few steps without guidance are what the embedded bundle does by default; caching and intervals must be off."""
    sampling = (manifest or {}).get("sampling")
    if sampling is not None:
        levers = int(sampling["caching"] != "off") + int(tuple(sampling["guidance_interval"]) != (0.0, 1.0))
        yield Check(promise="levers on by default beside few steps", value=levers, limit=0, at_least=False)
    models = {row["model"]: row for row in (few_steps or {}).get("rows", [])}
    teacher = models.get(TEACHER)
    for name, kind in QUALITY.items():
        drop, note = None, ""
        if teacher:
            difference = teacher["minus_first_row"][name]
            unit = teacher["metrics"][name]["value"] if kind == "relative" else 1.0
            drop = difference["value"] / unit
            low, high = (end / unit for end in difference["ci95"])
            note = f"95 % interval {low:+.4f} to {high:+.4f}"
        yield Check(
            promise=f"default settings, drop of {name} against 25 guided steps, {kind}",
            value=drop,
            limit=0.01,
            at_least=False,
            note=note,
        )


def decoders(rows: Iterable[Row], case: Case) -> list[str]:
    """Those that a peer was measured with, or one, so that what was not measured is said."""
    return sorted({row["vae"] for row in rows if not row["ours"] and case_of(row) == case}) or [OWN_DECODER]


def compared(promise: str, ours: Row | None, peer: Row | None, limit: float) -> Check:
    names = [f"{row['system']}, {row['vae']}: {row['seconds_per_image']:.3g} s" for row in (ours, peer) if row]
    return Check(promise=promise, value=advantage(ours, peer), limit=limit, unit="x", note=" against ".join(names))


def main() -> None:
    found = {name: json.loads(path.read_text()) for name, path in SOURCES.items() if path.exists()}
    results = checks(found)
    if "--json" in sys.argv[1:]:
        print(json.dumps([check.to_dict() for check in results], indent=2))
    else:
        print("\n".join(map(str, results)))
    sys.exit(not all(check.holds for check in results))


if __name__ == "__main__":
    main()
