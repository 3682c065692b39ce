"""Hair: a cap lifted from the scalp, and what hangs from it."""

from functools import cache

import numpy as np

from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.coverage import head_vertices
from bolid_training.avatars.mesh import srgb_to_linear
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import HAIR_COLORS, Person
from bolid_training.avatars.shell import Piece, Shell, cut
from bolid_training.avatars.skull import Skull, skull
from bolid_training.avatars.sweep import angles, swept

THICKNESS = {"short": 0.014, "bob": 0.02, "long": 0.018, "ponytail": 0.012, "bun": 0.012, "curly": 0.034, "afro": 0.075}
HANG = {"bob": 0.19, "long": 0.4}  # metres below the skull's centre


def hair(person: Person, shape: Rest) -> list[Piece]:
    """The pieces of the person's hair style; none if bald."""
    style = person.hair_style
    if style == "bald":
        return []
    color = srgb_to_linear(HAIR_COLORS[person.hair_color])
    head = skull(shape)
    thickness = THICKNESS[style] if person.hat is None else 0.005
    pieces = [_cap(thickness, color, shape, rough=style in ("curly", "afro"))]
    if style in HANG:
        pieces.append(_curtain(head, HANG[style] * head.axes[1] / 0.098, thickness, color, shape))
    if style == "ponytail":
        pieces.append(_tail(head, color))
    if style == "bun":
        pieces.append(_bun(head, color))
    return pieces


def scalp(points: np.ndarray) -> np.ndarray:
    """Positive above the hairline, metres; for points [N, 3] of the template."""
    line = np.interp(
        points[:, 1],
        [-0.15, -0.13, -0.112, -0.1, -0.085, -0.07, -0.055, -0.03, 0.0, 0.03],
        [0.803, 0.797, 0.785, 0.765, 0.74, 0.715, 0.72, 0.715, 0.67, 0.655],
    )
    ear = np.hypot((points[:, 1] + 0.042) / 0.03, (points[:, 2] - 0.718) / 0.042) - 1
    over_ear = np.where(np.abs(points[:, 0]) > 0.05, 0.03 * ear, 1.0)
    return np.minimum(points[:, 2] - line, over_ear)


@cache
def _cap_shell() -> tuple[Shell, np.ndarray]:
    """The scalp and how far each vertex is from the hairline, 0 to 1 at 3 cm."""
    shell = cut(anatomy(), scalp, head_vertices(), soften=0)
    return shell, np.clip(scalp(shell.template) / 0.03, 0, 1).astype(np.float32)


def _cap(thickness: float, color: np.ndarray, shape: Rest, *, rough: bool) -> Piece:
    shell, inward = _cap_shell()
    offsets = thickness * (0.25 + 0.75 * np.sqrt(inward))
    shade = np.ones(len(offsets), np.float32)
    bumps = np.sin(shell.template * 260).prod(1) if rough else np.sin(shell.template[:, 0] * 330) * 0.4
    offsets = offsets * (1 + 0.18 * bumps) if rough else offsets
    shade += 0.35 * bumps
    vertices = shell.draped(shape.vertices, offsets.astype(np.float32), smoothing=3)
    return Piece(
        vertices=vertices,
        weights=shell.weights,
        faces=shell.faces,
        colors=(color * shade[:, None]).astype(np.float32),
        parts=np.full(len(shell.faces), int(Part.HAIR), np.uint8),
    )


def _curtain(head: Skull, length: float, thickness: float, color: np.ndarray, shape: Rest) -> Piece:
    """Hair that falls from the crown around the sides and the back, leaving the face free."""
    rows, columns = 12, 26
    face = np.radians(52)
    around = np.linspace(-np.pi / 2 + face, 3 * np.pi / 2 - face, columns)[None]
    polar = np.concatenate([np.linspace(0.12, np.pi / 2, 5), np.full(rows - 5, np.pi / 2)])[:, None]
    fall = np.concatenate([np.zeros(5), np.linspace(0, 1, rows - 4)[1:]])[:, None]
    grow = 1 + (thickness + 0.006) / head.axes.mean()
    wave = 1 + 0.03 * np.sin(around * 9 + fall * 5)
    spread = (1 - 0.12 * np.sin(fall * np.pi)) * wave
    unit = np.stack(
        [np.sin(polar) * np.cos(around) * spread, np.sin(polar) * np.sin(around) * spread, np.cos(polar) + 0 * around],
        -1,
    )
    rings = head.centre + head.axes * unit * grow
    rings[..., 2] -= fall * length
    # On the shoulders and the back the hair lies outside the body.
    low = np.clip((fall * length - 0.16) / 0.1, 0, 1)
    rings[..., 1] += low * 0.06 * np.clip(np.sin(around) + 0.3, 0, 1)
    loose = np.clip((fall * length - 0.1) / 0.15, 0, 1) * 0.8 + 0 * around
    shade = 1 + 0.2 * np.sin(around * 17) + 0 * fall
    return swept(
        rings[::-1],
        {"head": 1 - loose[::-1], "spine01": loose[::-1]},
        color * shade[::-1, :, None],
        Part.HAIR,
        closed=False,
    )


def _tail(head: Skull, color: np.ndarray) -> Piece:
    """A strand from the back of the crown down to the shoulder blades."""
    share = np.linspace(0, 1, 9)
    start = head.at(np.array([0.0, 0.95, 0.35]))
    path = start + np.stack(
        [
            0 * share,
            0.07 * np.sin(np.pi * np.minimum(share * 1.3, 1)) + 0.02 * share,
            0.03 * np.sin(np.pi * share) - 0.26 * share,
        ],
        1,
    )
    radius = np.interp(share, [0, 0.12, 0.5, 1], [0.012, 0.026, 0.028, 0.006])[:, None]
    around = angles(10)[None]
    rings = path[:, None] + np.stack(
        [radius * np.cos(around), radius * np.sin(around), 0.3 * radius * np.sin(around)], -1
    )
    sway = np.clip(share * 1.2 - 0.4, 0, 0.6)[:, None] + 0 * around
    return swept(rings[::-1], {"head": 1 - sway[::-1], "spine01": sway[::-1]}, color * 0.9, Part.HAIR)


def _bun(head: Skull, color: np.ndarray) -> Piece:
    centre = head.at(np.array([0.0, 0.75, 0.95]))
    polar, around = np.linspace(np.pi, 0, 8)[:, None], angles(12)[None]
    ball = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar) + 0 * around], -1)
    return swept(centre + ball * head.axes.mean() * 0.42, {"head": 1.0}, color * 0.9, Part.HAIR)
