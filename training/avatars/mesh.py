"""Triangle meshes and the few primitives scenes and clothes are built from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from bolid_training.avatars.parts import Part

Color: TypeAlias = Sequence[float] | np.ndarray
Texture: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A triangle mesh in metres, z up.

    vertices float32 [V, 3]; faces int32 [F, 3], counter-clockwise seen from outside;
    colors float32 [V, 3], linear RGB in [0, 1], interpolated; parts uint8 [F], values of `Part`;
    smooth: shade with interpolated vertex normals instead of the face's own.
    texture: optional function (coordinates [N, 3], colors [N, 3]) -> colors [N, 3], evaluated at every hit, so that
    patterns are as sharp as the picture; coordinates float32 [V, 3] are what it gets, interpolated.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    parts: np.ndarray
    smooth: bool = True
    texture: Texture | None = None
    coordinates: np.ndarray | None = None

    def moved(self, offset: Sequence[float]) -> "Mesh":
        """A copy shifted by `offset` [3]."""
        return replace(self, vertices=(self.vertices + np.asarray(offset)).astype(np.float32))

    def turned(self, yaw: float) -> "Mesh":
        """A copy turned counter-clockwise about the z axis by `yaw` radians."""
        return self.transformed(yaw_matrix(yaw))

    def scaled(self, factors: float | Sequence[float]) -> "Mesh":
        """A copy scaled about the origin; one positive factor, or one an axis."""
        return replace(self, vertices=(self.vertices * np.asarray(factors)).astype(np.float32))

    def transformed(self, rotation: np.ndarray) -> "Mesh":
        """A copy with every vertex v replaced by rotation [3, 3] @ v."""
        return replace(self, vertices=(self.vertices @ np.asarray(rotation).T).astype(np.float32))

    def painted(self, color: Color) -> "Mesh":
        """A copy in one linear RGB color, or in one a vertex ([V, 3])."""
        return replace(self, colors=_per_vertex(color, len(self.vertices)))


def yaw_matrix(yaw: float) -> np.ndarray:
    """Rotation [3, 3] about z by `yaw` radians, counter-clockwise seen from above."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def srgb_to_linear(rgb: Color) -> np.ndarray:
    """sRGB in [0, 1], any shape, to linear light (IEC 61966-2-1)."""
    rgb = np.asarray(rgb, np.float32)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def from_triangles(
    vertices: np.ndarray, faces: np.ndarray, color: Color, part: Part = Part.BACKGROUND, smooth: bool = True
) -> Mesh:
    """A mesh of one part; `color` is linear RGB, one or one a vertex."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    faces = np.ascontiguousarray(faces, np.int32)
    return Mesh(
        vertices=vertices,
        faces=faces,
        colors=_per_vertex(color, len(vertices)),
        parts=np.full(len(faces), int(part), np.uint8),
        smooth=smooth,
    )


def box(size: Sequence[float], color: Color, part: Part = Part.BACKGROUND) -> Mesh:
    """An axis-aligned box of `size` [3] metres that stands on z = 0, centred on the z axis."""
    corners = np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
    quads = np.array([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])
    return from_triangles(corners * np.asarray(size), _quads_to_triangles(quads), color, part, smooth=False)


def cylinder(
    radius: float,
    height: float,
    color: Color,
    part: Part = Part.BACKGROUND,
    *,
    top: float | None = None,
    sides: int = 16,
) -> Mesh:
    """An upright capped cylinder on z = 0; `top` is the upper radius (a frustum, 0 for a cone)."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    top = radius if top is None else top
    rings = [np.c_[circle * r, np.full(sides, z)] for r, z in ((radius, 0.0), (top, height))]
    vertices = np.concatenate([*rings, [[0, 0, 0], [0, 0, height]]])
    i = np.arange(sides)
    j = (i + 1) % sides
    side = _quads_to_triangles(np.stack([i, j, j + sides, i + sides], 1))
    floor = np.stack([j, i, np.full(sides, 2 * sides)], 1)
    roof = np.stack([i + sides, j + sides, np.full(sides, 2 * sides + 1)], 1)
    return from_triangles(vertices, np.concatenate([side, floor, roof]), color, part, smooth=False)


def cone(radius: float, height: float, color: Color, part: Part = Part.BACKGROUND, *, sides: int = 16) -> Mesh:
    """An upright cone on z = 0."""
    return cylinder(radius, height, color, part, top=0.0, sides=sides)


def sphere(radius: float, color: Color, part: Part = Part.BACKGROUND, *, rings: int = 8, sides: int = 14) -> Mesh:
    """A sphere about the origin; scale it for an ellipsoid."""
    polar = np.linspace(0, np.pi, rings + 1)[:, None]
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)[None]
    z = np.broadcast_to(np.cos(polar), (rings + 1, sides))
    grid = np.stack([np.sin(polar) * np.cos(angles), np.sin(polar) * np.sin(angles), z], -1)
    return from_triangles(grid.reshape(-1, 3) * radius, grid_faces(rings + 1, sides, flip=True), color, part)


def grid_faces(rows: int, columns: int, *, closed: bool = True, flip: bool = False) -> np.ndarray:
    """Triangles int32 [F, 3] over a row-major grid of vertices.

    closed: the last column joins the first. Rows going up a counter-clockwise ring face outside; flip otherwise.
    """
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    k = (j + 1) % columns
    quads = np.stack([i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j], -1).reshape(
        -1, 4
    )
    return _quads_to_triangles(quads[:, ::-1] if flip else quads)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several that agree on `smooth`."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]).astype(np.int32),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
        parts=np.concatenate([mesh.parts for mesh in meshes]),
        smooth=meshes[0].smooth,
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3], faces weighted by area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    weighted = np.cross(b - a, c - a)
    index = faces.T.ravel()
    normals = np.stack([np.bincount(index, np.tile(weighted[:, i], 3), len(vertices)) for i in range(3)], 1)
    return normalized(normals).astype(np.float32)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] scaled to unit length; zero stays zero."""
    return vectors / np.maximum(np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None], 1e-12)


def _quads_to_triangles(quads: np.ndarray) -> np.ndarray:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


def _per_vertex(color: Color, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(color, np.float32), (count, 3)))
