"""Skirts of all lengths, the skirts of dresses and coats, and hoods."""

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.coverage import ANKLE, HIP, KNEE, WAIST, arm_vertices
from bolid_training.avatars.garments import cloth_color, cloth_texture
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Garment
from bolid_training.avatars.shell import Piece
from bolid_training.avatars.sweep import angles, swept

ROWS, COLUMNS = 12, 28


@dataclass(frozen=True, kw_only=True)
class Skirt:
    """Heights are the template's; `flare` is metres wider at the hem than the legs, `gap` half the open front."""

    top: float
    hem: float
    margin: float
    flare: float
    part: Part
    gap: float = 0.0  # radians


SKIRTS = {
    "skirt": Skirt(top=WAIST + 0.01, hem=KNEE + 0.08, margin=0.02, flare=0.05, part=Part.LOWER),
    "long skirt": Skirt(top=WAIST + 0.01, hem=ANKLE + 0.07, margin=0.02, flare=0.04, part=Part.LOWER),
    "dress": Skirt(top=WAIST + 0.02, hem=KNEE + 0.05, margin=0.018, flare=0.05, part=Part.UPPER),
    "long dress": Skirt(top=WAIST + 0.02, hem=ANKLE + 0.07, margin=0.018, flare=0.04, part=Part.UPPER),
    "coat": Skirt(top=WAIST + 0.02, hem=KNEE + 0.02, margin=0.042, flare=0.03, part=Part.UPPER, gap=0.5),
}


def skirt(garment: Garment, shape: Rest) -> Piece:
    """A cone around pelvis and legs that follows the thighs, and below the knees the shins."""
    style = SKIRTS[garment.kind]
    heights = np.linspace(style.top, style.hem, ROWS)
    around = _around(style)
    half, middle, levels = _outline(shape, heights)
    down = np.linspace(0, 1, ROWS)
    half = np.maximum.accumulate(half + style.margin) + (style.flare * down)[:, None]
    middle = np.minimum.accumulate(middle)
    rings = np.stack(
        [
            half[:, :1] * np.cos(around),
            middle[:, None] + half[:, 1:] * np.sin(around),
            np.broadcast_to(levels[:, None], (ROWS, len(around))),
        ],
        -1,
    )
    coordinates = np.stack([rings[..., 0], rings[..., 1], np.broadcast_to(heights[:, None], rings.shape[:2])], -1)
    return swept(
        rings[::-1],
        _weights(heights[::-1], np.cos(around)),
        cloth_color(garment),
        style.part,
        closed=style.gap == 0,
        texture=cloth_texture(garment),
        coordinates=coordinates[::-1],
    )


def hood(garment: Garment, shape: Rest) -> Piece:
    """A thick roll of cloth around the back of the neck."""
    bones, heads = anatomy().bones, shape.heads
    centre = heads[bones["neck01"]] + [0, 0.005, 0.0]
    scale = np.linalg.norm(heads[bones["upperarm01.L"]] - heads[bones["upperarm01.R"]]) / 0.336
    bow = np.linspace(-0.9, np.pi + 0.9, 16)[:, None]
    tube = angles(8)[None]
    thick = (0.016 + 0.026 * np.clip(np.sin(bow), 0, 1)) * scale
    radius = 0.082 * scale + thick * np.cos(tube)
    rings = np.stack(
        [
            radius * np.cos(bow),
            radius * np.sin(bow),
            thick * np.sin(tube) - 0.03 * np.abs(np.sin(bow)) * (bow < 0) + 0 * tube,
        ],
        -1,
    )
    rings[..., 2] += 0.35 * np.clip(-rings[..., 1], 0, None) * -1
    return swept(centre + rings, {"spine01": 1.0}, cloth_color(garment) * 0.9, Part.UPPER)


def _around(style: Skirt) -> np.ndarray:
    if style.gap == 0:
        return angles(COLUMNS)
    front = -np.pi / 2
    return np.linspace(front + style.gap, front + 2 * np.pi - style.gap, COLUMNS)


def _outline(shape: Rest, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half widths (x, y) [rows, 2], middles in y and heights [rows] of the body at heights of the template."""
    template = anatomy().template
    half, middle, levels = [], [], []
    for height in heights:
        band = (np.abs(template[:, 2] - height) < 0.035) & ~arm_vertices()
        points = shape.vertices[band]
        low, high = points[:, 1].min(), points[:, 1].max()
        half.append([np.abs(points[:, 0]).max(), (high - low) / 2])
        middle.append((high + low) / 2)
        levels.append(points[:, 2].mean() + (height - template[band, 2].mean()))
    return np.array(half), np.array(middle), np.array(levels)


def _weights(heights: np.ndarray, lateral: np.ndarray) -> dict[str, np.ndarray]:
    """Pelvis at the top, then the thigh on either side, mixed in the middle; below the knee the shins."""
    left = np.clip(0.5 + 0.9 * lateral, 0, 1)[None]
    leg = np.interp(-heights, [-HIP - 0.05, -HIP + 0.12], [0, 1])[:, None]
    shin = np.interp(-heights, [-KNEE - 0.06, -KNEE + 0.08], [0, 1])[:, None]
    return {
        "root": (1 - leg) + 0 * left,
        "upperleg02.L": leg * (1 - shin) * left,
        "upperleg02.R": leg * (1 - shin) * (1 - left),
        "lowerleg01.L": leg * shin * left,
        "lowerleg01.R": leg * shin * (1 - left),
    }
