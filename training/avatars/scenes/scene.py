"""What a scene is made of, before any particular place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.mesh import Mesh, srgb_to_linear
from bolid_training.avatars.people import PALETTE
from bolid_training.avatars.render import Background, Light
from bolid_training.avatars.scenes.builder import Builder

INDOOR_TIMES = {"day": 0.72, "night": 0.28}
OUTDOOR_TIMES = {
    "day": 0.42,
    "sunset": 0.16,
    "night": 0.12,
    "overcast": 0.08,
    "fog": 0.08,
    "rain": 0.06,
    "snow": 0.08,
}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """Something captions may name: "next to a green tree". `position` [3] is its middle, metres."""

    name: str
    color: str
    relation: str
    position: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a place must respect: it is seen from -y, the person takes `clearance` metres about the origin."""

    clearance: float
    time: str

    @property
    def night(self) -> bool:
        return self.time == "night"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A kind of scene. `build` fills a builder and returns what captions may name."""

    name: str
    build: Callable[[Builder, Stage], Sequence[SceneObject]]
    indoor: bool
    haze: str = "#8a8f86"
    without: frozenset[str] = frozenset()

    @property
    def times(self) -> dict[str, float]:
        """Times of day and weathers with the probability of each."""
        weights = INDOOR_TIMES if self.indoor else OUTDOOR_TIMES
        kept = {time: weight for time, weight in weights.items() if time not in self.without}
        total = sum(kept.values())
        return {time: weight / total for time, weight in kept.items()}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A built place under its light."""

    place: str
    time: str
    indoor: bool
    meshes: list[Mesh]
    light: Light
    background: Background
    objects: tuple[SceneObject, ...]


def named(color: str) -> np.ndarray:
    """A colour of the palette in linear light, float32 [3]."""
    return srgb_to_linear(PALETTE[color])


def pick(rng: np.random.Generator, colors: Sequence[str]) -> str:
    """One of several colour names."""
    return colors[rng.integers(len(colors))]


def beside(rng: np.random.Generator, stage: Stage, half_width: float, back: float = 0.0) -> tuple[float, float]:
    """A spot (x, y) left or right of the person, clear of it, and a little more than `back` metres behind."""
    side = rng.choice((-1.0, 1.0))
    x = side * (stage.clearance + half_width + rng.uniform(0.05, 0.3))
    return float(x), float(back + rng.uniform(0.5, 1.4))
