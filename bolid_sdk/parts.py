"""Where a person's parts are: the boxes about them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolid_sdk.contracts import MIN_CONFIDENCE

FloatArray: TypeAlias = NDArray[np.float64]

SHOULDERS, HIPS, LEGS, ANKLES = (0, 1), (6, 7), (6, 7, 8, 9, 10, 11), (10, 11)

# Bones and their usual length in torso lengths (middle of the shoulders to middle of the hips). Projection only
# shortens a bone, so the longest estimate is the best one; ratios are generous, so that long legs make no big head.
BONES = (
    ((0, 1), 0.85),
    ((0, 2), 0.70),
    ((1, 3), 0.70),
    ((2, 4), 0.65),
    ((3, 5), 0.65),
    ((0, 6), 1.05),
    ((1, 7), 1.05),
    ((6, 8), 1.00),
    ((7, 9), 1.00),
    ((8, 10), 1.00),
    ((9, 11), 1.00),
)
HEAD_DISTANCE, HEAD_SIDE = 0.5, 0.85
MAX_SIDE = 2.0
DOUBTFUL = 0.1
"""Keypoints of a first look count from this confidence on: better a box too large than one that cuts off an arm."""
PERSON_MARGIN = 1.25
"""The person's box for a closer look is this much larger than the body's: a first look is not exact."""


def part_boxes(keypoints: ArrayLike, aspect: float = 1.0, *, min_confidence: float = MIN_CONFIDENCE) -> FloatArray:
    """Crop boxes [5, 4] (x0, y0, x1, y1 in [0, 1] image coordinates) of body, head, torso, legs and feet.

    `keypoints` [12, 3]: (x, y) in [0, 1] and confidence; `aspect` is the picture's width / height. Boxes are square in
    pixels and may exceed the picture (crops are padded there). The head lies beyond the shoulders on the axis from the
    hips, so lying, bent and turned people work. A part without a confident keypoint gets the body's box, and a person
    without any the whole picture.
    """
    metric, seen = seen_points(keypoints, aspect, min_confidence)
    if not seen.any():
        return _to_image(np.tile(_square(np.array((aspect, 1.0)) / 2, max(aspect, 1.0)), (5, 1)), aspect)
    scale = body_scale(metric, seen)
    head = _head_box(metric, seen, scale)
    body = _body_box(metric[seen], head, scale)
    torso = _part_box(metric, seen, (*SHOULDERS, *HIPS), 0.35 * scale)
    legs = _part_box(metric, seen, LEGS, 0.35 * scale)
    feet = _part_box(metric, seen, ANKLES, 0.55 * scale)
    boxes = np.stack([body, *(body if box is None else box for box in (head, torso, legs, feet))])
    return _to_image(boxes, aspect)


def centre_box(aspect: float = 1.0) -> FloatArray:
    """The largest centred square, as IP-Adapter's CLIP preprocessing cuts it: [1, 4]."""
    width, height = min(1.0, 1.0 / aspect), min(1.0, aspect)
    return np.array([[(1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2]])


def person_box(keypoints: ArrayLike, aspect: float = 1.0) -> FloatArray:
    """The box [4] (as in `part_boxes`) in which a pose estimator takes a closer look at the person it has found."""
    box = part_boxes(keypoints, aspect, min_confidence=DOUBTFUL)[0].reshape(2, 2)
    centre = box.mean(axis=0)
    return np.asarray((centre + (box - centre) * PERSON_MARGIN).reshape(4))


def seen_points(keypoints: ArrayLike, aspect: float, min_confidence: float) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Points [12, 2] in picture heights, so that a square is a square, and which of them [12] count as seen."""
    points = np.asarray(keypoints, np.float64)
    seen = np.isfinite(points).all(axis=1) & (points[:, 2] >= min_confidence)
    return points[:, :2] * (aspect, 1.0), seen


def body_scale(points: FloatArray, seen: NDArray[np.bool_]) -> float:
    """The length of an unforeshortened torso, in picture heights."""
    lengths = [
        float(np.linalg.norm(points[start] - points[stop])) / ratio
        for (start, stop), ratio in BONES
        if seen[start] and seen[stop]
    ]
    extent = float(np.ptp(points[seen], axis=0).max())
    return min(max([*lengths, 0.25 * extent, 0.02]), MAX_SIDE / 2)


def head_place(
    points: FloatArray, seen: NDArray[np.bool_], scale: float
) -> tuple[FloatArray, FloatArray, float] | None:
    """The head's centre [2], its unit vector [2] upwards, and its side, all in picture heights."""
    shoulders = _mean(points, seen, SHOULDERS)
    if shoulders is None:
        return None
    hips = _mean(points, seen, HIPS)
    torso = np.array((0.0, -scale)) if hips is None else shoulders - hips
    length = float(np.linalg.norm(torso))
    # A torso seen end on has no direction of its own: the head is then most likely above.
    axis = torso / length if length > 0.15 * scale else np.array((0.0, -1.0))
    distance = HEAD_DISTANCE * (min(length, scale) + scale) / 2
    return shoulders + axis * distance, axis, HEAD_SIDE * scale


def _head_box(points: FloatArray, seen: NDArray[np.bool_], scale: float) -> FloatArray | None:
    head = head_place(points, seen, scale)
    return None if head is None else _square(head[0], head[2])


def _body_box(points: FloatArray, head: FloatArray | None, scale: float) -> FloatArray:
    corners = points if head is None else np.concatenate([points, head.reshape(2, 2)])
    return _bounding_square(corners, 0.15 * scale)


def _part_box(
    points: FloatArray, seen: NDArray[np.bool_], indices: tuple[int, ...], margin: float
) -> FloatArray | None:
    chosen = [index for index in indices if seen[index]]
    return _bounding_square(points[chosen], margin) if chosen else None


def _mean(points: FloatArray, seen: NDArray[np.bool_], indices: tuple[int, ...]) -> FloatArray | None:
    chosen = [index for index in indices if seen[index]]
    return np.asarray(points[chosen].mean(axis=0)) if chosen else None


def _bounding_square(points: FloatArray, margin: float) -> FloatArray:
    low, high = points.min(axis=0), points.max(axis=0)
    return _square((low + high) / 2, float((high - low).max()) + 2 * margin)


def _square(centre: FloatArray, side: float) -> FloatArray:
    half = side / 2
    return np.concatenate([centre - half, centre + half])


def _to_image(boxes: FloatArray, aspect: float) -> FloatArray:
    return np.asarray(boxes / (aspect, 1.0, aspect, 1.0))
