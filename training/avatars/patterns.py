"""Cloth patterns, evaluated where rays hit: coordinates [N, 3] are metres in the average body."""

from collections.abc import Callable

import numpy as np

STRIPE = 0.055  # metres a period; wide enough to survive in a 128 pixel picture


def pattern(kind: str, second: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """The texture that paints `second` (linear RGB) over the cloth's color; None for plain cloth."""
    if kind == "plain":
        return None
    mask = {"striped": _striped, "checked": _checked, "dotted": _dotted}[kind]
    return lambda coordinates, colors: colors + mask(coordinates)[:, None] * (second - colors)


def _striped(points: np.ndarray) -> np.ndarray:
    return (points[:, 2] / STRIPE % 1 < 0.5).astype(np.float32)


def _checked(points: np.ndarray) -> np.ndarray:
    across = (points[:, 0] / (1.2 * STRIPE)) % 1 < 0.5
    down = (points[:, 2] / (1.2 * STRIPE)) % 1 < 0.5
    return 0.5 * across.astype(np.float32) + 0.5 * down


def _dotted(points: np.ndarray) -> np.ndarray:
    row = np.floor(points[:, 2] / STRIPE)
    x = (points[:, 0] / STRIPE + 0.5 * (row % 2)) % 1 - 0.5
    z = points[:, 2] / STRIPE % 1 - 0.5
    return (x * x + z * z < 0.09).astype(np.float32)
