"""Tables of what is fast and what that costs: peers on the CPU, levers, exports of true size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from formats import markdown, within
from standings import Case, Row, advantage, best_gated, cases, fastest_peer, gemm_peak, gigabytes, select

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHART = "docs/images/cpu.png"
DECODERS = {"taesd": "a small decoder (TAESD's)", "kl": "the checkpoint's decoder"}
METRICS = {"id_similarity": "ID similarity", "pose_pck10": "POSE accuracy, PCK@0.1", "clip_score": "CLIP score"}
LIMITS: dict[tuple[str, str], dict[str, float]] = {
    ("stable-diffusion", "fp16"): {"onnx": 180, "memory": 8},
    ("stable-diffusion", "tensorrt-rtx"): {"onnx": 180, "engines": 120, "memory": 8},
    ("stable-diffusion", "int8"): {"onnx": 900, "memory": 16},
    ("stable-diffusion", "tensorrt-rtx-int8"): {"onnx": 900, "engines": 120, "memory": 16},
    ("stable-diffusion-xl", "fp16"): {"memory": 20},
}
"""Seconds and gigabytes that an export of a family may take."""


def cpu(results: Path = RESULTS) -> str:
    """Systems by cases, one table for each decoder; ours first, then peers, the fastest first."""
    document = _read(results / "cpu.json")
    if document is None:
        return unmeasured("benchmarks/peers/compare.py")
    rows = document["rows"]
    tables = [
        f"With {title}:\n\n{_systems(rows, vae)}"
        for vae, title in DECODERS.items()
        if any(row["vae"] == vae for row in rows)
    ]
    drawn = [f"![Seconds a picture by system]({CHART})\n"] if (ROOT / CHART).exists() else []
    return "\n".join([*drawn, *tables, _standing(rows), _setting(document, _read(results / "footprint.json"))])


def levers(results: Path = RESULTS) -> str:
    """One table for each group of levers."""
    document = _read(results / "levers.json")
    if document is None:
        return unmeasured("benchmarks/levers.py")
    groups = dict.fromkeys(row["group"] for row in document["rows"])
    return "\n".join(_levers([row for row in document["rows"] if row["group"] == group]) for group in groups)


def export(results: Path = RESULTS) -> str:
    """What it takes to export models of true size, beside what it may take."""
    document = _read(results / "export.json")
    if document is None:
        return unmeasured("benchmarks/true_size_export.py")
    header = ("export", "to ONNX, verified", "engines", "peak memory", "memory of the engines' builder", "bundle")
    setup = document["rows"][-1]["setup"]
    note = f"{setup['cpu']}, {setup['cores']} cores; commit {(setup['commit'] or '')[:9]}."
    return f"{markdown(header, [_export(row) for row in document['rows']])}\nIn brackets: the limit. {note}\n"


def unmeasured(script: str) -> str:
    return f"Not measured yet: `python {script}`.\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _systems(rows: Sequence[Row], vae: str) -> str:
    found = [case for case in cases(rows) if select(rows, case, vae)]
    cells = {case: select(rows, case, vae) for case in found}
    names: dict[str, Row] = {name: row for case in found for name, row in cells[case].items()}
    order = sorted(names, key=lambda name: (not names[name]["ours"], _pace(name, cells)))
    lines = [
        (
            _title(name, cells),
            *(_cell(cells[case].get(name), best_gated(rows, case, vae)) for case in found),
            *_weight(name, cells),
        )
        for name in order
    ]
    return markdown(("seconds a picture", *map(str, found), "peak memory", "start to first picture"), lines)


def _pace(name: str, cells: Mapping[Case, Mapping[str, Row]]) -> float:
    """Mean of its ratios, to bring systems into an order that were not all measured in the same cases."""
    ratios = [rows[name]["ratio"] for rows in cells.values() if name in rows]
    return sum(ratios) / len(ratios)


def _title(name: str, cells: Mapping[Case, Mapping[str, Row]]) -> str:
    """Says of ours in which cases the levers have not passed."""
    failing = [str(case) for case, rows in cells.items() if name in rows and rows[name]["gated"] is False]
    if not failing:
        return name
    everywhere = len(failing) == sum(name in rows for rows in cells.values())
    return f"{name}, not gated" if everywhere else f"{name}, not gated at {'; '.join(failing)}"


def _cell(row: Row | None, best: Row | None) -> str:
    """Median, quartiles, and how many times as long as our best gated configuration."""
    if row is None:
        return ""
    low, high = row["spread"]
    longer = advantage(best, row)
    times = "" if longer is None else f", {longer:.2f} x"
    return f"**{_seconds(row['seconds_per_image'])}** ({_seconds(low)}–{_seconds(high)}){times}"


def _seconds(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1}f}"


def _weight(name: str, cells: Mapping[Case, Mapping[str, Row]]) -> tuple[str, str]:
    """Of the largest single picture that it made: peak memory, and process start to first picture."""
    case, row = max(
        ((case, rows[name]) for case, rows in cells.items() if name in rows),
        key=lambda pair: (-pair[0].batch, pair[0].size, -pair[0].steps),
    )
    start = row["ready_seconds"] + row["first_picture_seconds"]
    return f"{gigabytes(row['rss_mb']):.1f} GB ({case.size} px)", f"{start:.1f} s"


def _standing(rows: Sequence[Row]) -> str:
    """Our best gated configuration against the fastest peer, case by case."""
    sentences = []
    for case in cases(rows):
        for vae, title in DECODERS.items():
            best, peer = best_gated(rows, case, vae), fastest_peer(rows, case, vae)
            if (times := advantage(best, peer)) is not None:
                sentences.append(f"{case}, {title}: {best['system']} is {times:.2f} times as fast as {peer['system']}.")
    gated = (
        "x: times as long as our best gated configuration; gated: the same levers passed the body gates on avatar as "
        "it was in docs/levers.md."
    )
    return "\n".join([gated, *sentences]) + "\n"


def _setting(document: Mapping[str, Any], footprint: Mapping[str, Any] | None) -> str:
    setup, peak = document["setup"], gemm_peak(document)
    shares = [row for row in document["rows"] if "denoiser_of_peak" in row and row["guidance"] == 1]
    reached = ", ".join(f"{row['denoiser_of_peak']:.0%} at {row['size']} px" for row in _first_of_each_size(shares))
    denoiser = f" Our bf16 denoiser reaches of this machine's {peak} GFLOP/s in bf16: {reached}." if reached else ""
    installed = f" The runtime takes {footprint['total_mb']:.0f} MB on disk." if footprint else ""
    machine = f"{setup['cpu']}, {setup['cores']} cores; commit {(setup['commit'] or '')[:9]}."
    return f"Medians (quartiles), in turns.{denoiser}{installed} {machine}\n"


def _first_of_each_size(rows: Sequence[Row]) -> list[Row]:
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(row["size"], row)
    return [found[size] for size in sorted(found)]


def _levers(rows: Sequence[Row]) -> str:
    """The first is what the others are compared with."""
    header = (rows[0]["group"], "speed-up", *METRICS.values(), "PSNR, dB", "gates")
    lines = [
        (
            f"`{row['lever']}`" if row["lever"] else f"unaccelerated: {_base(row)}",
            f"{row['speed_up']['median']:.2f}",
            *(_change(row, name) for name in METRICS),
            f"{row['psnr']['value']:.1f}" if row["psnr"] else "",
            _state(row) if row["lever"] else "",
        )
        for row in rows
    ]
    note = f"{rows[0]['pictures']} pictures each; in brackets the mean paired difference and its 95 % interval."
    return f"{markdown(header, lines)}\n{note}\n"


def _base(row: Row) -> str:
    sampling = row["sampling"]
    guided = "" if sampling["guidance"] == 1 else f", guidance {sampling['guidance']:g}"
    return f"`{row['bundle']}`, {row['backend']}, {sampling['steps']} steps of {sampling['sampler']}{guided}"


def _change(row: Row, name: str) -> str:
    value, difference = row["metrics"][name]["value"], row["differences"][name]
    if not row["lever"]:
        return f"{value:.3f}"
    low, high = difference["ci95"]
    return f"{value:.3f} ({difference['value']:+.3f}: {low:+.3f} to {high:+.3f})"


def _state(row: Row) -> str:
    """The worst of the gates; `open` where there are too few pictures to tell."""
    states = {gate["state"].partition(":")[0] for gate in row["gates"].values()}
    return next((state for state in ("failed", "open") if state in states), "passed")


def _export(row: Row) -> tuple[str, ...]:
    limits = LIMITS.get((row.get("family", "stable-diffusion"), row["export"]), {})
    engines, builder = row["engine_seconds"], row["engine_rss_mb"]
    return (
        f"{row['model']}, {row['export']}",
        within(row["seconds"] - engines, limits.get("onnx"), "s"),
        within(engines, limits.get("engines"), "s") if engines else "",
        within(gigabytes(row["rss_mb"]), limits.get("memory"), "GB", 2),
        f"{gigabytes(builder):.2f} GB" if builder else "",
        f"{row['bytes'] / 1e9:.2f} GB",
    )
