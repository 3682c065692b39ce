"""Hats and glasses, fitted to the skull."""

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.garments import cloth_color
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Garment
from bolid_training.avatars.shell import Piece
from bolid_training.avatars.skull import Skull, skull
from bolid_training.avatars.sweep import angles, swept

LOW = {"cap": 0.25, "beanie": 0.02, "sun hat": 0.28}  # where the dome ends, in half axes above the skull's centre


def hat(garment: Garment, hair_style: str, shape: Rest) -> list[Piece]:
    """A dome, with a visor or a brim."""
    head, color = skull(shape), cloth_color(garment)
    room = 1.13 if hair_style in ("bald", "short") else 1.19
    pieces = [_dome(garment.kind, head, room, color)]
    if garment.kind == "cap":
        pieces.append(_visor(head, room, color * 0.8))
    if garment.kind == "sun hat":
        pieces.append(_brim(head, room, color))
    return pieces


def _dome(kind: str, head: Skull, room: float, color: np.ndarray) -> Piece:
    low = LOW[kind]
    polar, around = np.linspace(np.arccos(low), 0, 8)[:, None], angles(22)[None]
    tall = {"cap": 1.0, "beanie": 1.1, "sun hat": 1.06}[kind]
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
    unit = np.stack([reach * np.cos(around), reach * np.sin(around), 0.3 - 0.14 * out + 0 * around], -1)
    return swept(head.at(unit), {"head": 1.0}, color, Part.HAT)


def glasses(shape: Rest) -> Piece:
    """Dark round frames with a bridge and temples, as one tube."""
    bones = anatomy().bones
    left, right = shape.heads[bones["eye.L"]], shape.heads[bones["eye.R"]]
    gap = np.linalg.norm(left - right)
    radius = 0.33 * gap
    turn = np.linspace(0, 2 * np.pi, 17)
    lens = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], 1) * radius
    front = np.array([0, -0.36 * gap, 0])
    ear = np.array([0.5 * gap, 1.5 * gap, 0.08 * gap])
    temple_l, temple_r = left + front + [radius, 0, 0], right + front - [radius, 0, 0]
    path = np.concatenate(
        [
            [temple_r + ear * [-1, 1, 1]],
            right + front + lens[::-1] * [1, 1, 1] @ np.diag([-1, 1, 1]),
            right + front + (lens * [-1, 1, 1])[8:9],
            left + front + lens * [-1, 1, 1],
            left + front + (lens * [-1, 1, 1])[8:9],
            [temple_l + ear],
        ]
    )
    around = angles(5)[None]
    thick = 0.045 * gap
    rings = path[:, None] + thick * np.stack([np.cos(around) * 0.7, np.sin(around), np.cos(around)], -1)
    return swept(rings, {"head": 1.0}, np.array([0.012, 0.012, 0.015]), Part.FACE)
