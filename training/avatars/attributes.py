"""What is true of a picture, as plain values: the one source of captions and of the metadata of a sample."""

from __future__ import annotations

from dataclasses import dataclass

from bolid_training.avatars.people import Garment, Person
from bolid_training.avatars.scenes import SceneObject, Seat
from bolid_training.avatars.styles import MONOCHROME


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Everything captions may say. `person` is None in pictures of nobody; `objects` are in the frame."""

    person: Person | None
    pose: str | None
    view: str | None
    seat: Seat | None
    place: str
    time: str
    indoor: bool
    objects: tuple[SceneObject, ...]
    style: str

    @property
    def colored(self) -> bool:
        """False when the style shows no hue, so no colour may be named."""
        return self.style not in MONOCHROME


def as_dict(attributes: Attributes) -> dict:
    """Plain values for JSON; garments as {"kind", "color", "pattern"}."""
    person, seat = attributes.person, attributes.seat
    return {
        "person": None if person is None else _person(person),
        "pose": attributes.pose,
        "view": attributes.view,
        "seat": None if seat is None else {"kind": seat.kind, "color": seat.color},
        "place": attributes.place,
        "time": attributes.time,
        "objects": [{"name": o.name, "color": o.color} for o in attributes.objects],
        "style": attributes.style,
    }


def _person(person: Person) -> dict:
    plain = ("gender", "age", "skin", "hair_style", "hair_length", "hair_color", "beard", "glasses")
    garments = ("upper", "outer", "lower", "shoes", "hat")
    return {name: getattr(person, name) for name in plain} | {
        name: _garment(getattr(person, name)) for name in garments
    }


def _garment(garment: Garment | None) -> dict | None:
    if garment is None:
        return None
    return {"kind": garment.kind, "color": garment.color, "pattern": garment.pattern}
