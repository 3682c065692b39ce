"""Collects coloured primitives into a few meshes. Metres, z up; colours are sRGB hex strings or linear RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from bolid_training.avatars.mesh import Mesh
from bolid_training.avatars.parts import Part

Color = str | np.ndarray | Sequence[float]


@cache
def _hex_to_linear(text: str) -> tuple[float, ...]:
    srgb = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return tuple(np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4))


def linear(color: Color) -> np.ndarray:
    """'#rrggbb' or a linear triple to float32 [3], linear light."""
    return np.asarray(_hex_to_linear(color) if isinstance(color, str) else color, dtype=np.float32)


@cache
def _unit_box() -> tuple[np.ndarray, np.ndarray]:
    corners = [(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0.0, 1.0)]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [(a, b, c) for a, b, c, _ in quads] + [(a, c, d) for a, _, c, d in quads]
    return np.array(corners, dtype=np.float32), np.array(faces, dtype=np.int32)


@cache
def _unit_tube(sides: int, top: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bottom = np.c_[ring, np.zeros(sides)]
    upper = np.c_[ring * top, np.ones(sides)]
    vertices = np.vstack([bottom, upper, [[0, 0, 0], [0, 0, 1]]]).astype(np.float32)
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    caps = [np.c_[j, i, np.full(sides, 2 * sides)], np.c_[i + sides, j + sides, np.full(sides, 2 * sides + 1)]]
    walls = [np.c_[i, j, j + sides], np.c_[i, j + sides, i + sides]]
    return vertices, np.vstack(walls + caps).astype(np.int32)


@cache
def _unit_ball(rings: int = 6, sides: int = 10) -> tuple[np.ndarray, np.ndarray]:
    polar = np.linspace(0, np.pi, rings + 1)[1:-1]
    angle = np.arange(sides) * 2 * np.pi / sides
    sin, cos = np.sin(polar)[:, None], np.cos(polar)[:, None]
    body = np.stack([sin * np.cos(angle), sin * np.sin(angle), cos + 0 * angle], axis=-1).reshape(-1, 3)
    vertices = np.vstack([body, [[0, 0, 1], [0, 0, -1]]]).astype(np.float32)
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = [np.c_[np.full(sides, len(body)), i, j]]
    for ring in range(rings - 2):
        a, b = ring * sides, (ring + 1) * sides
        faces += [np.c_[a + i, b + i, b + j], np.c_[a + i, b + j, a + j]]
    last = (rings - 2) * sides
    faces.append(np.c_[last + i, np.full(sides, len(body) + 1), last + j])
    return vertices, np.vstack(faces).astype(np.int32)


_ROOF = (
    np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0), (-0.5, 0, 1), (0.5, 0, 1)], np.float32),
    np.array([(0, 1, 5), (0, 5, 4), (2, 3, 4), (2, 4, 5), (3, 0, 4), (1, 2, 5)], np.int32),
)


def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of rows x columns vertices, int32 [2 (rows-1) (columns-1), 3]."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    corners = (a, a + 1, a + columns + 1, a + columns)
    return np.vstack([np.c_[corners[0], corners[1], corners[2]], np.c_[corners[0], corners[2], corners[3]]]).astype(
        np.int32
    )


class Builder:
    """Primitives go in by `box`, `tube` …, meshes come out by `meshes`. Positions are of the middle of the foot."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._pieces: dict[tuple[bool, Part], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def add(self, vertices: np.ndarray, faces: np.ndarray, color: Color | np.ndarray, smooth: bool, part: Part) -> None:
        """Any mesh; color is one colour or linear [V, 3]."""
        shade = color if isinstance(color, np.ndarray) and color.ndim == 2 else linear(color)
        colors = np.broadcast_to(shade, vertices.shape)
        self._pieces.setdefault((smooth, part), []).append((vertices, faces, colors))

    def box(
        self,
        foot: Sequence[float],
        size: Sequence[float],
        color: Color,
        yaw: float = 0.0,
        part: Part = Part.BACKGROUND,
    ) -> None:
        """A box of size (width, depth, height)."""
        self._place(_unit_box(), foot, size, color, yaw, False, part)

    def roof(self, foot: Sequence[float], size: Sequence[float], color: Color, yaw: float = 0.0) -> None:
        """A gabled roof whose ridge runs along x."""
        self._place(_ROOF, foot, size, color, yaw, False, Part.BACKGROUND)

    def tube(
        self,
        foot: Sequence[float],
        radius: float,
        height: float,
        color: Color,
        top: float = 1.0,
        sides: int = 9,
        part: Part = Part.BACKGROUND,
    ) -> None:
        """An upright cylinder; top is the upper radius over the lower, 0 makes a cone."""
        self._place(_unit_tube(sides, top), foot, (radius, radius, height), color, 0.0, False, part)

    def ball(
        self, centre: Sequence[float], radii: Sequence[float] | float, color: Color, part: Part = Part.BACKGROUND
    ) -> None:
        """An ellipsoid, smooth."""
        self._place(_unit_ball(), centre, np.broadcast_to(radii, 3), color, 0.0, True, part)

    def leaves(self, centre: Sequence[float], radii: Sequence[float] | float, color: Color) -> None:
        """An uneven ellipsoid, light on top: foliage, rocks, snow heaps."""
        unit, faces = _unit_ball(4, 7)
        uneven = unit * self.rng.uniform(0.8, 1.2, (len(unit), 1)).astype(np.float32)
        shade = linear(color) * (0.75 + 0.3 * (unit[:, 2:] + 1) / 2 + self.rng.uniform(-0.08, 0.08, (len(unit), 1)))
        vertices = uneven * np.broadcast_to(radii, 3).astype(np.float32) + np.asarray(centre, np.float32)
        self.add(vertices.astype(np.float32), faces, shade.astype(np.float32), False, Part.BACKGROUND)

    def beam(
        self, start: Sequence[float], end: Sequence[float], width: float, color: Color, part: Part = Part.BACKGROUND
    ) -> None:
        """A square bar between two points."""
        start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
        along = end - start
        aside = np.cross(along, (0, 0, 1.0) if abs(along[2]) < 0.9 * np.linalg.norm(along) else (1.0, 0, 0))
        aside *= width / np.linalg.norm(aside)
        across = np.cross(along, aside)
        across *= width / np.linalg.norm(across)
        unit, faces = _unit_box()
        vertices = start + unit @ np.stack([aside, across, along]).astype(np.float32)
        self.add(vertices, faces, color, False, part)

    def tiles(self, corner: Sequence[float], u: Sequence[float], v: Sequence[float], colors: np.ndarray) -> None:
        """A rectangle spanned by u and v, cut into len(colors) x len(colors[0]) crisp tiles, linear [n, m, 3]."""
        rows, columns = colors.shape[:2]
        i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        steps = [(0, 0), (0, 1), (1, 1), (1, 0)]
        a = np.stack([(i + di) / rows for di, _ in steps], axis=-1).reshape(-1, 1)
        b = np.stack([(j + dj) / columns for _, dj in steps], axis=-1).reshape(-1, 1)
        vertices = np.asarray(corner) + a * np.asarray(v) + b * np.asarray(u)
        first = 4 * np.arange(rows * columns)[:, None]
        faces = np.vstack([first + (0, 1, 2), first + (0, 2, 3)]).astype(np.int32)
        shade = np.repeat(colors.reshape(-1, 3), 4, axis=0).astype(np.float32)
        self.add(vertices.astype(np.float32), faces, shade, False, Part.BACKGROUND)

    def panel(self, corner: Sequence[float], u: Sequence[float], v: Sequence[float], color: Color) -> None:
        """A plain rectangle."""
        self.tiles(corner, u, v, linear(color)[None, None])

    def surface(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, colors: np.ndarray, smooth: bool = True) -> None:
        """A height field: x [columns], y [rows], z and colors [rows, columns(, 3)]."""
        columns, rows = np.meshgrid(x, y)
        vertices = np.stack([columns, rows, z], axis=-1).reshape(-1, 3).astype(np.float32)
        shade = colors.reshape(-1, 3).astype(np.float32)
        self.add(vertices, grid_faces(len(y), len(x)), shade, smooth, Part.BACKGROUND)

    def meshes(self) -> list[Mesh]:
        """One mesh for each combination of shading and part."""
        return [self._merge(smooth, part, pieces) for (smooth, part), pieces in self._pieces.items()]

    def _place(self, unit, foot, size, color, yaw: float, smooth: bool, part: Part) -> None:
        vertices = unit[0] * np.asarray(size, np.float32)
        if yaw:
            c, s = np.cos(yaw), np.sin(yaw)
            vertices = vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
        self.add(vertices + np.asarray(foot, np.float32), unit[1], color, smooth, part)

    @staticmethod
    def _merge(smooth: bool, part: Part, pieces: list) -> Mesh:
        offsets = np.cumsum([0] + [len(vertices) for vertices, _, _ in pieces[:-1]])
        faces = np.vstack([faces + offset for (_, faces, _), offset in zip(pieces, offsets, strict=True)])
        return Mesh(
            vertices=np.vstack([vertices for vertices, _, _ in pieces]).astype(np.float32),
            faces=faces.astype(np.int32),
            colors=np.vstack([colors for _, _, colors in pieces]).astype(np.float32),
            parts=np.full(len(faces), part, dtype=np.uint8),
            smooth=smooth,
        )
