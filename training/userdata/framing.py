"""How a picture of any size lies in the square that a model draws."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk.conditioning import SizeConditioning
from bolid_sdk.images import crop_resize
from bolid_sdk.parts import part_boxes


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A square in a picture of `width` x `height` pixels: its upper left corner and its side, in pixels.

    What lies outside the picture is grey, as in the runtime's letterbox, and no part of the loss.
    """

    width: int
    height: int
    left: float
    top: float
    side: float

    @property
    def box(self) -> NDArray[np.float64]:
        """(x0, y0, x1, y1) in [0, 1] of the picture."""
        corners = (self.left, self.top, self.left + self.side, self.top + self.side)
        return np.array(corners) / (self.width, self.height, self.width, self.height)

    def cut(self, image: Image.Image, size: int) -> NDArray[np.uint8]:
        """uint8 [size, size, 3]."""
        return crop_resize(image, self.box[None], size)[0]

    def cut_labels(self, labels: Image.Image, size: int) -> NDArray[np.uint8]:
        """uint8 [size, size]: the nearest label of each pixel, 0 outside."""
        scale = np.array(labels.size) / (self.width, self.height)
        edge = (np.arange(size) + 0.5) / size * self.side
        columns = np.floor((self.left + edge) * scale[0]).astype(int)
        rows = np.floor((self.top + edge) * scale[1]).astype(int)
        array = np.asarray(labels)
        inside = np.outer(_within(rows, array.shape[0]), _within(columns, array.shape[1]))
        found = array[rows.clip(0, array.shape[0] - 1)][:, columns.clip(0, array.shape[1] - 1)]
        return np.where(inside, found, 0).astype(np.uint8)

    def to_frame(self, keypoints: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keypoints [12, 3] in [0, 1] of the picture -> of the square."""
        points = keypoints.copy()
        points[:, :2] = (points[:, :2] * (self.width, self.height) - (self.left, self.top)) / self.side
        return points

    def told(self, size: int) -> SizeConditioning:
        """What SDXL is told of the square when it is drawn with `size` pixels: the whole picture's size, and where the
        square begins once the picture is as much smaller as it, never before it."""
        top, left = (max(0, round(start / self.side * size)) for start in (self.top, self.left))
        return SizeConditioning(
            original_size=(self.height, self.width), crop_top_left=(top, left), target_size=(size, size)
        )

    def inside(self, size: int) -> NDArray[np.float32]:
        """float32 [size, size]: the share of each pixel of the square that the picture covers."""
        return np.outer(
            _covered(self.top, self.side, self.height, size), _covered(self.left, self.side, self.width, size)
        )


def person_frame(width: int, height: int, keypoints: NDArray[np.float32]) -> Frame:
    """The square about a person's body (box of `part_boxes`) that wastes least: as small as the picture's shorter side,
    as large as the body needs, at most the whole picture; inside the picture where it fits."""
    box = part_boxes(keypoints, width / height)[0] * (width, height, width, height)
    side = float(np.clip(box[2] - box[0], min(width, height), max(width, height)))
    centre = (box[:2] + box[2:]) / 2
    left, top = (_start(c, side, length) for c, length in zip(centre, (width, height), strict=True))
    return Frame(width=width, height=height, left=left, top=top, side=side)


def _start(centre: float, side: float, length: int) -> float:
    if side >= length:
        return (length - side) / 2
    return float(np.clip(centre - side / 2, 0, length - side))


def _covered(start: float, side: float, length: int, size: int) -> NDArray[np.float32]:
    edges = start + np.arange(size + 1) / size * side
    return (np.diff(edges.clip(0, length)) / (side / size)).astype(np.float32)


def _within(indices: NDArray, length: int) -> NDArray[np.bool_]:
    return (indices >= 0) & (indices < length)
