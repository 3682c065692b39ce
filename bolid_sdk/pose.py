"""A person's pose: finding it in a picture, reading it from numbers, drawing it for the pose guider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from bolid_sdk.backends import Engine
from bolid_sdk.contracts import KEYPOINT_NAMES, LIMBS, MIN_CONFIDENCE
from bolid_sdk.errors import Notice, PersonNotFoundError, PoseError, SeveralPeopleError
from bolid_sdk.images import Letterbox, crop_resize, letterbox, stack_pixels, to_signed
from bolid_sdk.parts import person_box

FloatArray: TypeAlias = NDArray[np.float32]

LINE_WIDTH = 0.024
"""Width of a limb and radius of a joint's disc times 1.6, as fractions of the picture's shorter side."""

# The person's left side is warm, the right side cool, the middle white and violet: mirrored poses never look alike.
LIMB_COLOURS = np.array(
    [
        (255, 255, 255),
        (255, 0, 0),
        (255, 85, 0),
        (0, 255, 85),
        (0, 255, 170),
        (255, 0, 128),
        (0, 128, 255),
        (170, 0, 255),
        (255, 170, 0),
        (255, 255, 0),
        (0, 255, 255),
        (0, 0, 255),
    ],
    np.float32,
)
JOINT_COLOURS = np.array(
    [
        (255, 0, 64),
        (0, 255, 0),
        (255, 43, 0),
        (0, 255, 128),
        (255, 128, 64),
        (64, 255, 213),
        (255, 0, 255),
        (85, 0, 255),
        (255, 213, 0),
        (0, 170, 255),
        (255, 255, 128),
        (64, 64, 255),
    ],
    np.float32,
)


LOW_CONFIDENCE = 0.5
BORDER = 0.01
PEAK = 0.7
"""A heatmap's second maximum counts when it reaches this share of the first: a doubtful limb has several lower ones."""
PEAK_WINDOW = 2
OWN_RADIUS = 0.08
"""Maxima this near to any of the person's own keypoints are left and right mixed up, not another person."""
FOREIGN_KEYPOINTS = 5
"""With foreign maxima for at least this many keypoints there is another person (docs/architecture.md has the rates)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """`keypoints` float32 [12, 3], (x, y) in [0, 1] of a picture of this `aspect` (width / height), then confidence.

    Of a face alone, as InstantID's pose is, five (`bolid_sdk.face_map`).
    `aspect` None: the coordinates are meant for the output, whatever its shape.
    """

    keypoints: FloatArray
    aspect: float | None = None

    def fitted(self, aspect: float) -> FloatArray:
        """Keypoints for a picture of another aspect: the old frame is centred whole in the new one, unstretched."""
        if self.aspect is None:
            return self.keypoints
        shrink = np.array((min(1.0, self.aspect / aspect), min(1.0, aspect / self.aspect)), np.float32)
        fitted = self.keypoints.copy()
        fitted[:, :2] = (self.keypoints[:, :2] - 0.5) * shrink + 0.5
        return fitted


def pose_from_array(values: ArrayLike, names: Sequence[str] = KEYPOINT_NAMES) -> Pose:
    """Reads keypoints of these names, [12, 2] (fully confident) or [12, 3]. Raises PoseError."""
    count, listed = len(names), ", ".join(names)
    try:
        points = np.array(values, np.float32)
    except (TypeError, ValueError):
        raise PoseError(f"the pose is not numeric; expected {count} keypoints [{count}, 2 or 3]: {listed}") from None
    if points.ndim != 2 or points.shape[0] != count or points.shape[1] not in (2, 3):
        raise PoseError(f"the pose has shape {list(points.shape)}; expected [{count}, 2] or [{count}, 3]: {listed}")
    if not np.isfinite(points).all():
        raise PoseError("the pose has NaN or infinite coordinates; give an unseen keypoint the confidence 0 instead")
    if np.abs(points).max() > 10:
        raise PoseError("the pose's coordinates are far outside the picture; expected fractions of its size in [0, 1]")
    if points.shape[1] == 2:
        points = np.concatenate([points, np.ones((count, 1), np.float32)], axis=1)
    return Pose(keypoints=points)


def check_pose(pose: Pose, names: Sequence[str] = KEYPOINT_NAMES) -> Pose:
    """The pose, or a copy with float32 keypoints of these names, [12, 3]. Raises PoseError."""
    if pose.aspect is not None and not 0 < pose.aspect < math.inf:
        raise PoseError(f"the pose's picture has the aspect {pose.aspect}; expected its width / height, or None")
    points = pose_from_array(pose.keypoints, names).keypoints
    known = np.asarray(pose.keypoints)
    return pose if (known.dtype, known.shape) == (points.dtype, points.shape) else replace(pose, keypoints=points)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundPose:
    """What an estimator sees: `keypoints` float32 [12, 3] in the picture's coordinates, and how many `people`."""

    keypoints: FloatArray
    people: int

    @property
    def confidence(self) -> float:
        """Mean over the keypoints, in [0, 1]."""
        return float(self.keypoints[:, 2].mean())


def estimate_pose(estimator: Engine, image: Image.Image, size: tuple[int, int]) -> FoundPose:
    """Finds a person in the whole picture, then reads the pose in the person's box (top-down, as ViTPose is meant).

    Each keypoint is that of the look with more confidence in it: where the first was mistaken about the person, the box
    is, too. `size` is the estimator's (height, width).
    """
    seen, heatmaps, place = _look(estimator, image, size)
    first = place.to_source(seen)
    box = person_box(first, image.width / image.height)
    (second,) = look_closer(estimator, [image], [box], size)
    keypoints = np.where(first[:, 2:] > second[:, 2:], first, second)
    return FoundPose(keypoints=keypoints, people=count_people(heatmaps, seen))


def look_closer(
    estimator: Engine, images: Sequence[Image.Image], boxes: Sequence[NDArray[np.floating]], size: tuple[int, int]
) -> FloatArray:
    """Keypoints [n, 12, 3] of the people in a box [4] of each picture, in the pictures' coordinates: one run."""
    height, width = size
    crops = [
        letterbox(Image.fromarray(crop_resize(image, box[None], max(size))[0]), width, height)
        for image, box in zip(images, boxes, strict=True)
    ]
    seen = estimator.run({"pixels": to_signed(stack_pixels(crop for crop, _ in crops))})["keypoints"]
    keypoints = np.stack([place.to_source(points) for points, (_, place) in zip(seen, crops, strict=True)])
    corners = np.asarray(boxes, np.float32)[:, None]
    keypoints[..., :2] = corners[..., :2] + keypoints[..., :2] * (corners[..., 2:] - corners[..., :2])
    return keypoints


def _look(estimator: Engine, image: Image.Image, size: tuple[int, int]) -> tuple[FloatArray, FloatArray, Letterbox]:
    """Keypoints [12, 3] and heatmaps [12, h, w] of the letterboxed picture, and where the picture lies in that."""
    height, width = size
    boxed, place = letterbox(image, width, height)
    outputs = estimator.run({"pixels": to_signed(stack_pixels([boxed]))})
    return np.asarray(outputs["keypoints"][0], np.float32), np.asarray(outputs["heatmaps"][0]), place


def detect_pose(
    estimator: Engine, image: Image.Image, *, size: tuple[int, int], threshold: float, name: str
) -> tuple[Pose, tuple[Notice, ...]]:
    """Finds the one person in `image`. `size` is the estimator's (height, width); `name` is for messages.

    Raises PersonNotFoundError when the mean confidence is below `threshold`, and SeveralPeopleError.
    """
    found = estimate_pose(estimator, image, size)
    if not found.confidence >= threshold:
        raise PersonNotFoundError(
            f"no person found in {name} (confidence {found.confidence:.2f}, needed {threshold:.2f}); expected a "
            "picture of one whole person, well lit and not too small"
        )
    if found.people > 1:
        raise SeveralPeopleError(
            f"at least {found.people} people are in {name}; crop the picture to the one that is meant"
        )
    notices = _pose_notices(found.keypoints, name)
    return Pose(keypoints=found.keypoints, aspect=image.width / image.height), notices


def count_people(heatmaps: FloatArray, keypoints: FloatArray) -> int:
    """Counts people by the distinct maxima of `heatmaps` [12, h, w]; `keypoints` [12, 3] is the first one's pose."""
    foreign = [_foreign_peaks(heatmap, keypoints) for heatmap in heatmaps]
    others = [count for count in foreign if count]
    return 1 + int(np.median(others)) if len(others) >= FOREIGN_KEYPOINTS else 1


def _foreign_peaks(heatmap: FloatArray, keypoints: FloatArray) -> int:
    """Maxima of one keypoint's heatmap that lie on none of the person's own keypoints."""
    highest = float(heatmap.max())
    if highest <= MIN_CONFIDENCE:
        return 0
    peaks = np.argwhere((heatmap == _window_maximum(heatmap)) & (heatmap >= PEAK * highest))
    height, width = heatmap.shape
    centres = (peaks[:, ::-1] + 0.5) / (width, height)
    distances = np.linalg.norm(centres[:, None] - keypoints[None, :, :2], axis=2)
    return int((distances.min(axis=1) > OWN_RADIUS).sum())


def _window_maximum(heatmap: FloatArray) -> FloatArray:
    padded = np.pad(heatmap, PEAK_WINDOW, constant_values=-np.inf)
    side = 2 * PEAK_WINDOW + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return np.asarray(windows.max(axis=(2, 3)))


def _pose_notices(keypoints: FloatArray, name: str) -> tuple[Notice, ...]:
    notices = []
    doubtful = [joint for joint, point in zip(KEYPOINT_NAMES, keypoints, strict=True) if point[2] < LOW_CONFIDENCE]
    if doubtful:
        message = f"in {name} these are uncertain: {', '.join(doubtful)}; a picture that shows them works better"
        notices.append(Notice(code="pose_uncertain", message=message))
    confident = keypoints[keypoints[:, 2] >= MIN_CONFIDENCE, :2]
    if confident.size and (confident.min() < BORDER or confident.max() > 1 - BORDER):
        message = f"the person in {name} reaches the border and may be cut off; a whole body works better"
        notices.append(Notice(code="person_cropped", message=message))
    return tuple(notices)


def draw_skeleton(
    keypoints: ArrayLike, width: int, height: int, *, min_confidence: float = MIN_CONFIDENCE
) -> NDArray[np.uint8]:
    """Draws `keypoints` [12, 3] ((x, y) in [0, 1], then confidence) as anti-aliased limbs and joints on black.

    Returns uint8 [height, width, 3]. Points below `min_confidence`, and the limbs that need them, are left out; points
    outside the picture are clipped. The line's width is proportional to the shorter side.
    """
    points = np.asarray(keypoints, np.float32)
    seen = np.isfinite(points).all(axis=1) & (points[:, 2] >= min_confidence)
    # Pixel i covers [i, i + 1), so its centre lies at i + 0.5.
    pixels = points[:, :2] * np.array((width, height), np.float32) - 0.5
    radius = max(0.5, LINE_WIDTH * min(width, height) / 2)
    canvas = np.zeros((height, width, 3), np.float32)
    for (start, stop), colour in zip(LIMBS, LIMB_COLOURS, strict=True):
        if seen[start] and seen[stop]:
            _draw_capsule(canvas, pixels[start], pixels[stop], radius, colour)
    for index in np.flatnonzero(seen):
        _draw_capsule(canvas, pixels[index], pixels[index], 1.6 * radius, JOINT_COLOURS[index])
    return (canvas + 0.5).astype(np.uint8)


def _draw_capsule(
    canvas: FloatArray, start: FloatArray, stop: FloatArray, radius: float, colour: NDArray[np.float32]
) -> None:
    """Blends the points within `radius` of a segment; the edge's coverage falls over one pixel."""
    height, width = canvas.shape[:2]
    reach = radius + 1.0
    left, right = _span(start[0], stop[0], reach, width)
    top, bottom = _span(start[1], stop[1], reach, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) - start[0]
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - start[1]
    direction_x, direction_y = stop - start
    length_squared = direction_x * direction_x + direction_y * direction_y
    if length_squared > 1e-6:
        along = np.clip((x * direction_x + y * direction_y) / length_squared, 0.0, 1.0)
        x, y = x - along * direction_x, y - along * direction_y
    coverage = np.clip(radius + 0.5 - np.sqrt(x * x + y * y), 0.0, 1.0)[..., None]
    region = canvas[top:bottom, left:right]
    region += coverage * (colour - region)


def _span(first: float, second: float, reach: float, length: int) -> tuple[int, int]:
    low, high = min(first, second) - reach, max(first, second) + reach
    return int(np.clip(np.floor(low), 0, length)), int(np.clip(np.ceil(high) + 1, 0, length))
