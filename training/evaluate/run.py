"""Generates every trial through the SDK and measures it."""

import platform
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from bolid_sdk import Generator, Identity
from bolid_sdk.backends import open_backend
from bolid_sdk.contracts import MIN_CONFIDENCE
from bolid_sdk.errors import InputError
from bolid_sdk.graphs import Graphs
from bolid_sdk.pose import draw_skeleton, estimate_pose
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People
from bolid_training.evaluate.metrics import clothes_colours, colour_distance, keypoint_errors, pck, summary
from bolid_training.evaluate.protocol import Trial
from bolid_training.evaluate.provenance import commit, cpu_name

BATCH = 8


def evaluate(generator: Generator, people: People, trials: list[Trial], seed: int = 0) -> dict[str, Any]:
    """Metrics of one picture for each trial, with ceilings (the reference itself) and floors (somebody else).

    Pose is measured twice: against the reference's exact keypoints, and against the skeleton that was estimated there
    and drawn for the guider. The first has the errors of two estimates in it, the second tells how it was followed.
    """
    accepted = identify(generator, people, trials)
    kept = [trial for trial, _ in accepted]
    generated = generate(generator, accepted, seed)
    indices = [trial.index for trial in kept]
    truth, references = people.keypoints[indices], people.images[indices]
    kept_poses = np.stack([identity.keypoints for _, identity in accepted])
    shown = np.concatenate([kept_poses[..., :2], kept_poses[..., 2:] >= MIN_CONFIDENCE], -1)
    found = estimate(generator, generated)
    drawn_errors, followed_errors = keypoint_errors(found, truth), keypoint_errors(found, shown)
    real_errors = keypoint_errors(kept_poses, truth)
    other_errors = keypoint_errors(np.roll(truth, 1, 0), truth)
    parts = people.parts[indices]
    real = np.stack([clothes_colours(i, p) for i, p in zip(references, parts, strict=True)])
    drawn = np.stack([clothes_colours(i, p) for i, p in zip(generated, parts, strict=True)])
    return {
        "pictures": len(kept),
        "references_refused": len(trials) - len(kept),
        "metrics": {
            "pose_pck10": summary(pck(drawn_errors, 0.1)),
            "pose_pck05": summary(pck(drawn_errors, 0.05)),
            "skeleton_pck10": summary(pck(followed_errors, 0.1)),
            "clothes_colour_distance": summary(colour_distance(drawn, real)),
        },
        "ceilings": {
            "pose_pck10": summary(pck(real_errors, 0.1)),
            "pose_pck05": summary(pck(real_errors, 0.05)),
            "skeleton_pck10": {"value": 1.0},
            "clothes_colour_distance": {"value": 0.0},
        },
        "floors": {
            "pose_pck10": summary(pck(other_errors, 0.1)),
            "pose_pck05": summary(pck(other_errors, 0.05)),
            "skeleton_pck10": summary(pck(keypoint_errors(np.roll(shown, 1, 0), shown), 0.1)),
            "clothes_colour_distance": summary(colour_distance(np.roll(real, 1, 0), real)),
        },
        "by_pose": {
            pose: summary(pck(drawn_errors[[t.pose == pose for t in kept]], 0.1))
            for pose in sorted({trial.pose for trial in kept})
        },
    }


def identify(generator: Generator, people: People, trials: list[Trial]) -> list[tuple[Trial, Identity]]:
    """The trials whose reference the SDK accepts; the others are counted as refused."""
    accepted = []
    for trial in trials:
        try:
            accepted.append((trial, generator.identify(Image.fromarray(people.images[trial.index]))))
        except InputError:
            continue
    return accepted


def generate(generator: Generator, accepted: list[tuple[Trial, Identity]], seed: int) -> NDArray[np.uint8]:
    """One picture [B, H, W, 3] for each trial."""
    requests = [(identity, trial.prompt) for trial, identity in accepted]
    pictures = []
    for start in tqdm(range(0, len(requests), BATCH), desc="pictures", unit=f"x{BATCH}", dynamic_ncols=True):
        results = generator.batch(requests[start : start + BATCH], seed=seed + start)
        pictures += [np.asarray(result.image) for result in results]
    return np.stack(pictures)


def estimate(generator: Generator, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Keypoints [B, 12, 3] by the bundle's pose estimator, without its thresholds."""
    sizes = generator.bundle.manifest.sizes
    estimator = Graphs(generator.bundle, open_backend(None, "auto", None))["pose_estimator"]
    size = (sizes.pose_height, sizes.pose_width)
    return np.stack([estimate_pose(estimator, Image.fromarray(image), size).keypoints for image in images])


def sheet(generator: Generator, people: People, trials: list[Trial], rows: int = 10, seeds: int = 4) -> Image.Image:
    """Rows of reference, pose, and `seeds` pictures of the first accepted trials; the prompt stands under them."""
    cells, labels = [], []
    for trial, identity in identify(generator, people, trials[: 3 * rows])[:rows]:
        reference = people.images[trial.index]
        skeleton = draw_skeleton(identity.keypoints, *reference.shape[:2])
        results = generator.batch([(identity, trial.prompt)] * seeds, seed=0)
        cells += [reference, skeleton, *(np.asarray(result.image) for result in results)]
        labels += ["reference", "pose", trial.prompt, *[""] * (seeds - 1)]
    return contact_sheet(cells, columns=2 + seeds, labels=labels)


def setup(generator: Generator, seed: int) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "bundle": generator.bundle.digest,
        "precision": generator.bundle.manifest.precision,
        "sampling": asdict(generator.bundle.manifest.sampling),
        "backend": generator.backend,
        "seed": seed,
        "machine": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("bolid-sdk", "numpy", "onnxruntime")},
        "normalisation": "PCK thresholds are fractions of the longer side of the box around the true keypoints",
        "pose_network": "the bundle's own pose estimator, which has also estimated the skeleton",
    }
