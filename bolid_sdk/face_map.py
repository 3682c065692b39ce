"""InstantID's map of a face: five keypoints, drawn as its IdentityNet was trained to see them (arXiv:2401.07519)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from bolid_sdk.contracts import MIN_CONFIDENCE

FACE_KEYPOINT_NAMES = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")
"""In the order of face detectors (insightface's `kps`), left and right as the picture shows them."""

NOSE = 2
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
LIMB_BRIGHTNESS = 0.6
# pixels, of whatever size the picture is
STICK_WIDTH, RADIUS = 4, 10
OUTLINE = 72


def draw_face_map(
    keypoints: ArrayLike, width: int, height: int, *, min_confidence: float = MIN_CONFIDENCE
) -> NDArray[np.uint8]:
    """Draws `keypoints` [5, 3] ((x, y) in [0, 1], then confidence): an ellipse from each to the nose, then discs.

    Returns uint8 [height, width, 3], black elsewhere. Points below `min_confidence` are left out.
    """
    points = np.asarray(keypoints, np.float64)
    seen = np.isfinite(points).all(axis=1) & (points[:, 2] >= min_confidence)
    pixels = points[:, :2] * (width, height)
    image = Image.new("RGB", (width, height))
    canvas = ImageDraw.Draw(image)
    for index in (i for i in range(len(points)) if i != NOSE and seen[i] and seen[NOSE]):
        # brightness is cut, not rounded, in the published drawing
        dimmed = tuple(int(LIMB_BRIGHTNESS * value) for value in COLOURS[index])
        canvas.polygon([tuple(p) for p in _ellipse(pixels[index], pixels[NOSE])], fill=dimmed)
    for index in (i for i in range(len(points)) if seen[i]):
        # the published code cuts coordinates to whole pixels
        x, y = (int(value) for value in pixels[index])
        canvas.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=COLOURS[index])
    return np.asarray(image)


def _ellipse(start: NDArray[np.float64], stop: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline [72, 2] of an ellipse that reaches from one point to the other."""
    along = (start - stop) / 2
    length = max(float(np.linalg.norm(along)), 1e-6)
    across = STICK_WIDTH * np.array((-along[1], along[0])) / length
    angles = np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False)[:, None]
    return np.asarray((start + stop) / 2 + np.cos(angles) * along + np.sin(angles) * across)
