"""Descriptions: everybody has a phrase for everything, in words that captions use."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bolid_training.avatars.captions import vocabulary, words
from bolid_training.avatars.description import TOLD, description, place_of
from bolid_training.avatars.people import sample_person


def text(person: dict) -> str:
    return " ".join(words for _, words in description(person))


@given(st.integers(0, 2**32 - 1))
def test_everybody_is_told_in_the_captions_words(seed: int) -> None:
    person = dataclasses.asdict(sample_person(np.random.default_rng(seed)))
    told = description(person)
    assert set(words(text(person))) <= set(vocabulary())
    place = place_of(told)
    assert tuple(place) == TOLD
    assert told[place["upper"]][1].endswith((person["outer"] or person["upper"])["kind"])
    assert place["lower"] == place["upper"] or person["lower"]["color"] in told[place["lower"]][1]
    assert (place["hat"] == place["hair"]) == (person["hat"] is None)


def test_a_person_in_words() -> None:
    garment = {"kind": "sweater", "color": "dark green", "pattern": "striped"}
    person = {
        "gender": "woman",
        "age": "old",
        "hair_style": "bun",
        "hair_color": "grey",
        "upper": garment,
        "outer": None,
        "lower": garment | {"kind": "jeans", "pattern": "plain"},
        "shoes": garment | {"kind": "boots", "color": "red", "pattern": "plain"},
        "hat": None,
    }
    assert text(person) == (
        "an elderly woman with grey hair in a bun wearing a striped dark green sweater dark green jeans red boots"
    )
    assert "with a bald head wearing" in text(person | {"hair_style": "bald"})
