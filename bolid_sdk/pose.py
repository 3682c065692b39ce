"""Drawing the 12 keypoints as the map that the pose guider reads."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolid_sdk.contracts import LIMBS, MIN_CONFIDENCE

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
