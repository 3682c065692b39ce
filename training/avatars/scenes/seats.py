"""What the person sits on, fitted to the figure's `SeatSpec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.body import SeatSpec
from bolid_training.avatars.mesh import Mesh
from bolid_training.avatars.parts import Part
from bolid_training.avatars.scenes.builder import Builder
from bolid_training.avatars.scenes.scene import named, pick

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black", "beige")


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A kind of seat and its colour, as captions name it."""

    kind: str
    color: str


def sample_seat(indoor: bool, yaw: float, rng: np.random.Generator) -> Seat:
    """A seat that fits the place; from behind only those without a back, from the side none with armrests."""
    turned = abs(np.degrees(yaw))
    kinds = ["stool", "box"] if indoor else ["box", "bench"]
    if turned < 110:
        kinds += ["chair"]
    if turned < 55:
        kinds += ["sofa", "sofa", "armchair"] if indoor else ["bench"]
    return Seat(kind=pick(rng, kinds), color=pick(rng, COLORS))


def seat_width(seat: Seat) -> float:
    """How wide the seat is, metres."""
    return {"sofa": 1.9, "bench": 1.7, "armchair": 1.0}.get(seat.kind, 0.6)


def build_seat(seat: Seat, spec: SeatSpec) -> list[Mesh]:
    """Meshes of the seat under the figure, world coordinates."""
    b = Builder(np.random.default_rng(0))
    BUILDERS[seat.kind](b, spec, named(seat.color))
    return [mesh.turned(spec.yaw).moved((spec.position[0], spec.position[1], 0)) for mesh in b.meshes()]


def _block(b: Builder, x: float, y: float, z: float, size: tuple[float, float, float], color: np.ndarray) -> None:
    b.box((x, y, z), size, color, part=Part.PROP)


def _stool(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    radius = max(spec.depth, 0.36) / 2
    b.tube((0, 0, spec.height - 0.06), radius, 0.06, color, sides=14, part=Part.PROP)
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        b.beam((0.8 * radius * x, 0.8 * radius * y, 0), (0.5 * radius * x, 0.5 * radius * y, spec.height - 0.05), 0.045,
               color * 0.7, Part.PROP)  # fmt: skip


def _box(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    _block(b, 0, 0, 0, (0.55, max(spec.depth, 0.42), spec.height), color)


def _bench(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    depth = max(spec.depth, 0.4)
    for row in (-0.33, 0.0, 0.33):
        _block(b, 0, row * depth, spec.height - 0.06, (1.7, depth * 0.28, 0.06), color)
    for side in (-0.7, 0.7):
        _block(b, side, 0, 0, (0.08, depth * 0.9, spec.height - 0.06), color * 0.6)


def _chair(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    depth, back = max(spec.depth, 0.42), max(spec.depth, 0.42) / 2
    _block(b, 0, 0, spec.height - 0.05, (0.46, depth, 0.05), color)
    for x in (-0.2, 0.2):
        _block(b, x, -0.42 * depth, 0, (0.05, 0.05, spec.height - 0.05), color * 0.7)
        _block(b, x, back, 0, (0.05, 0.05, spec.height + 0.5), color * 0.7)
    for z in (0.22, 0.38):
        _block(b, 0, back, spec.height + z, (0.42, 0.03, 0.11), color)


def _upholstered(b: Builder, spec: SeatSpec, color: np.ndarray, width: float) -> None:
    depth = max(spec.depth, 0.5)
    _block(b, 0, 0.05, 0.06, (width, depth + 0.1, spec.height - 0.06), color)
    _block(b, 0, depth / 2 + 0.15, 0.06, (width, 0.2, spec.height + 0.42), color * 0.92)
    for side in (-1, 1):
        _block(b, side * (width / 2 + 0.08), 0.08, 0.06, (0.18, depth + 0.2, spec.height + 0.12), color * 0.85)


def _sofa(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    _upholstered(b, spec, color, 1.7)


def _armchair(b: Builder, spec: SeatSpec, color: np.ndarray) -> None:
    _upholstered(b, spec, color, max(0.72, spec.width + 0.2))


BUILDERS: dict[str, Callable[[Builder, SeatSpec, np.ndarray], None]] = {
    "stool": _stool,
    "box": _box,
    "bench": _bench,
    "chair": _chair,
    "sofa": _sofa,
    "armchair": _armchair,
}
