"""Whom a bundle is asked to draw, and how: one or several rounds of a reference and a prompt for each test person.

The reference is a photograph of the person; the pose is kept (the SDK's default), the prompt names another place and
says nothing of the clothes. So pose must come from the skeleton, clothes from the identity tokens, place from the text.

Place and light are those of another photograph of the split: what is asked for is as common as what the Frechet
distance compares it with. A distance to other places and lights would be the prompts', whoever draws them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bolid_training.avatars.phrases import PLACES, POSES, TIMES
from bolid_training.data import People


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`index` is the reference's place in the split, `other` that of another photograph of the person, which is never a
    reference; None where there is no other, and identity is not judged. A person has one trial a `round`."""

    index: int
    other: int | None
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
    return _prompt(entry["pose"], entry)


def further_photographs(people: People, trial: Trial) -> list[int]:
    """Photographs of the trial's person beside the reference and the one that is kept for comparison."""
    return [index for index in _in_turn(people, trial.index)[1:] if index != trial.other]


def _trial(people: People, first: int, number: int, rng: np.random.Generator) -> Trial:
    photos = _in_turn(people, first)
    shown = photos[:-1] or photos
    index = shown[number % len(shown)]
    other = photos[-1] if len(photos) > 1 else None
    pose = people.metadata[index]["pose"]
    scene, identity = _elsewhere(people, index, rng), int(people.identity[index])
    return Trial(
        index=index,
        other=other,
        round=number,
        identity=identity,
        pose=pose,
        place=scene["scene"],
        prompt=_prompt(pose, scene),
    )


def _elsewhere(people: People, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """What is known of a photograph that was not taken where the photograph `index` was."""
    taken = [people.metadata[i] for i in np.flatnonzero(people.photos)]
    others = [entry for entry in taken if entry["scene"] != people.metadata[index]["scene"]]
    return others[rng.integers(len(others))]


def _prompt(pose: str, scene: dict[str, Any]) -> str:
    """In daylight light goes without saying."""
    words = [POSES[pose][0], PLACES[scene["scene"]][0]]
    return " ".join(words if scene["time"] == "day" else [*words, TIMES[scene["time"]][0]])


def _in_turn(people: People, first: int) -> list[int]:
    """The photographs of the person of the photograph `first`, beginning there."""
    photos = np.flatnonzero((people.identity == people.identity[first]) & people.photos)
    return np.roll(photos, -int(np.flatnonzero(photos == first)[0])).tolist()
