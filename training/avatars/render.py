"""A small ray caster: sun with hard shadows, hemisphere ambient, fog."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bolid_training.avatars.mesh import Mesh, normalized
from bolid_training.avatars.parts import Part
from bolid_training.avatars.surface import Hits, Surface

Background: TypeAlias = Callable[[np.ndarray], np.ndarray]

SHADOW_OFFSET = 2e-3  # metres; shadow rays start this far off the surface, so that it does not shadow itself
OCCLUSION = 0.6
OCCLUSION_DISTANCE = 0.35  # metres
OCCLUSION_TILTS = 0.6 * np.array([[1, 0, 0], [-0.5, 0.87, 0], [-0.5, -0.87, 0], [0, 0, 0.5]], np.float32)


@dataclass(frozen=True, kw_only=True)
class PointLight:
    """A lamp at `position` [3]; color [3] is its irradiance at one metre, falling with the square of the distance."""

    position: Sequence[float]
    color: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Light:
    """How a scene is lit; colors are linear RGB [3]."""

    direction: Sequence[float]  # towards the sun or key light, any length
    color: Sequence[float] = (1.0, 0.96, 0.9)
    sky: Sequence[float] = (0.4, 0.45, 0.5)  # ambient on faces looking up
    ground: Sequence[float] = (0.2, 0.19, 0.18)  # ambient on faces looking down
    fog_color: Sequence[float] = (0.8, 0.85, 0.9)
    fog_density: float = 0.0  # per metre
    points: tuple[PointLight, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera for square pictures."""

    position: Sequence[float]
    target: Sequence[float]
    vertical_fov: float  # degrees

    @property
    def axes(self) -> np.ndarray:
        """Rows: right, down, forward [3, 3]."""
        forward = normalized(np.asarray(self.target, float) - np.asarray(self.position, float))
        right = normalized(np.cross(forward, [0.0, 0.0, 1.0]))
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def focal(self) -> float:
        """Focal length in image heights."""
        return 0.5 / np.tan(np.radians(self.vertical_fov) / 2)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [N, 3] to image coordinates [N, 2] (x right, y down, [0, 1] inside) and depth [N] in metres."""
        local = (np.asarray(points, float) - np.asarray(self.position, float)) @ self.axes.T
        depth = local[:, 2]
        return 0.5 + self.focal * local[:, :2] / np.maximum(depth, 1e-6)[:, None], depth

    def directions(self, size: int) -> np.ndarray:
        """Unit directions float32 [size, size, 3] through the pixels' centres."""
        steps = ((np.arange(size) + 0.5) / size - 0.5) / self.focal
        x, y = np.meshgrid(steps.astype(np.float32), steps.astype(np.float32))
        return normalized(np.stack([x, y, np.ones_like(x)], -1) @ self.axes.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What the camera saw of a square picture of `size` pixels."""

    image: np.ndarray  # float32 [size, size, 3] linear RGB
    parts: np.ndarray  # uint8 [size, size], values of Part
    depth: np.ndarray  # float32 [size, size] metres along the ray, inf for background
    occluded: Callable[[np.ndarray, float], np.ndarray]  # (points [N, 3], tolerance in metres) -> bool [N]


def render(
    meshes: Sequence[Mesh],
    camera: Camera,
    light: Light,
    *,
    background: Background,
    size: int,
    supersample: int = 2,
) -> Rendering:
    """Ray casts `meshes`; `background` gives linear RGB [R, 3] for unit directions [R, 3] that hit nothing."""
    surface = Surface(meshes)
    directions = camera.directions(size * supersample).reshape(-1, 3)
    origin = np.asarray(camera.position, np.float32)
    hits = surface.intersect(np.broadcast_to(origin, directions.shape), directions)
    colors = np.empty(directions.shape, np.float32)
    missed = np.ones(len(directions), bool)
    missed[hits.rays] = False
    colors[missed] = background(directions[missed])
    colors[hits.rays] = _shade(surface, hits, directions[hits.rays], light, origin, size * supersample)
    parts = np.zeros(len(directions), np.uint8)
    parts[hits.rays] = surface.parts[hits.triangles]
    depth = np.full(len(directions), np.inf, np.float32)
    depth[hits.rays] = hits.distances
    return Rendering(
        image=sum(_samples(colors, size, supersample)) / np.float32(supersample**2),
        parts=_most_frequent(_samples(parts, size, supersample)),
        depth=np.minimum.reduce(_samples(depth, size, supersample)),
        occluded=lambda points, tolerance: surface.hidden(origin, points, tolerance),
    )


def _shade(
    surface: Surface, hits: Hits, directions: np.ndarray, light: Light, origin: np.ndarray, width: int
) -> np.ndarray:
    """Lambert's law: key light with hard shadow, lamps, hemisphere ambient with occlusion; then fog. [R, 3]."""
    points = origin + directions * hits.distances[:, None]
    flat, normals = surface.normals(hits, directions)
    points = points + flat * SHADOW_OFFSET
    sun = normalized(np.asarray(light.direction, np.float32))
    irradiance = _ambient(normals, light) * _openness(surface, points, flat, hits.rays, width)[:, None]
    irradiance += _visible_cosine(surface, points, flat, normals, sun)[:, None] * np.asarray(light.color, np.float32)
    for lamp in light.points:
        irradiance += _lamp(lamp, points, normals)
    colors = surface.albedo(hits) * irradiance
    if light.fog_density > 0:
        clear = np.exp(-light.fog_density * hits.distances)[:, None]
        colors = colors * clear + np.asarray(light.fog_color, np.float32) * (1 - clear)
    return colors


def _ambient(normals: np.ndarray, light: Light) -> np.ndarray:
    up = 0.5 + 0.5 * normals[:, 2:]
    return np.asarray(light.sky, np.float32) * up + np.asarray(light.ground, np.float32) * (1 - up)


def _openness(surface: Surface, points: np.ndarray, normals: np.ndarray, rays: np.ndarray, width: int) -> np.ndarray:
    """Ambient occlusion in [1 - OCCLUSION, 1] from one short ray a sample, about straight off the face.

    The four samples of a pixel (at the usual supersample of 2) tilt differently; the box filter averages them.
    """
    tilts = OCCLUSION_TILTS[rays % width % 2 + rays // width % 2 * 2]
    blocked = surface.blocked(points, normalized(normals + tilts), OCCLUSION_DISTANCE)
    return 1 - OCCLUSION * blocked.astype(np.float32)


def _visible_cosine(
    surface: Surface, points: np.ndarray, flat: np.ndarray, normals: np.ndarray, sun: np.ndarray
) -> np.ndarray:
    cosine = np.maximum(normals @ sun, 0) * (flat @ sun > 0)
    lit = np.flatnonzero(cosine > 0.01)
    shadow = surface.blocked(points[lit], np.broadcast_to(sun, (len(lit), 3)))
    cosine[lit[shadow]] = 0
    return cosine


def _lamp(lamp: PointLight, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    offsets = np.asarray(lamp.position, np.float32) - points
    squared = (offsets * offsets).sum(1)
    cosine = np.maximum((offsets * normals).sum(1), 0) / np.sqrt(squared)
    return (cosine / np.maximum(squared, 0.01))[:, None] * np.asarray(lamp.color, np.float32)


def _samples(values: np.ndarray, size: int, supersample: int) -> list[np.ndarray]:
    """[(size * supersample)^2, ...] as supersample^2 pictures [size, size, ...], one sample a pixel each."""
    grid = values.reshape(size * supersample, size * supersample, *values.shape[1:])
    return [grid[row::supersample, column::supersample] for row in range(supersample) for column in range(supersample)]


def _most_frequent(labels: list[np.ndarray]) -> np.ndarray:
    """The part most samples of each pixel show."""
    shape, parts = labels[0].shape, len(Part)
    pixels = np.arange(labels[0].size) * parts
    votes = np.bincount(np.concatenate([pixels + label.ravel() for label in labels]), minlength=len(pixels) * parts)
    return votes.reshape(*shape, parts).argmax(-1).astype(np.uint8)
