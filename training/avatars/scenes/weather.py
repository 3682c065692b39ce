"""Light, sky and what falls from it, by time of day and weather."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bolid_training.avatars.render import Background, Light, PointLight
from bolid_training.avatars.scenes.builder import Color, linear


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Colours of one weather: sRGB hex for the sky, linear factors for the light."""

    zenith: str
    horizon: str
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    elevation: tuple[float, float]  # degrees
    clouds: float = 0.0
    fog: float = 0.0  # per metre


SKIES = {
    "day": Sky(zenith="#3f7fd0", horizon="#bcdcf2", sun=(0.72, 0.68, 0.6), ambient=(0.42, 0.46, 0.52),
               elevation=(32, 60), clouds=0.75, fog=0.004),
    "sunset": Sky(zenith="#4a4a86", horizon="#ff9a45", sun=(0.92, 0.52, 0.26), ambient=(0.50, 0.41, 0.42),
                  elevation=(10, 18), clouds=0.4, fog=0.008),
    "night": Sky(zenith="#060a1c", horizon="#1a2748", sun=(0.10, 0.13, 0.22), ambient=(0.075, 0.09, 0.15),
                 elevation=(35, 60), fog=0.008),
    "overcast": Sky(zenith="#8d979f", horizon="#c3c9cc", sun=(0.14, 0.14, 0.14), ambient=(0.70, 0.72, 0.75),
                    elevation=(50, 70), clouds=0.25, fog=0.01),
    "fog": Sky(zenith="#c9ced1", horizon="#d3d7d9", sun=(0.12, 0.12, 0.12), ambient=(0.72, 0.73, 0.75),
               elevation=(50, 70), fog=0.06),
    "rain": Sky(zenith="#5a6570", horizon="#8c979f", sun=(0.10, 0.10, 0.11), ambient=(0.50, 0.53, 0.58),
                elevation=(50, 70), clouds=0.3, fog=0.022),
    "snow": Sky(zenith="#aab4be", horizon="#d5dbe1", sun=(0.14, 0.14, 0.15), ambient=(0.70, 0.73, 0.79),
                elevation=(50, 70), fog=0.022),
}  # fmt: skip


def outdoor_light(time: str, haze: Color, rng: np.random.Generator) -> tuple[Light, Background]:
    """Sun, sky and fog. Day: the sun stands behind the camera's shoulder; sunset: low at the side."""
    sky = SKIES[time]
    elevation = np.radians(rng.uniform(*sky.elevation))
    side = rng.choice((-1, 1)) * np.radians(rng.uniform(55, 80) if time == "sunset" else rng.uniform(8, 55))
    direction = (np.sin(side) * np.cos(elevation), -np.cos(side) * np.cos(elevation), np.sin(elevation))
    ambient = np.array(sky.ambient)
    light = Light(
        direction=direction,
        color=sky.sun,
        sky=tuple(ambient),
        ground=tuple(ambient * 0.62),
        fog_color=tuple(linear(sky.horizon)),
        fog_density=sky.fog,
    )
    if time == "night":
        light = replace(light, points=(_street_light(rng),))
    return light, _sky_dome(sky, time, linear(haze), rng)


def indoor_light(time: str, wall: Color, rng: np.random.Generator) -> tuple[Light, Background]:
    """Daylight from the camera's side, or warm lamps at night; the ceiling is the background above the horizon."""
    warm = np.array((1.12, 0.86, 0.56)) if time == "night" else np.array((1.04, 1.0, 0.96))
    strength, fill = (0.42, 0.28) if time == "night" else (0.55, 0.50)
    light = Light(
        direction=(rng.uniform(-0.35, 0.35), -0.7, 0.8),
        color=tuple(strength * warm),
        sky=tuple(fill * warm),
        ground=tuple(fill * 0.8 * warm),
    )
    ceiling = linear(wall) * 0.3 + 0.6 * fill * warm

    def background(directions: np.ndarray) -> np.ndarray:
        return np.broadcast_to(ceiling.astype(np.float32), directions.shape)

    return light, background


def precipitation(image: np.ndarray, time: str, rng: np.random.Generator) -> np.ndarray:
    """Draws snow flakes or rain streaks over a linear picture [H, W, 3]; other weathers pass unchanged."""
    if time not in ("snow", "rain"):
        return image
    size = image.shape[0]
    count = 110 if time == "snow" else 90
    x, y = rng.uniform(0, size, (2, count))
    veil = np.zeros(image.shape[:2], np.float32)
    if time == "snow":
        reach, radius = 2, rng.uniform(0.6, 1.5, count) * size / 128
        for dx in range(-reach, reach + 1):
            for dy in range(-reach, reach + 1):
                column, row = (x + dx).astype(int), (y + dy).astype(int)
                distance = np.hypot(column + 0.5 - x, row + 0.5 - y)
                _splat(veil, row, column, np.clip(radius + 0.5 - distance, 0, 1) * 0.9)
        color = linear("#f7f9fc")
    else:
        length, slant = int(size * 0.07), rng.uniform(-0.25, 0.25)
        for step in range(length):
            _splat(veil, (y + step).astype(int), (x + slant * step).astype(int), np.full(count, 0.28))
        color = linear("#d3dce4")
    return image * (1 - veil[..., None]) + veil[..., None] * color


def _splat(veil: np.ndarray, rows: np.ndarray, columns: np.ndarray, amount: np.ndarray) -> None:
    inside = (rows >= 0) & (rows < veil.shape[0]) & (columns >= 0) & (columns < veil.shape[1])
    np.maximum.at(veil, (rows[inside], columns[inside]), amount[inside].astype(np.float32))


def _street_light(rng: np.random.Generator) -> PointLight:
    """A warm lamp above and before the person: at night it must still be recognised."""
    return PointLight(position=(rng.uniform(-1.6, 1.6), -2.6, 3.0), color=(6.6, 5.4, 3.6))


def _sky_dome(sky: Sky, time: str, haze: np.ndarray, rng: np.random.Generator) -> Background:
    zenith, horizon = linear(sky.zenith), linear(sky.horizon)
    disc = _disc(time, rng)
    waves = rng.normal(0, 1, (5, 2)) * np.array([1.1, 1.9, 3.1, 4.9, 7.0])[:, None]
    phases = rng.uniform(0, 2 * np.pi, 5)
    star_seed = int(rng.integers(2**31))

    def background(directions: np.ndarray) -> np.ndarray:
        up = directions[:, 2]
        blend = np.clip(up / 0.55, 0, 1)[:, None] ** 0.7
        color = horizon * (1 - blend) + zenith * blend
        if sky.clouds:
            plane = directions[:, :2] / np.maximum(up, 0.03)[:, None] * 0.5
            density = np.sin(plane @ waves.T + phases) @ np.array([1, 0.8, 0.6, 0.45, 0.3])
            cover = (np.clip(density - 0.25, 0, 1) * np.clip(up * 7, 0, 1) * sky.clouds)[:, None]
            color = color * (1 - cover) + cover * (horizon * 0.35 + 0.6 * np.array([1, 1, 1]) * horizon.max())
        if time == "night":
            stars = np.random.default_rng(star_seed).random(len(up)) > 0.9965
            color = color + (stars & (up > 0.02))[:, None] * 0.9
        if disc is not None:
            toward, shade, radius = disc
            cosine = directions @ toward
            core = np.clip((cosine - np.cos(radius)) / (1 - np.cos(radius)) * 6, 0, 1)[:, None]
            glow = np.clip((cosine - 0.90) / 0.10, 0, 1)[:, None] ** 3
            color = color * (1 - core) + core * shade + 0.25 * glow * shade
        below = np.clip(-up * 25, 0, 1)[:, None]
        return (color * (1 - below) + below * haze * (0.25 + np.mean(sky.ambient))).astype(np.float32)

    return background


def _disc(time: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Sun or moon in the picture: direction, colour, radius in radians."""
    if time not in ("sunset", "night"):
        return None
    azimuth = rng.uniform(-0.28, 0.28)
    elevation = rng.uniform(0.03, 0.10) if time == "sunset" else rng.uniform(0.12, 0.28)
    toward = np.array([np.sin(azimuth), np.cos(azimuth), np.tan(elevation)])
    shade = linear("#ffd27a") * 1.3 if time == "sunset" else linear("#f3f1e0")
    return toward / np.linalg.norm(toward), shade, 0.055 if time == "sunset" else 0.035
