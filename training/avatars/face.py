"""Skin and the face's features, painted where rays hit.

Coordinates [N, 4] are the template's x, y, z and whether it is an eyeball.
"""

from collections.abc import Callable

import numpy as np

from bolid_training.avatars.mesh import srgb_to_linear
from bolid_training.avatars.people import HAIR_COLORS, Person

EYE = np.array([0.031, -0.125, 0.728], np.float32)
LIPS = (0.655, 0.027, 0.0105)  # height, half width, half height


def skin_color(person: Person) -> np.ndarray:
    """Linear RGB [3]."""
    return srgb_to_linear(person.skin_rgb)


def face_texture(person: Person, iris: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Eyes, brows, lips, cheeks and beard over the skin; `iris` is linear RGB."""
    skin, hair = skin_color(person), srgb_to_linear(HAIR_COLORS[person.hair_color])
    lips = skin * [0.78, 0.45, 0.45] if person.build.gender > 0.5 else skin * [0.8, 0.58, 0.56]
    brow = np.minimum(hair, skin * 0.5) * 0.8 + 0.08 * skin

    def paint(points: np.ndarray, colors: np.ndarray) -> np.ndarray:
        colors = colors.copy()
        front = np.flatnonzero((points[:, 2] > 0.6) & (points[:, 1] < -0.05) & (points[:, 3] < 0.5))
        x, y, z = np.abs(points[front, 0]), points[front, 1], points[front, 2]
        local = colors[front]
        if person.beard:
            local = _blend(local, hair, 0.9 * _beard(x, y, z))
        cheek = np.exp(-((x - 0.045) ** 2 + (z - 0.69) ** 2) / 4e-4) * (y < -0.09)
        local = _blend(local, skin * [1.0, 0.72, 0.7], 0.5 * cheek)
        local = _blend(local, lips, _mouth(x, y, z))
        local = _blend(local, skin * 0.3, 0.9 * _lash(x, y, z))
        local = _blend(local, brow, _brow(x, y, z))
        colors[front] = local
        eye = np.flatnonzero(points[:, 3] >= 0.5)
        colors[eye] = _eyeball(points[eye], iris)
        return colors

    return paint


def _blend(colors: np.ndarray, over: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return colors + amount[:, None].astype(np.float32) * (np.asarray(over, np.float32) - colors)


def _mouth(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    height, half_width, half_height = LIPS
    return ((x / half_width) ** 2 + ((z - height) / half_height) ** 2 < 1) & (y < -0.1)


def _brow(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    middle = 0.7515 + 0.006 * np.sin(np.clip((x - 0.012) / 0.042, 0, 1) * 2.6)
    return (np.abs(z - middle) < 0.0045) & (x > 0.012) & (x < 0.054) & (y < -0.08)


def _lash(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    ring = ((x - EYE[0]) / 0.018) ** 2 + ((z - EYE[2] - 0.001) / 0.0095) ** 2
    return (ring < 1) & (y < -0.1) & (z > EYE[2] - 0.004)


def _beard(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Chin, jaw and moustache; higher towards the ears."""
    top = np.interp(y, [-0.15, -0.13, -0.08, -0.06], [0.672, 0.668, 0.69, 0.70])
    return np.clip((top - z) / 0.006, 0, 1) * (z > 0.605)


def _eyeball(points: np.ndarray, iris: np.ndarray) -> np.ndarray:
    distance = np.hypot(np.abs(points[:, 0]) - EYE[0], points[:, 2] - EYE[2])
    colors = np.full((len(points), 3), 0.75, np.float32)
    colors[distance < 0.0066] = iris
    colors[distance < 0.003] = 0.01
    return colors


def iris_color(person: Person) -> np.ndarray:
    """Blue for blond hair, else brown; linear RGB [3]."""
    return np.array([0.05, 0.14, 0.3] if person.hair_color == "blond" else [0.07, 0.03, 0.015], np.float32)
