"""Hats and glasses, fitted to the skull."""

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.garments import cloth_color
from bolid_training.avatars.mesh import normalized
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Garment
from bolid_training.avatars.shell import Piece
from bolid_training.avatars.skull import Skull, skull
from bolid_training.avatars.sweep import angles, swept

LOW = {"cap": 0.25, "beanie": 0.02, "sun hat": 0.14}  # where the dome ends, in half axes above the skull's centre


def hat(garment: Garment, hair_style: str, shape: Rest) -> list[Piece]:
    """A dome, with a visor or a brim."""
    head, color = skull(shape), cloth_color(garment)
    room = 1.15 if hair_style in ("bald", "short") else 1.2
    pieces = [_dome(garment.kind, head, room, color)]
    if garment.kind == "cap":
        pieces.append(_visor(head, room, color * 0.8))
    if garment.kind == "sun hat":
        pieces.append(_brim(head, room, color))
    return pieces


def _dome(kind: str, head: Skull, room: float, color: np.ndarray) -> Piece:
    low = LOW[kind]
    polar, around = np.linspace(np.arccos(low), 0, 8)[:, None], angles(22)[None]
    tall = {"cap": 1.0, "beanie": 1.02, "sun hat": 1.06}[kind]
    unit = np.stack(
        [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), tall * np.cos(polar) + 0 * around], -1
    )
    shade = np.ones((8, 1, 1))
    if kind == "beanie":
        shade[:2] = 0.75  # the turned-up cuff
    return swept(head.at(unit * room), {"head": 1.0}, color * shade, Part.HAT)


def _visor(head: Skull, room: float, color: np.ndarray) -> Piece:
    around = np.linspace(-np.pi / 2 - 1.0, -np.pi / 2 + 1.0, 13)[None]
    out = np.linspace(0, 1, 4)[:, None]
    reach = room * 0.98 + 0.75 * out * np.cos(around + np.pi / 2) ** 0.7
    unit = np.stack([reach * np.cos(around) * 0.95, reach * np.sin(around), 0.28 - 0.16 * out**2 + 0 * around], -1)
    return swept(head.at(unit), {"head": 1.0}, color, Part.HAT, closed=False)


def _brim(head: Skull, room: float, color: np.ndarray) -> Piece:
    around, out = angles(26)[None], np.linspace(0, 1, 4)[:, None]
    reach = room * 0.97 + 0.85 * out
    unit = np.stack([reach * np.cos(around), reach * np.sin(around), 0.16 - 0.12 * out + 0 * around], -1)
    return swept(head.at(unit), {"head": 1.0}, color, Part.HAT)


def glasses(shape: Rest) -> list[Piece]:
    """Dark round frames, a bridge and temples."""
    bones = anatomy().bones
    eyes = shape.heads[bones["eye.L"]], shape.heads[bones["eye.R"]]
    gap = np.linalg.norm(eyes[0] - eyes[1])
    front = np.array([0.0, -0.42, 0.0]) * gap
    turn = np.linspace(0, 2 * np.pi, 17)
    circle = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], 1) * 0.36 * gap
    outer, ear = np.array([0.36, 0, 0.1]) * gap, np.array([0.5, 1.5, 0.1]) * gap
    paths = [eye + front + circle for eye in eyes]
    for eye, side in zip(eyes, (1, -1), strict=True):
        paths.append(np.stack([eye + front + outer * [side, 1, 1], eye + front + ear * [side, 1, 1]]))
    paths.append(np.stack([eyes[1] + front + [0.3 * gap, 0, 0.1 * gap], eyes[0] + front + [-0.3 * gap, 0, 0.1 * gap]]))
    return [_wire(path, 0.05 * gap) for path in paths]


def _wire(path: np.ndarray, thickness: float) -> Piece:
    """A tube along path [N, 3]; four-sided, so thin that its orientation does not matter."""
    along = normalized(np.gradient(path, axis=0))
    across = normalized(np.cross(along, [0.0, -1.0, 0.05]))
    up = np.cross(across, along)
    around = angles(4)[None, :, None]
    rings = path[:, None] + thickness * (np.cos(around) * across[:, None] + np.sin(around) * up[:, None])
    return swept(rings, {"head": 1.0}, np.array([0.012, 0.012, 0.015]), Part.FACE)
