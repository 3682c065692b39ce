"""What the identity encoder reads of a picture: a person's parts, straightened along the bones.

A trouser leg is at the same place of its crop whether its owner stands, sits or lies. So the encoder does not have to
find out which patches show trousers and which the sofa.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from bolid_sdk.contracts import MIN_CONFIDENCE, PART_NAMES
from bolid_sdk.images import PAD_COLOUR, crop_resize
from bolid_sdk.parts import HIPS, SHOULDERS, FloatArray, body_scale, head_place, part_boxes, person_box, seen_points

Quad: TypeAlias = FloatArray
"""[4, 2]: north-west, south-west, south-east and north-east corner of what a cell of a crop shows."""

RIGHT_LEG, LEFT_LEG = (7, 9, 11), (6, 8, 10)
"""Hip, knee and ankle. The right leg is in the left half of a crop, as where somebody faces the camera."""

# Widths and lengths beyond the bones, in torso lengths (see `parts.BONES`), generous enough for coats and skirts.
TORSO_WIDTH, SHOULDERS_WIDTH, TORSO_BEYOND = 0.66, 1.3, 0.15
LEG_WIDTH = 0.36
FOOT_WIDTH, FOOT_ABOVE, FOOT_BELOW = 0.4, 0.25, 0.35
DETAIL = 4
"""Crops are cut from a copy of the person of this many times their side: about twice as fine as what they show."""


def part_crops(image: Image.Image, keypoints: ArrayLike, size: int) -> NDArray[np.uint8]:
    """uint8 [5, size, size, 3] of an RGB picture: the body in its box; head, torso, legs and feet straightened.

    `keypoints` [12, 3]: (x, y) in [0, 1] and confidence. The head is turned upright. The torso goes from the shoulders
    down to the hips; each leg has a half of its crop, thigh over shin, and so has each foot. What has no confident
    keypoints is cut as it is from its box of `part_boxes`. Outside the picture everything is grey.
    """
    aspect = image.width / image.height
    boxes = part_boxes(keypoints, aspect)
    frame = person_box(keypoints, aspect)
    person = Image.fromarray(crop_resize(image, frame[None], DETAIL * size)[0])
    scale = np.array((aspect, 1.0))
    origin, extent = frame[:2] * scale, (frame[2:] - frame[:2]) * scale
    quads = (part_quads(keypoints, aspect) - origin) / extent * (DETAIL * size)
    body = crop_resize(image, boxes[:1], size)
    return np.concatenate([body, np.stack([_straightened(person, cells, size) for cells in quads[1:]])])


def part_quads(keypoints: ArrayLike, aspect: float = 1.0) -> FloatArray:
    """What the four cells of each crop show, [5, 4, 4, 2]: parts, cells (row by row), corners as in `Quad`, (x, y) in
    picture heights. Arguments as those of `parts.part_boxes`."""
    boxes = part_boxes(keypoints, aspect) * (aspect, 1.0, aspect, 1.0)
    quads = dict(zip(PART_NAMES, np.stack([_quarters(_corners(box)) for box in boxes]), strict=True))
    points, seen = seen_points(keypoints, aspect, MIN_CONFIDENCE)
    if seen.any():
        scale = body_scale(points, seen)
        head = head_place(points, seen, scale)
        if head is not None:
            centre, up, side = head
            quads["head"] = _quarters(_strip(centre + up * side / 2, centre - up * side / 2, side))
        if seen[[*SHOULDERS, *HIPS]].all():
            quads["torso"] = _quarters(_torso(points, scale))
        for column, (hip, knee, ankle) in enumerate((RIGHT_LEG, LEFT_LEG)):
            if seen[hip] and seen[knee]:
                quads["legs"][column] = _strip(points[hip], points[knee], LEG_WIDTH * scale)
            if seen[knee] and seen[ankle]:
                quads["legs"][2 + column] = _strip(points[knee], points[ankle], LEG_WIDTH * scale)
                quads["feet"][column::2] = _halves(_foot(points[knee], points[ankle], scale))
    return np.stack([quads[name] for name in PART_NAMES])


def _torso(points: FloatArray, scale: float) -> Quad:
    shoulders, hips = points[list(SHOULDERS)], points[list(HIPS)]
    top, bottom = shoulders.mean(axis=0), hips.mean(axis=0)
    width = max(SHOULDERS_WIDTH * float(np.linalg.norm(shoulders[1] - shoulders[0])), TORSO_WIDTH * scale)
    beyond = _direction(top, bottom) * TORSO_BEYOND * scale
    return _strip(top - beyond, bottom + beyond, width)


def _foot(knee: FloatArray, ankle: FloatArray, scale: float) -> Quad:
    down = _direction(knee, ankle)
    return _strip(ankle - down * FOOT_ABOVE * scale, ankle + down * FOOT_BELOW * scale, FOOT_WIDTH * scale)


def _strip(top: FloatArray, bottom: FloatArray, width: float) -> Quad:
    """The rectangle along a line from the middle of its upper to the middle of its lower side."""
    x, y = _direction(top, bottom)
    left = np.array((-y, x)) * width / 2
    return np.stack([top + left, bottom + left, bottom - left, top - left])


def _direction(start: FloatArray, stop: FloatArray) -> FloatArray:
    """A unit vector; down, where there is no telling."""
    length = float(np.linalg.norm(stop - start))
    return (stop - start) / length if length > 1e-6 else np.array((0.0, 1.0))


def _corners(box: FloatArray) -> Quad:
    x0, y0, x1, y1 = box
    return np.array(((x0, y0), (x0, y1), (x1, y1), (x1, y0)))


def _quarters(quad: Quad) -> FloatArray:
    """[4, 4, 2]."""
    north_west, south_west, south_east, north_east = quad
    left = np.stack([north_west, south_west, (south_west + south_east) / 2, (north_west + north_east) / 2])
    right = np.stack([left[3], left[2], south_east, north_east])
    return np.stack([half for halves in zip(_halves(left), _halves(right), strict=True) for half in halves])


def _halves(quad: Quad) -> FloatArray:
    """The upper and the lower one, [2, 4, 2]."""
    north_west, south_west, south_east, north_east = quad
    west, east = (north_west + south_west) / 2, (north_east + south_east) / 2
    return np.stack([np.stack([north_west, west, east, north_east]), np.stack([west, south_west, south_east, east])])


def _straightened(person: Image.Image, cells: FloatArray, size: int) -> NDArray[np.uint8]:
    """`cells` [4, 4, 2] in pixels of `person`."""
    half = size // 2
    edges = ((0, half), (half, size))
    places = [(left, top, right, bottom) for top, bottom in edges for left, right in edges]
    mesh = [(place, tuple(cell.ravel())) for place, cell in zip(places, cells, strict=True)]
    crop = person.transform((size, size), Image.Transform.MESH, mesh, Image.Resampling.BICUBIC, fillcolor=PAD_COLOUR)
    return np.asarray(crop)
