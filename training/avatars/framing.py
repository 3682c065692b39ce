"""Where the camera stands: the whole body in the frame, at random size and place."""

from __future__ import annotations

import numpy as np

from bolid_training.avatars.render import Camera

MARGIN = 0.025
"""Free border around the body, in image heights."""

_LATITUDES, _LONGITUDES = (a.ravel() for a in np.meshgrid(np.linspace(-1.4, 1.4, 6), np.arange(11) * 2 * np.pi / 11))
_DIRECTIONS = np.stack(
    [np.cos(_LATITUDES) * np.cos(_LONGITUDES), np.cos(_LATITUDES) * np.sin(_LONGITUDES), np.sin(_LATITUDES)]
).astype(np.float32)


def frame_figure(points: np.ndarray, azimuth: float, *, indoor: bool, low: bool, rng: np.random.Generator) -> Camera:
    """A camera in direction `azimuth` (0 stands at -y) that sees all of `points` float32 [N, 3].

    The body takes 80 to 95 % of the frame in its larger extent, as in a full-length portrait: at 128 pixels the arm of
    a figure half as tall is about one latent wide, and often lost to the autoencoder. `low`: lying bodies, seen from
    above.
    """
    elevation = np.radians(_elevation(indoor, low, rng))
    toward = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    share, fov = rng.uniform(0.8, 0.95), rng.uniform(28, 42)
    offset = rng.uniform(-1, 1, 2) * (1.0, 0.6)
    points = _outline(points)
    target, distance = (points.min(0) + points.max(0)) / 2, 4.0
    for _ in range(4):
        camera = Camera(position=_above_ground(target + distance * toward), target=target, vertical_fov=fov)
        seen, _ = camera.project(points)
        extent = seen.max(0) - seen.min(0)
        distance *= extent.max() / share
        play = np.maximum((1 - extent) / 2 - MARGIN, 0)
        wanted = 0.5 + offset * play
        shift = ((seen.max(0) + seen.min(0)) / 2 - wanted) * distance / camera.focal
        target = target + shift @ camera.axes[:2]
    return Camera(position=_above_ground(target + distance * toward), target=target, vertical_fov=fov)


def _outline(points: np.ndarray) -> np.ndarray:
    """The points that lie farthest in 66 directions all around: few, and they span the same view."""
    return points[np.unique(np.argmax(points @ _DIRECTIONS, axis=0))]


def _elevation(indoor: bool, low: bool, rng: np.random.Generator) -> float:
    """Degrees above the horizontal: mostly eye level, now and then from higher up."""
    if low:
        return rng.uniform(8, 22 if indoor else 32)
    if rng.random() < 0.8:
        return rng.normal(4, 2.5)
    return rng.uniform(8, 14 if indoor else 24)


def _above_ground(position: np.ndarray) -> np.ndarray:
    return np.array([position[0], position[1], max(position[2], 0.25)])
