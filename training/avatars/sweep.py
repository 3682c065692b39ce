"""Surfaces of rings: skirts, shoes, hats, strands. Rest pose, weights by bone."""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from bolid_training.avatars.anatomy import anatomy
from bolid_training.avatars.mesh import grid_faces
from bolid_training.avatars.parts import Part
from bolid_training.avatars.shell import Piece


def swept(
    rings: np.ndarray,
    weights: Mapping[str, float | np.ndarray],
    color: np.ndarray,
    part: Part,
    *,
    closed: bool = True,
    texture=None,
    coordinates: np.ndarray | None = None,
) -> Piece:
    """The surface through rings [rows, columns, 3]; weights: bone -> share, one or [rows, columns].

    color: linear RGB, one [3] or one a vertex [rows, columns, 3].
    """
    rows, columns = rings.shape[:2]
    count = rows * columns
    faces = grid_faces(rows, columns, closed=closed)
    return Piece(
        vertices=np.ascontiguousarray(rings.reshape(-1, 3), np.float32),
        weights=bone_weights(weights, (rows, columns)),
        faces=faces,
        colors=np.ascontiguousarray(np.broadcast_to(color, (rows, columns, 3)).reshape(count, 3), np.float32),
        parts=np.full(len(faces), int(part), np.uint8),
        texture=texture,
        coordinates=None if coordinates is None else np.ascontiguousarray(coordinates.reshape(-1, 3), np.float32),
    )


def bone_weights(weights: Mapping[str, float | np.ndarray], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Weights [rows * columns, B], normalised to sum to 1."""
    bones = anatomy().bones
    columns = np.array([bones[name] for name in weights])
    values = np.stack([np.broadcast_to(value, shape).ravel() for value in weights.values()], 1).astype(np.float32)
    values /= values.sum(1, keepdims=True)
    count = len(values)
    rows = np.repeat(np.arange(count), len(columns))
    return sparse.csr_matrix((values.ravel(), (rows, np.tile(columns, count))), (count, len(bones)))


def angles(count: int) -> np.ndarray:
    """`count` angles around a ring, radians; 0 is the body's left (+x), pi/2 its back (+y)."""
    return np.linspace(0, 2 * np.pi, count, endpoint=False)
