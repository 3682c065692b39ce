"""Whom a bundle is asked to draw, and how: one or several rounds of a reference and a prompt for each test person.

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
    """`index` is the reference's place in the split, `other` that of another picture of the person, which is nobody's
    reference: a photograph, or else a drawing, or else the reference. A person has one trial a `round`."""

    index: int
    other: int
    round: int
    identity: int
    pose: str
    place: str
    prompt: str


def trials(people: People, count: int, seed: int = 0, pictures: int = 1) -> list[Trial]:
    """`pictures` trials for each of the first `count` people who have a photograph, a round of people after another.

    The same for the same split and seed, and the first round whatever `pictures` is. A person's photographs take turns
    as references, but for one that is kept for comparison.
    """
    rng = np.random.default_rng(seed)
    found: dict[int, Trial] = {}
    for index in rng.permutation(len(people)):
        identity = int(people.identity[index])
        if identity not in found and people.photos[index]:
            found[identity] = _trial(people, int(index), 0, rng)
    first = [found[identity] for identity in sorted(found)][:count]
    return first + [_trial(people, trial.index, number, rng) for number in range(1, pictures) for trial in first]


def true_prompt(people: People, index: int) -> str:
    """What a trial's prompt would be if it asked for the sample itself."""
    entry = people.metadata[index]
    return f"{POSES[entry['pose']][0]} {PLACES[entry['scene']][0]}"


def further_photographs(people: People, trial: Trial) -> list[int]:
    """Photographs of the trial's person beside the reference and the one that is kept for comparison."""
    return [index for index in _in_turn(people, trial.index)[1:] if index != trial.other]


def _trial(people: People, first: int, number: int, rng: np.random.Generator) -> Trial:
    photos = _in_turn(people, first)
    shown = photos[:-1] or photos
    index = shown[number % len(shown)]
    other = photos[-1] if len(photos) > 1 else int(people.siblings[index][0])
    pose = people.metadata[index]["pose"]
    places = [place for place in PLACES if place != people.metadata[index]["scene"]]
    place = places[rng.integers(len(places))]
    prompt = f"{POSES[pose][0]} {PLACES[place][0]}{LIGHT[rng.integers(len(LIGHT))]}"
    identity = int(people.identity[index])
    return Trial(index=index, other=other, round=number, identity=identity, pose=pose, place=place, prompt=prompt)


def _in_turn(people: People, first: int) -> list[int]:
    """The photographs of the person of the photograph `first`, beginning there."""
    photos = np.flatnonzero((people.identity == people.identity[first]) & people.photos)
    return np.roll(photos, -int(np.flatnonzero(photos == first)[0])).tolist()
