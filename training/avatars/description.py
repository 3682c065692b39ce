"""A person in words, one phrase for each thing that is worn: what captions would say if they left nothing out."""

from collections.abc import Mapping
from typing import Any

from bolid_training.avatars import phrases

TOLD = ("upper", "lower", "noun", "hair", "shoes", "hat")
"""What a description tells of everybody."""

INSTEAD = {"lower": "upper", "hat": "hair"}
"""Where there is none: a dress is both upper and lower, and a bare head shows its hair."""

Phrase = tuple[str, str]
"""What it tells, of `TOLD`, or "" for mere grammar; the words."""


def description(person: Mapping[str, Any]) -> list[Phrase]:
    """A person of a sample's metadata: "a woman" "with long black hair" "wearing" "a red shirt" "blue jeans" …"""
    worn = {"upper": person["outer"] or person["upper"]} | {name: person[name] for name in ("lower", "shoes", "hat")}
    garments = [(name, _garment(garment)) for name, garment in worn.items() if garment is not None]
    who = phrases.NOUNS[person["gender"], person["age"]][-1]
    return [("noun", who), ("hair", f"with {_hair(person)}"), ("", "wearing"), *garments]


def place_of(told: list[Phrase]) -> dict[str, int]:
    """The index of the phrase that tells each of `TOLD`."""
    index = {name: position for position, (name, _) in enumerate(told)}
    return {name: index[name if name in index else INSTEAD[name]] for name in TOLD}


def _hair(person: Mapping[str, Any]) -> str:
    if person["hair_style"] == "bald":
        return "a bald head"
    return phrases.HAIR[person["hair_style"]].format(person["hair_color"])


def _garment(garment: Mapping[str, str]) -> str:
    article = "" if garment["kind"] in phrases.PLURAL else "a"
    pattern = "" if garment["pattern"] == "plain" else garment["pattern"]
    return " ".join(word for word in (article, pattern, garment["color"], garment["kind"]) if word)
