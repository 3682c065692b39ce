"""A person's head as a box, so that hair and hats fit it."""

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.coverage import head_vertices


@dataclass(frozen=True, kw_only=True)
class Skull:
    """An ellipsoid around the cranium: centre [3] and half axes [3], metres, rest pose."""

    centre: np.ndarray
    axes: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the unit sphere on the ellipsoid."""
        return self.centre + self.axes * points


def skull(shape: Rest) -> Skull:
    """Fitted to the cranium above the brows."""
    template = anatomy().template
    cranium = shape.vertices[head_vertices() & (template[:, 2] > 0.762)]
    low, high = cranium.min(0), cranium.max(0)
    half_width, half_depth = (high - low)[:2] / 2
    top = high[2]
    height = half_depth * 1.05
    centre = np.array([0.0, (low[1] + high[1]) / 2, top - height])
    return Skull(centre=centre, axes=np.array([half_width, half_depth, height]))
