"""Whether one bundle draws people as well as another: the same people, prompts, poses and noise, judged in pairs.

What is subject to chance is the difference of a pair, which is far smaller than either picture's own score. The gate
asks that the drop is within its limit with 97.5 % certainty: too few pictures do not pass, they leave it open.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk import Generator, Identity
from bolid_training.data import People
from bolid_training.evaluate.drawn import draw
from bolid_training.evaluate.exam import look, scores, set_exam
from bolid_training.evaluate.intervals import rounded, summary
from bolid_training.evaluate.known import identify
from bolid_training.evaluate.protocol import Trial
from bolid_training.judges.panel import Judges


@dataclass(frozen=True, kw_only=True)
class Limit:
    """By how much a metric's mean may drop: absolutely, or as a fraction of the baseline's mean."""

    drop: float
    relative: bool = False


LIMITS = {
    "id_similarity": Limit(drop=0.01),
    "pose_pck10": Limit(drop=0.01),
    "skeleton_pck10": Limit(drop=0.01),
    "clip_score": Limit(drop=0.01, relative=True),
}


def compare_bundles(
    candidate: Generator,
    baseline: Generator,
    judges: Judges,
    people: People,
    trials: list[Trial],
    seed: int = 0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Every metric's mean for both, mean and interval of the paired differences, and the gates' verdict (`passed`).

    `keep`: a folder for people and pictures, as of `compare`.
    """
    pairs = _accepted_by_both(candidate, baseline, people, trials, keep)
    by_candidate = [(trial, identity) for trial, identity, _ in pairs]
    by_baseline = [(trial, identity) for trial, _, identity in pairs]
    exam = set_exam(judges, people, by_baseline)
    reference = look(judges, exam, exam.references)
    found, expected = (
        scores(exam, look(judges, exam, draw(keep, generator, accepted, seed)), reference, exam.prompts)
        for generator, accepted in ((candidate, by_candidate), (baseline, by_baseline))
    )
    return {
        "pictures": len(pairs),
        "people": len(np.unique(exam.people)),
        "references_refused": len(trials) - len(pairs),
        **verdict(found, expected, exam.people),
    }


def verdict(
    found: dict[str, NDArray[np.float64]], expected: dict[str, NDArray[np.float64]], people: NDArray[np.int64]
) -> dict[str, Any]:
    """Of values for each picture [N] by metric; `people` [N] says whose it is."""
    metrics = {
        name: {
            "candidate": round(float(np.nanmean(values)), 4),
            "baseline": round(float(np.nanmean(expected[name])), 4),
            "difference": summary(values - expected[name], people),
        }
        for name, values in found.items()
    }
    gates = {name: _gate(limit, metrics[name]) for name, limit in LIMITS.items()}
    return {"metrics": metrics, "gates": gates, "passed": all(gate["passed"] for gate in gates.values())}


def _gate(limit: Limit, metric: dict[str, Any]) -> dict[str, Any]:
    unit = metric["baseline"] if limit.relative else 1.0
    low, high = metric["difference"]["ci95"]
    least, most = -high / unit, -low / unit
    state = "passed" if most <= limit.drop else "failed" if least > limit.drop else "open: more pictures are needed"
    return {
        "limit": limit.drop,
        "relative": limit.relative,
        "drop": rounded(-metric["difference"]["value"] / unit, least, most),
        "passed": most <= limit.drop,
        "state": state,
    }


def _accepted_by_both(
    candidate: Generator, baseline: Generator, people: People, trials: list[Trial], keep: Path | None
) -> list[tuple[Trial, Identity, Identity]]:
    """Each reference that both bundles find a person in, as each of them sees it."""
    by_baseline = identify(baseline, people, trials, keep=keep)
    expected = dict(by_baseline)
    by_candidate = identify(candidate, people, list(expected), keep=keep)
    return [(trial, identity, expected[trial]) for trial, identity in by_candidate]
