"""People in other colours: the same pictures but for clothes and hair, and the same colours in all of a person's."""

import numpy as np
import pytest

from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import PALETTE
from bolid_training.avatars.reader import Samples
from bolid_training.avatars.recolour import DYED, Dye, draw_dyes, dyed, nearest_name, recoloured, renamed

WORN = [part for group in DYED.values() for part in group]


def worn(color: str, hair: str) -> dict:
    shirt = {"kind": "shirt", "color": color, "pattern": "plain"}
    return {"upper": shirt, "outer": None, "lower": None, "shoes": shirt, "hat": None, "hair_color": hair}


@pytest.fixture
def two_people() -> Samples:
    """Two pictures of each of two people, all parts in each, all in one colour."""
    parts = np.tile(np.arange(len(Part), dtype=np.uint8).repeat(8), (4, 8, 1))
    captions = ["a woman in a red shirt walking", "walking in a park"]
    entry = {"style": "photo", "captions": captions, "attributes": {"person": worn("red", "black")}}
    return Samples(
        images=np.full((*parts.shape, 3), (200, 90, 30), np.uint8),
        parts=parts,
        keypoints=np.zeros((4, 12, 3), np.float32),
        identity=np.array([0, 0, 1, 1], np.int32),
        metadata=[dict(entry) for _ in range(4)],
    )


def test_only_what_is_worn_changes(two_people: Samples) -> None:
    changed = (recoloured(two_people, 1).images != two_people.images).any(-1)
    assert not changed[~np.isin(two_people.parts, WORN)].any()
    assert all(changed[two_people.parts == part].all() for part in WORN)


def test_a_persons_pictures_change_alike_and_people_differently(two_people: Samples) -> None:
    images = recoloured(two_people, 1).images
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[2], images[3])
    assert (images[0] != images[2]).any()


def test_identities_are_new_and_captions_say_nothing_of_clothes(two_people: Samples) -> None:
    variants = [recoloured(two_people, variant) for variant in (1, 2)]
    known = [set(people.identity.tolist()) for people in (two_people, *variants)]
    assert len(set.union(*known)) == 6
    assert variants[0].metadata[0]["captions"] == ["walking in a park"]
    assert len(two_people.metadata[0]["captions"]) == 2  # the original keeps its own


def test_colours_are_named_as_they_are_dyed() -> None:
    swapped = Dye(np.array([2, 1, 0]), np.ones(3))  # red and blue
    dyes = dict.fromkeys(DYED, Dye(np.arange(3), np.ones(3))) | {"upper": swapped}
    named = renamed(worn("red", "blond"), dyes)
    assert named == worn("red", "blond") | {"upper": worn("blue", "")["upper"]}
    assert renamed(None, dyes) is None
    for name, colour in PALETTE.items():
        assert nearest_name(colour, PALETTE) == name


def test_the_names_in_a_variant_are_those_of_its_dyes(two_people: Samples) -> None:
    variant = recoloured(two_people, 1)
    for person, entry in zip(variant.identity, variant.metadata, strict=True):
        dyes = draw_dyes(np.random.default_rng([1, int(person)]))
        assert entry["attributes"]["person"] == renamed(worn("red", "black"), dyes)
    assert two_people.metadata[0]["attributes"]["person"] == worn("red", "black")


def test_a_sketch_stays_a_sketch(two_people: Samples) -> None:
    two_people.metadata[0]["style"] = "pencil sketch"
    np.testing.assert_array_equal(recoloured(two_people, 1).images[0], two_people.images[0])


def test_light_and_shade_survive() -> None:
    """A dyed cloth is darker where the cloth was darker."""
    image = np.repeat(np.linspace(10, 120, 16, dtype=np.uint8)[None, :, None], 3, axis=2)
    cloth = dyed(image, np.full((1, 16), Part.UPPER, np.uint8), draw_dyes(np.random.default_rng(0)))
    assert (np.diff(cloth.astype(int), axis=1) >= 0).all()
