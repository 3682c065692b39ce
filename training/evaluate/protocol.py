"""Whom a bundle is asked to draw, and how: one reference and one prompt for each test person.

The reference is a photograph of the person; the pose is kept (the SDK's default), the prompt names another place and
says nothing of the clothes. So pose must come from the skeleton, clothes from the identity tokens, place from the text.
"""

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.phrases import PLACES, POSES
from bolid_training.data import People

LIGHT = ("", "", " at sunset", " at night")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`index` is the reference's place in the split."""

    index: int
    identity: int
    pose: str
    place: str
    prompt: str


def trials(people: People, count: int, seed: int = 0) -> list[Trial]:
    """One trial for each of the first `count` people who have a photograph; the same for the same split and seed."""
    rng = np.random.default_rng(seed)
    found: dict[int, Trial] = {}
    for index in rng.permutation(len(people)):
        identity = int(people.identity[index])
        if identity not in found and people.photos[index]:
            found[identity] = _trial(people, int(index), rng)
    return [found[identity] for identity in sorted(found)][:count]


def _trial(people: People, index: int, rng: np.random.Generator) -> Trial:
    pose = people.metadata[index]["pose"]
    places = [place for place in PLACES if place != people.metadata[index]["scene"]]
    place = places[rng.integers(len(places))]
    prompt = f"{POSES[pose][0]} {PLACES[place][0]}{LIGHT[rng.integers(len(LIGHT))]}"
    return Trial(index=index, identity=int(people.identity[index]), pose=pose, place=place, prompt=prompt)
