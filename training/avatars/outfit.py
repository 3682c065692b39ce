"""Everything a person shows: skin, clothes, hair, as pieces in the rest pose."""

from functools import cache

import numpy as np

from bolid_training.avatars import coverage
from bolid_training.avatars.anatomy import Rest, anatomy
from bolid_training.avatars.face import face_texture, iris_color, skin_color
from bolid_training.avatars.garments import BOTTOMS, bottom, bottom_covers, top, top_covers
from bolid_training.avatars.hair import hair
from bolid_training.avatars.headwear import glasses, hat
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Person
from bolid_training.avatars.shell import Piece
from bolid_training.avatars.shoes import shoes
from bolid_training.avatars.skirts import SKIRTS, hood, skirt

HIDDEN_MARGIN = 0.015  # metres inside a garment's edge from which on the skin below is left out


def dress(person: Person, shape: Rest) -> list[Piece]:
    """The pieces from the skin outwards."""
    tucked = person.lower is not None and person.lower.kind in SKIRTS
    pieces = [_skin(person, shape), top(person.upper, shape, tucked=tucked)]
    pieces += [*shoes(person.shoes, shape), *hair(person, shape)]
    if person.lower is not None and person.lower.kind in BOTTOMS:
        pieces.append(bottom(person.lower, shape))
    worn = (person.lower, person.upper, person.outer)
    pieces += [skirt(garment, shape) for garment in worn if garment is not None and garment.kind in SKIRTS]
    if person.outer is not None:
        pieces.append(top(person.outer, shape))
    if person.upper.kind == "hoodie":
        pieces.append(hood(person.upper, shape))
    if person.hat is not None:
        pieces += hat(person.hat, person.hair_style, shape)
    if person.glasses:
        pieces += glasses(shape)
    return pieces


def _skin(person: Person, shape: Rest) -> Piece:
    lower = person.lower.kind if person.lower is not None and person.lower.kind in BOTTOMS else ""
    faces, parts, coordinates = _visible_skin(person.upper.kind, lower)
    return Piece(
        vertices=shape.vertices,
        weights=anatomy().weights,
        faces=faces,
        colors=np.tile(skin_color(person), (len(shape.vertices), 1)),
        parts=parts,
        texture=face_texture(person, iris_color(person)),
        coordinates=coordinates,
    )


@cache
def _visible_skin(upper: str, lower: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces not under clothes, their parts, and the face texture's coordinates [V, 4]."""
    shared = anatomy()
    covered = (top_covers(upper, shared.template) > HIDDEN_MARGIN) & ~coverage.head_vertices()
    covered |= coverage.foot_vertices()
    if lower:
        covered |= (bottom_covers(lower, shared.template) > HIDDEN_MARGIN) & ~coverage.arm_vertices()
    else:  # a skirt or a dress
        covered |= (np.abs(shared.template[:, 2] - coverage.HIP) < 0.1) & ~coverage.arm_vertices()
    faces = shared.faces[~covered[shared.faces].all(1)]
    eye = shared.of_bones("eye")[:, None]
    return faces, _skin_parts()[faces].max(1), np.hstack([shared.template, eye]).astype(np.float32)


@cache
def _skin_parts() -> np.ndarray:
    """Part of every vertex, uint8 [V]."""
    shared = anatomy()
    parts = np.full(len(shared.template), int(Part.FACE), np.uint8)
    parts[shared.template[:, 2] < coverage.HIP] = int(Part.LEGS)
    parts[coverage.arm_vertices()] = int(Part.ARMS)
    return parts
