"""Captions say what is true, in words of the vocabulary."""

from dataclasses import replace

import numpy as np
import pytest

from bolid_training.avatars.attributes import Attributes
from bolid_training.avatars.captions import CAPTIONS, OBJECTS, captions, vocabulary, words
from bolid_training.avatars.people import PALETTE, sample_person
from bolid_training.avatars.phrases import COLOR_WORDS, HAIR, PLACES, POSES, TIMES
from bolid_training.avatars.poses import POSE_CLASSES
from bolid_training.avatars.scenes import PLACES as SCENES
from bolid_training.avatars.scenes import Seat, build_scene
from bolid_training.avatars.styles import STYLES


def attributes(seed: int, **changes) -> Attributes:
    rng = np.random.default_rng(seed)
    place = SCENES[str(rng.choice(list(SCENES)))]
    time = str(rng.choice(list(place.times)))
    pose = str(rng.choice(POSE_CLASSES))
    found = Attributes(
        person=sample_person(rng),
        pose=pose,
        view=str(rng.choice(["front", "side", "back"])),
        seat=Seat(kind="chair", color="red") if pose == "sitting" else None,
        place=place.name,
        time=time,
        indoor=place.indoor,
        objects=build_scene(place, time, 0.4, rng).objects,
        style=str(rng.choice(list(STYLES))),
    )
    return replace(found, **changes)


@pytest.mark.parametrize("seed", range(60))
def test_captions_are_different_and_in_the_vocabulary(seed):
    found = captions(attributes(seed), np.random.default_rng(seed))
    known = set(vocabulary())
    assert len(set(found)) == CAPTIONS
    for caption in found:
        assert caption == caption.lower()
        assert set(words(caption)) <= known
        assert caption == " ".join(caption.split())


@pytest.mark.parametrize("seed", range(60))
def test_captions_name_only_what_is_there(seed):
    truth = attributes(seed, time="night", place="kitchen", indoor=True, pose="walking", seat=None, objects=())
    for caption in captions(truth, np.random.default_rng(seed)):
        assert not [
            p for name, texts in POSES.items() if name != "walking" for p in texts if f" {p} " in f" {caption} "
        ]
        assert not [p for name, texts in PLACES.items() if name != "kitchen" for p in texts if p in caption]
        assert not [t for name, texts in TIMES.items() if name != "night" for t in texts if t in caption]
        assert not set(OBJECTS) & set(words(caption))


@pytest.mark.parametrize("style", ["pencil sketch", "black and white"])
def test_styles_without_hue_name_no_color(style):
    colors = {*PALETTE, *(word for options in COLOR_WORDS.values() for word in options)} - {"black", "white"}
    for seed in range(30):
        truth = attributes(seed, style=style, time="day", place="park", indoor=False)
        for caption in captions(truth, np.random.default_rng(seed)):
            assert not colors & set(words(caption.replace("black and white", "")))


def test_nobody_is_described_without_a_person():
    truth = attributes(1, person=None, pose=None, view=None, seat=None)
    for caption in captions(truth, np.random.default_rng(0)):
        assert not {"man", "woman", "boy", "girl", *POSE_CLASSES} & set(words(caption))


def test_every_place_pose_and_hair_has_words():
    assert set(PLACES) == set(SCENES)
    assert set(POSES) == set(POSE_CLASSES)
    assert {*HAIR, "bald"} >= {sample_person(np.random.default_rng(seed)).hair_style for seed in range(100)}


def test_objects_of_all_places_are_known():
    rng = np.random.default_rng(0)
    for place in SCENES.values():
        for _ in range(5):
            scene = build_scene(place, next(iter(place.times)), 0.4, rng)
            assert {thing.name for thing in scene.objects} <= set(OBJECTS)
            assert {thing.color for thing in scene.objects} <= set(PALETTE)
