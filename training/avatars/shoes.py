"""Shoes as lofts along the foot: an upper with an instep, on a sole."""

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.coverage import ANKLE
from bolid_training.avatars.garments import cloth_color
from bolid_training.avatars.mesh import normalized
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Garment
from bolid_training.avatars.shell import Piece
from bolid_training.avatars.sweep import angles, swept

SOLES = {"sneakers": (0.8, 0.8, 0.78), "shoes": (0.03, 0.025, 0.02), "boots": (0.02, 0.02, 0.02)}
# Stations from heel to toe: position along the foot, half width and height over its maxima.
STATIONS = np.array(
    [
        [-0.03, 0.05, 0.30],
        [0.0, 0.62, 0.75],
        [0.08, 0.78, 0.98],
        [0.2, 0.82, 1.0],
        [0.33, 0.8, 0.95],
        [0.46, 0.84, 0.76],
        [0.6, 0.95, 0.58],
        [0.75, 1.0, 0.47],
        [0.88, 0.9, 0.42],
        [0.98, 0.66, 0.36],
        [1.03, 0.05, 0.25],
    ]
)


def shoes(garment: Garment, shape: Rest) -> list[Piece]:
    """Both shoes; boots have shafts."""
    pieces = []
    for letter in "LR":
        pieces.append(_shoe(garment, shape, letter))
        if garment.kind == "boots":
            pieces.append(_shaft(garment, shape, letter))
    return pieces


def _shoe(garment: Garment, shape: Rest, letter: str) -> Piece:
    ankle = shape.heads[anatomy().bones[f"foot.{letter}"]]
    points = shape.vertices[
        anatomy().of_bones(f"foot.{letter}", "toe") & (np.sign(anatomy().template[:, 0]) == np.sign(ankle[0]))
    ]
    toe = points[points[:, 1].argmin()]
    heel = points[points[:, 1].argmax()]
    along = normalized((toe - heel) * [1, 1, 0])
    across = np.array([-along[1], along[0], 0])
    reach, side = (points - heel) @ along, (points - heel) @ across
    length, floor = reach.max(), points[:, 2].min() - 0.012
    width, height = (side.max() - side.min()) / 2 + 0.006, ankle[2] - floor + 0.012
    centre = heel + across * (side.max() + side.min()) / 2
    around = angles(16)[None]
    position, half, tall = (STATIONS[:, i : i + 1] for i in range(3))
    # A rounded box, flat below: the sole.
    x = np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.6 * half * width
    z = np.where(np.sin(around) > 0, np.sin(around) * tall * height, np.sin(around) * 0.012)
    z = z - np.minimum(z.min(), 0)
    rings = (heel * [1, 1, 0])[None, None] + (centre - heel) + (position * (length + 0.012))[..., None] * along
    rings = rings + x[..., None] * across + (z + floor)[..., None] * [0, 0, 1]
    low = (z < 0.02)[..., None]
    color = np.where(low, SOLES[garment.kind], cloth_color(garment))
    return swept(rings[::-1], {f"foot.{letter}": 1.0}, color[::-1], Part.SHOES)


def _shaft(garment: Garment, shape: Rest, letter: str) -> Piece:
    """The tube of a boot from the ankle to the calf."""
    bones = anatomy().bones
    knee, ankle = shape.heads[bones[f"lowerleg01.{letter}"]], shape.heads[bones[f"foot.{letter}"]]
    share = np.linspace(-0.12, 0.5, 7)[:, None]
    template = anatomy().template
    band = (np.abs(template[:, 2] - (ANKLE + 0.18)) < 0.03) & (np.sign(template[:, 0]) == np.sign(ankle[0]))
    calf = shape.vertices[band]
    radius = np.interp(share, [-0.1, 0.1, 0.5], [0.05, 0.052, np.ptp(calf[:, 0]) / 2 + 0.014])
    around = angles(14)[None]
    axis = ankle + share[..., None] * (knee - ankle)
    axis[..., 1] += np.interp(share, [0, 0.5], [0.005, calf[:, 1].mean() - (ankle + 0.45 * (knee - ankle))[1]])
    rings = axis + np.stack([radius * np.cos(around), radius * 1.1 * np.sin(around), 0 * radius * around], -1)
    bend = np.interp(share, [0.0, 0.12], [0, 1]) + 0 * around
    weights = {f"foot.{letter}": 1 - bend, f"lowerleg02.{letter}": bend}
    return swept(rings, weights, cloth_color(garment), Part.SHOES)
