"""What is asked of a set of pictures, one for each trial, and what the judges answer.

The generated pictures sit the same exam as those that stand beside them in the tables: the references themselves, the
references through the autoencoder, and the references of other people.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from bolid_sdk import Identity
from bolid_sdk.contracts import MIN_CONFIDENCE
from bolid_sdk.errors import InputError
from bolid_training.data import People
from bolid_training.evaluate.metrics import (
    clothes_colours,
    colour_distance,
    cosines,
    found_first,
    keypoint_errors,
    pck,
)
from bolid_training.evaluate.protocol import Trial, true_prompt
from bolid_training.judges.panel import Judges
from bolid_training.model.pose_estimator import FLIP

GALLERY = 100


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Of N trials: `references` [N, H, W, 3] with their labels [N, H, W] and exact keypoints [N, 12, 3]; `skeletons`
    [N, 12, 3] that the SDK estimated and drew; `gallery` [N, D], identity embeddings of other photographs of the
    people, NaN for somebody who has no other; texts' embeddings [N, E] of the prompts and of what the references show;
    `real` [M, E], embeddings of other photographs of the split."""

    trials: list[Trial]
    references: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    truth: NDArray[np.float32]
    skeletons: NDArray[np.float32]
    gallery: NDArray[np.float32]
    prompts: NDArray[np.float32]
    true_prompts: NDArray[np.float32]
    real: NDArray[np.float32]

    @property
    def people(self) -> NDArray[np.int64]:
        """[N]: the identity of each trial."""
        return np.array([trial.identity for trial in self.trials])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen in a picture for each trial: keypoints [N, 12, 3], identity embeddings [N, D], CLIP embeddings
    [N, E], mean colours [N, 2, 3] where the reference has its clothes."""

    keypoints: NDArray[np.float32]
    identity: NDArray[np.float32]
    clip: NDArray[np.float32]
    colours: NDArray[np.float64]

    def somebody_else(self) -> "Seen":
        """Each trial gets the picture of the next."""
        return Seen(**{field.name: np.roll(getattr(self, field.name), 1, 0) for field in fields(self)})


def set_exam(judges: Judges, people: People, accepted: list[tuple[Trial, Identity]]) -> Exam:
    """The exam of the trials whose references were accepted.

    Raises InputError if nobody has a photograph to be compared with.
    """
    trials = [trial for trial, _ in accepted]
    indices = [trial.index for trial in trials]
    estimated = np.stack([identity.keypoints for _, identity in accepted])
    others = np.setdiff1d(np.flatnonzero(people.photos), indices)
    return Exam(
        trials=trials,
        references=people.images[indices],
        parts=people.parts[indices],
        truth=people.keypoints[indices],
        skeletons=np.concatenate([estimated[..., :2], estimated[..., 2:] >= MIN_CONFIDENCE], -1),
        gallery=_gallery(judges, people, trials),
        prompts=judges.clip.embed_texts([trial.prompt for trial in trials]),
        true_prompts=judges.clip.embed_texts([true_prompt(people, index) for index in indices]),
        real=judges.looks(people.images[others]),
    )


def _gallery(judges: Judges, people: People, trials: list[Trial]) -> NDArray[np.float32]:
    compared = [trial.other is not None for trial in trials]
    if not any(compared):
        raise InputError(f"none of {len(trials)} people has a second photograph, which identity is compared with")
    known = judges.people(people.images[[trial.other for trial in trials if trial.other is not None]])
    gallery = np.full((len(trials), known.shape[1]), np.nan, known.dtype)
    gallery[compared] = known
    return gallery


def look(judges: Judges, exam: Exam, images: NDArray[np.uint8]) -> Seen:
    """What the judges see in a picture [N, H, W, 3] for each trial."""
    keypoints = judges.keypoints(images)
    return Seen(
        keypoints=keypoints,
        identity=judges.people(images, keypoints),
        clip=judges.looks(images),
        colours=np.stack([clothes_colours(i, p) for i, p in zip(images, exam.parts, strict=True)]),
    )


def look_at_references(judges: Judges, exam: Exam, references: NDArray[np.uint8]) -> Seen:
    """What `look` says of the references or of what became of them, each seen once however many trials it has."""
    _, first, trial = np.unique([t.index for t in exam.trials], return_index=True, return_inverse=True)
    once = look(judges, replace(exam, parts=exam.parts[first]), references[first])
    return Seen(**{field.name: getattr(once, field.name)[trial] for field in fields(once)})


def scores(exam: Exam, seen: Seen, original: Seen, texts: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """One value a picture of every metric, NaN for what cannot be compared; `original` is what is seen in the
    references, `texts` [N, E] what the pictures are compared with."""
    errors, exchanged = (keypoint_errors(points, exam.truth) for points in (seen.keypoints, seen.keypoints[:, FLIP]))
    return {
        "id_similarity": cosines(seen.identity, exam.gallery),
        "id_top1": identified(exam, seen.identity),
        "pose_pck10": pck(errors, 0.1),
        "pose_pck05": pck(errors, 0.05),
        "pose_pck10_unsided": np.maximum(pck(errors, 0.1), pck(exchanged, 0.1)),
        "skeleton_pck10": pck(keypoint_errors(seen.keypoints, exam.skeletons), 0.1),
        "clip_score": cosines(seen.clip, texts),
        "clothes_colour_distance": colour_distance(seen.colours, original.colours),
    }


def identified(exam: Exam, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N]: 1 where somebody is found among the `GALLERY` people of the round, NaN for who is not in the gallery."""
    rounds, found = np.array([trial.round for trial in exam.trials]), np.full(len(exam.trials), np.nan)
    for number in np.unique(rounds):
        members = (rounds == number) & np.isfinite(exam.gallery[:, 0])
        found[members] = found_first(embeddings[members], exam.gallery[members], GALLERY)
    return found
