"""Whether what a system of ours does to quality passes the body gates on avatar, where quality can be measured.

SD1.5 here has random weights, so its pictures cannot be judged; the same lever can, on the embedded model. A lever that
was not measured is not gated. Run by itself, this tells cpu.json what levers.json says by now.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bolid_sdk.sampling import ResolvedSampling

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LEVERS, CPU = RESULTS / "levers.json", RESULTS / "cpu.json"
INT8 = ROOT / "engines" / "avatar-int8" / "manifest.json"

Rows = Sequence[Mapping[str, Any]]
PATH = ("sampler", "spacing", "eta")


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What one of our systems does: `caching` and other fields of Sampling in `sampling`, over what a case asks for."""

    backend: str
    precision: str
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def plan(self, steps: int, guidance: float) -> list[tuple[bool, int]]:
        """Full or shallow, and branches, of each step: two names for the same steps are one lever."""
        case = {"steps": steps, "guidance": guidance, "sampler": "ddim", "spacing": "trailing"}
        planned = ResolvedSampling(**{**case, **self.sampling}).plan()
        return [(step.full, step.branches) for step in planned]

    @property
    def exact(self) -> bool:
        """Float32 on ONNX Runtime and every step whole: nothing that could cost quality."""
        return (self.backend, self.precision, dict(self.sampling)) == ("onnxruntime", "fp32", {})


def is_gated(applied: Applied, steps: int, guidance: float, levers: Rows, int8_passed: bool = False) -> bool:
    """By the rows of levers.json: one with the same library and precision, and the same steps, of as many.

    An int8 bundle's own gate (`bolid-export --gate`) counts for it where no row does, without other levers.
    """
    if applied.exact:
        return True
    plan = applied.plan(steps, guidance)
    for row in levers:
        base = base_of(row, levers)
        same_path = all(row["sampling"][name] == base["sampling"][name] for name in ("steps", "guidance", *PATH))
        same_place = (row["backend"], row["precision"]) == (applied.backend, applied.precision)
        # the steps that were run: what a name like caching=fast plans may have changed since
        if same_path and same_place and [tuple(step) for step in row["plan"]] == plan:
            return bool(row["passed"])
    unguided = guidance == 1.0 and all(full for full, _ in plan)
    return applied.precision == "int8" and unguided and not applied.sampling and int8_passed


def base_of(row: Mapping[str, Any], levers: Rows) -> Mapping[str, Any]:
    """The row that it was compared with."""
    return next(other for other in levers if other["group"] == row["group"] and not other["lever"])


def read_levers(path: Path = LEVERS) -> list[dict[str, Any]]:
    """Nothing where nothing has been measured."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def read_int8_gate(path: Path = INT8) -> bool:
    """What the gate said that the export of the embedded model's int8 bundle asked."""
    gate = json.loads(path.read_text())["verification"].get("gate", {}) if path.exists() else {}
    return gate.get("passed") is True


def update(rows: Rows, levers: Rows, int8_passed: bool) -> list[dict[str, Any]]:
    """`rows` of cpu.json with `gated` as the levers say; peers have none."""
    return [
        {
            **row,
            "gated": is_gated(Applied(**row["applied"]), row["steps"], row["guidance"], levers, int8_passed)
            if row["ours"]
            else None,
        }
        for row in rows
    ]


def main() -> None:
    document = json.loads(CPU.read_text())
    document["rows"] = update(document["rows"], read_levers(), read_int8_gate())
    CPU.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
