"""The best of several pictures of one request: the one whose person stands most nearly as was asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bolid_sdk.backends import Engine
from bolid_sdk.contracts import MIN_CONFIDENCE
from bolid_sdk.images import FloatArray
from bolid_sdk.parts import person_box
from bolid_sdk.pose import Pose, look_closer

STRIDE = 2**32
"""Between the seeds of a picture's candidates: those of a batch's pictures follow each other."""
SPREAD = 0.1
"""Of the pose's longer side: a keypoint that is so far off counts 0.6."""


def candidate_seeds(seeds: Sequence[int], count: int, end: int) -> tuple[int, ...]:
    """`count` seeds below `end` for each of `seeds`, the first of which is that seed."""
    return tuple((seed + STRIDE * number) % end for seed in seeds for number in range(count))


def pose_agreements(
    estimator: Engine, images: Sequence[Image.Image], poses: Sequence[Pose | None], size: tuple[int, int]
) -> list[float | None]:
    """How well each picture follows its pose, if there is one; `size` is the estimator's (height, width).

    One look at where the person should be: somebody who stands elsewhere has not followed.
    """
    aspects = [image.width / image.height for image in images]
    asked = [pose.fitted(aspect) for pose, aspect in zip(poses, aspects, strict=True) if pose is not None]
    if len(asked) < len(images):
        return [None] * len(images)
    boxes = [person_box(points, aspect) for points, aspect in zip(asked, aspects, strict=True)]
    found = look_closer(estimator, images, boxes, size)
    return [agreement(*each) for each in zip(asked, found, aspects, strict=True)]


def agreement(asked: FloatArray, found: FloatArray, aspect: float = 1.0) -> float:
    """How well the keypoints `found` follow those `asked`, in [0, 1]; both [12, 3], x and y in [0, 1] of a picture of
    that `aspect` (width / height), and confidence.

    The mean, over the keypoints that are drawn for the guider, of confidence times a Gaussian of the distance.
    """
    drawn = asked[:, 2] >= MIN_CONFIDENCE
    if not drawn.any():
        return 0.0
    scale = np.array((aspect, 1.0), np.float32)
    wanted, seen = asked[drawn, :2] * scale, found[drawn, :2] * scale
    size = max(float(np.ptp(wanted, axis=0).max()), 1e-3)
    nearness = np.exp(-np.square(wanted - seen).sum(1) / (2 * (SPREAD * size) ** 2))
    return float((nearness * found[drawn, 2]).mean())
