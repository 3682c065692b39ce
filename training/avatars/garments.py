"""Clothes that follow the body closely: shirts, jackets, trousers."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from bolid_training.avatars import coverage
from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.mesh import srgb_to_linear
from bolid_training.avatars.parts import Part
from bolid_training.avatars.patterns import pattern
from bolid_training.avatars.people import PALETTE, Garment
from bolid_training.avatars.shell import Piece, Shell, cut


@dataclass(frozen=True, kw_only=True)
class Top:
    """The cut of an upper garment."""

    sleeve: float  # end along the arm: 0 none, 0.6 short, 1.9 long
    hem: float  # height of the hem in the template
    loose: float  # metres off the trunk
    sleeve_loose: float  # metres off the arm at the sleeve's end
    neck: float = 0.0  # drop of the neckline
    opening: float = 0.0  # half width of the open front


@dataclass(frozen=True, kw_only=True)
class Bottom:
    """The cut of trousers."""

    length: float  # end along the leg: 0.8 shorts, 1.95 long
    loose: float  # metres off the thigh
    end_loose: float  # metres off the leg at the end


TOPS = {
    "t-shirt": Top(sleeve=0.62, hem=-0.01, loose=0.016, sleeve_loose=0.024, neck=0.005),
    "tank top": Top(sleeve=-0.02, hem=0.0, loose=0.012, sleeve_loose=0.01, neck=0.03),
    "shirt": Top(sleeve=1.9, hem=-0.02, loose=0.018, sleeve_loose=0.016),
    "sweater": Top(sleeve=1.95, hem=0.0, loose=0.026, sleeve_loose=0.02),
    "hoodie": Top(sleeve=1.95, hem=-0.02, loose=0.03, sleeve_loose=0.024),
    "dress": Top(sleeve=0.4, hem=0.1, loose=0.012, sleeve_loose=0.018, neck=0.025),
    "long dress": Top(sleeve=1.0, hem=0.1, loose=0.012, sleeve_loose=0.016, neck=0.015),
    "jacket": Top(sleeve=1.95, hem=-0.01, loose=0.036, sleeve_loose=0.032, opening=0.045),
    "coat": Top(sleeve=1.98, hem=0.1, loose=0.038, sleeve_loose=0.034, opening=0.05),
}
TUCKED_HEM = 0.1  # height in the template, just below a skirt's waistband
BOTTOMS = {
    "trousers": Bottom(length=2.02, loose=0.012, end_loose=0.034),
    "jeans": Bottom(length=2.0, loose=0.009, end_loose=0.018),
    "leggings": Bottom(length=1.95, loose=0.004, end_loose=0.005),
    "shorts": Bottom(length=0.8, loose=0.014, end_loose=0.034),
}


def top(garment: Garment, shape: Rest, *, tucked: bool = False) -> Piece:
    """The close part of an upper garment (a dress's or coat's skirt is another piece), tucked into a skirt or not."""
    shell, offsets = _top_shell(garment.kind, tucked)
    return sewn(garment, shell, shell.draped(shape.vertices, offsets, smoothing=4), Part.UPPER)


def bottom(garment: Garment, shape: Rest) -> Piece:
    """Trousers of any length."""
    shell, offsets = _bottom_shell(garment.kind)
    return sewn(garment, shell, shell.draped(shape.vertices, offsets, smoothing=3), Part.LOWER)


def top_covers(kind: str, points: np.ndarray, *, tucked: bool = False) -> np.ndarray:
    """Positive where the garment lies on the template, for points [N, 3] on trunk and arms."""
    style = TOPS[kind]
    sleeve = (style.sleeve - coverage.along_arm(points)) * 0.25
    hem = max(style.hem, TUCKED_HEM) if tucked else style.hem
    field = np.minimum(np.minimum(coverage.below_neck(points, style.neck), sleeve), points[:, 2] - hem)
    # Hands and sleeves hang lower than a short hem.
    field = np.where(
        coverage.along_arm(points) > 0.3, np.minimum(sleeve, coverage.below_neck(points, style.neck)), field
    )
    if style.opening:
        field = np.where(points[:, 1] < -0.055, np.minimum(field, np.abs(points[:, 0]) - style.opening), field)
    return field


def bottom_covers(kind: str, points: np.ndarray) -> np.ndarray:
    """Positive where the trousers lie on the template, for points [N, 3] on trunk and legs."""
    return np.minimum(coverage.WAIST - points[:, 2], (BOTTOMS[kind].length - coverage.along_leg(points)) * 0.4)


def sewn(garment: Garment, shell: Shell, vertices: np.ndarray, part: Part) -> Piece:
    """A piece in the garment's color and pattern."""
    return Piece(
        vertices=vertices,
        weights=shell.weights,
        faces=shell.faces,
        colors=np.tile(cloth_color(garment), (len(vertices), 1)),
        parts=np.full(len(shell.faces), int(part), np.uint8),
        texture=cloth_texture(garment),
        coordinates=shell.smoother @ (shell.smoother @ shell.template),
    )


def cloth_color(garment: Garment) -> np.ndarray:
    """Linear RGB [3]."""
    return srgb_to_linear(PALETTE[garment.color])


def cloth_texture(garment: Garment):
    """Light patterns on dark cloth, dark ones on light cloth."""
    base = cloth_color(garment)
    second = base * 0.25 if base.mean() > 0.35 else np.minimum(base * 0.4 + 0.6, 1)
    return pattern(garment.pattern, second.astype(np.float32))


@cache
def _top_shell(kind: str, tucked: bool) -> tuple[Shell, np.ndarray]:
    style, shared = TOPS[kind], anatomy()
    shell = cut(
        shared,
        lambda points: top_covers(kind, points, tucked=tucked),
        ~coverage.head_vertices() & (shared.template[:, 2] > -0.3),
    )
    arm = np.clip(coverage.along_arm(shell.template), 0, None)
    near_neck = np.clip(coverage.below_neck(shell.template, style.neck) / 0.05, 0, 1)
    low = np.clip((0.25 - shell.template[:, 2]) / 0.25, 0, 1) * (arm < 0.2)
    trunk = style.loose * (0.35 + 0.65 * near_neck) + 0.008 * low
    sleeve = np.interp(arm, [0.1, max(style.sleeve, 0.2)], [style.loose, style.sleeve_loose])
    return shell, np.where(arm > 0.1, sleeve, trunk).astype(np.float32)


@cache
def _bottom_shell(kind: str) -> tuple[Shell, np.ndarray]:
    style, shared = BOTTOMS[kind], anatomy()
    shell = cut(shared, lambda points: bottom_covers(kind, points), ~coverage.arm_vertices())
    leg = coverage.along_leg(shell.template)
    offsets = np.interp(leg, [-0.2, 0.0, 0.2, style.length], [0.006, style.loose, style.loose, style.end_loose])
    return shell, offsets.astype(np.float32)
