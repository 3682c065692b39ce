"""Generates every trial through the SDK and has it judged."""

import platform
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk import Generator
from bolid_training.data import People
from bolid_training.evaluate.drawn import draw
from bolid_training.evaluate.exam import GALLERY, Exam, Seen, look, look_at_references, scores, set_exam
from bolid_training.evaluate.intervals import Summary, distance_summary, summary
from bolid_training.evaluate.known import identify
from bolid_training.evaluate.pictures import reconstruct
from bolid_training.evaluate.protocol import Trial
from bolid_training.evaluate.provenance import commit, cpu_name
from bolid_training.judges.panel import Judges

BY_POSE = ("pose_pck10", "id_similarity")


def evaluate(
    generator: Generator,
    judges: Judges,
    people: People,
    trials: list[Trial],
    seed: int = 0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Metrics of one picture for each trial. `keep`: a folder for people and pictures, as of `compare`.

    Beside them stand `ceilings` (the reference in the picture's place), `autoencoded` (the reference through the
    bundle's autoencoder, if the bundle can encode), and `floors` (somebody else's reference).

    Pose is measured twice: against the reference's exact keypoints, and against the skeleton that was estimated there
    and drawn for the guider. The first has the errors of two estimates in it, the second tells how it was followed.
    """
    accepted = identify(generator, people, trials, keep=keep)
    exam = set_exam(judges, people, accepted)
    generated = look(judges, exam, draw(keep, generator, accepted, seed))
    reference = look_at_references(judges, exam, exam.references)
    rebuilt = reconstruct(generator, exam.references, keep)
    return {
        "pictures": len(exam.trials),
        "people": len(np.unique(exam.people)),
        "references_refused": len(trials) - len(accepted),
        "identity_judged": sum(trial.other is not None for trial in exam.trials),
        **compare(exam, generated, reference, None if rebuilt is None else look_at_references(judges, exam, rebuilt)),
    }


def compare(exam: Exam, generated: Seen, reference: Seen, rebuilt: Seen | None = None) -> dict[str, Any]:
    """Summaries of the generated pictures and of those that stand beside them."""
    drawn = scores(exam, generated, reference, exam.prompts)
    shown = scores(exam, reference, reference, exam.true_prompts)
    others = scores(exam, reference.somebody_else(), reference, exam.prompts)
    rows = {
        "metrics": summaries(exam, drawn) | distance(exam, generated),
        "ceilings": summaries(exam, shown) | distance(exam, reference),
        "floors": summaries(exam, others),
        "by_pose": poses(exam, drawn),
    }
    if rebuilt is not None:
        coded = scores(exam, rebuilt, reference, exam.true_prompts)
        rows["autoencoded"] = summaries(exam, coded) | distance(exam, rebuilt)
    return rows


def summaries(exam: Exam, values: dict[str, NDArray]) -> dict[str, Summary]:
    """Of every metric that has a value for each picture."""
    return {name: summary(found, exam.people) for name, found in values.items()}


def distance(exam: Exam, seen: Seen) -> dict[str, Summary]:
    """Of the metric that compares sets of pictures."""
    return {"fd_judge_clip": distance_summary(seen.clip, exam.real, exam.people)}


def poses(exam: Exam, values: dict[str, NDArray]) -> dict[str, dict[str, Summary]]:
    """Summaries of the metrics of `BY_POSE` for each class of poses that has any values."""
    asked = np.array([trial.pose for trial in exam.trials])
    members = {str(pose): asked == pose for pose in np.unique(asked)}
    return {
        name: {
            pose: summary(values[name][there], exam.people[there])
            for pose, there in members.items()
            if np.isfinite(values[name][there]).any()
        }
        for name in BY_POSE
    }


def setup(generator: Generator, judges: Judges, seed: int) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "bundle": generator.bundle.digest,
        "judges": judges.digest,
        "precision": generator.bundle.manifest.precision,
        "sampling": asdict(generator.bundle.manifest.sampling),
        "backend": generator.backend,
        "seed": seed,
        "machine": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("bolid-sdk", "numpy", "onnxruntime", "torch", "transformers")},
        "protocol": PROTOCOL,
    }


PROTOCOL = {
    "intervals": "95 % bootstrap over people; for Frechet distances the basic one, over people and real pictures",
    "id_similarity": "cosine of judge_identity's embeddings of the picture and of another photograph of the person, "
    "where there is one",
    "id_top1": f"share found first among up to {GALLERY} people, by a photograph of each that is not the reference",
    "pose_pck": "judge_pose's keypoints in two looks; thresholds are fractions of the longer side of the true box",
    "pose_pck10_unsided": "PCK@0.1, or with left and right exchanged, as of somebody seen from behind, if it is more",
    "prompts": "the reference's pose, and place and light of another photograph of the split",
    "clip_score": "cosine by judge_clip; real pictures with a prompt that names their own pose, place and light",
    "fd_judge_clip": "Frechet distance of judge_clip's unit image embeddings to the split's other photographs",
    "judges": "trained apart from the model, other architectures and seeds; never a condition, never in a loss",
}
