"""Attributes to sentences: many phrasings, from a full description to three tags.

Captions are lower case, without a full stop. They name only what is true of the picture, and no colour where the style
shows none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from bolid_training.avatars import phrases
from bolid_training.avatars.attributes import Attributes
from bolid_training.avatars.people import (
    DRESSES,
    HAIR_COLORS,
    HATS,
    LOWERS,
    OUTERS,
    PALETTE,
    PATTERNS,
    SHOES,
    UPPERS,
    Garment,
    Person,
)
from bolid_training.avatars.scenes import SceneObject
from bolid_training.avatars.scenes.seats import BUILDERS as SEATS

CAPTIONS = 8
STYLE_UNNAMED = {"photo": 0.7}
"""A photo is what one gets unasked; every other style is named by nearly all of its captions."""
CLOTHES = frozenset(
    word.split()[-1]
    for name in (*HATS, *UPPERS, *DRESSES, *OUTERS, *LOWERS, *SHOES)
    for word in phrases.SYNONYMS.get(name, (name,))
)


def captions(attributes: Attributes, rng: np.random.Generator) -> list[str]:
    """`CAPTIONS` different captions of one picture, in a fixed order of kinds: the first is the fullest."""
    kinds = EMPTY_KINDS if attributes.person is None else KINDS
    found: list[str] = []
    for attempt in range(4 * CAPTIONS):
        kind = kinds[attempt % len(kinds)]
        caption = _styled(kind(attributes, rng), attributes, rng)
        if caption not in found:
            found.append(caption)
        if len(found) == CAPTIONS:
            break
    return found


def vocabulary() -> list[str]:
    """Every word that captions contain, sorted."""
    tables = (
        phrases.PLACES, phrases.BARE_PLACES, phrases.TIMES, phrases.BARE_TIMES, phrases.POSES, phrases.VIEWS,
        phrases.STYLE_PREFIXES, phrases.STYLE_SUFFIXES, phrases.NOUNS, phrases.SYNONYMS, phrases.COLOR_WORDS,
    )  # fmt: skip
    texts = [text for table in tables for options in table.values() for text in options]
    texts += [
        *phrases.ANYBODY,
        *phrases.NOBODY,
        *phrases.SITTING_LOW,
        *phrases.HAIR.values(),
        *phrases.CONNECTORS,
        *phrases.PLACES,
    ]
    texts += [*PALETTE, *PATTERNS, *HAIR_COLORS, *HATS, *UPPERS, *DRESSES, *OUTERS, *LOWERS, *SHOES, *SEATS, *OBJECTS]
    return sorted({word for text in texts for word in words(text)})


def names_clothes(caption: str) -> bool:
    """Whether a caption mentions anything that is worn."""
    return not CLOTHES.isdisjoint(words(caption))


def words(caption: str) -> list[str]:
    """The words of a caption, hyphens kept."""
    return re.findall(r"[a-z][a-z-]*", caption)


OBJECTS = (
    "ball", "bed", "bush", "cabinet", "cactus", "car", "door", "fence", "flowers", "fridge", "house", "lamp",
    "palm tree", "rock", "snowman", "sofa", "street lamp", "tree", "umbrella", "water tank", "backdrop",
)  # fmt: skip


def full(a: Attributes, rng: np.random.Generator) -> str:
    """Person, clothes, pose, place, time, object, view."""
    who = _person_and_clothes(a, rng)
    return _join(who, _pose(a, rng), _place(a, rng), _object(a, rng, 0.6), _time(a, rng, 0.9), _view(a, rng, 0.6))


def described(a: Attributes, rng: np.random.Generator) -> str:
    """Clothes, pose and place."""
    return _join(_person_and_clothes(a, rng), _pose(a, rng), _place(a, rng), _time(a, rng, 0.5))


def simple(a: Attributes, rng: np.random.Generator) -> str:
    """Who does what where: "a woman walking on a beach at sunset"."""
    who = _noun(a.person, rng) if rng.random() < 0.65 else _choice(rng, phrases.ANYBODY)
    return _join(who, _pose(a, rng), _place(a, rng), _time(a, rng, 0.7), _view(a, rng, 0.3))


def prompt(a: Attributes, rng: np.random.Generator) -> str:
    """What a user types who gives the person as a picture: "sitting on a red sofa in a kitchen"."""
    return _join(_pose(a, rng), _place(a, rng), _object(a, rng, 0.25), _time(a, rng, 0.6), _view(a, rng, 0.35))


def pose_only(a: Attributes, rng: np.random.Generator) -> str:
    """The pose, perhaps the view."""
    who = _choice(rng, ("", _noun(a.person, rng), *phrases.ANYBODY))
    return _join(who, _pose(a, rng), _view(a, rng, 0.4))


def scene_only(a: Attributes, rng: np.random.Generator) -> str:
    """The place, its objects and light."""
    return _join(_place(a, rng), _object(a, rng, 0.6), _time(a, rng, 0.8))


def clothes_only(a: Attributes, rng: np.random.Generator) -> str:
    """The person and the clothes."""
    return _join(_person_and_clothes(a, rng), _view(a, rng, 0.2))


def tags(a: Attributes, rng: np.random.Generator) -> str:
    """ "walking, beach, night"."""
    found = [_bare_pose(a, rng), _choice(rng, phrases.BARE_PLACES.get(a.place, (a.place,)))]
    if not a.indoor or a.time == "night":
        found.append(_choice(rng, phrases.BARE_TIMES[a.time]))
    if rng.random() < 0.3:
        found.append(_view(a, rng, 1.0))
    if rng.random() < 0.4 and a.person is not None:
        found.append(_garment(a.person.upper, a, rng, article=False))
    return ", ".join(tag for tag in found if tag)


def nobody(a: Attributes, rng: np.random.Generator) -> str:
    """An empty place."""
    return _join(_choice(rng, phrases.NOBODY), _place(a, rng), _time(a, rng, 0.6))


Kind = Callable[[Attributes, np.random.Generator], str]
KINDS: tuple[Kind, ...] = (full, simple, prompt, described, prompt, clothes_only, tags, scene_only, pose_only)
EMPTY_KINDS: tuple[Kind, ...] = (nobody, scene_only, nobody)


def _styled(text: str, a: Attributes, rng: np.random.Generator) -> str:
    """Adds the style before or after. A caption that starts without a noun ("walking …") takes it after."""
    if rng.random() < STYLE_UNNAMED.get(a.style, 0.06):
        return text
    if text.split()[0] in ("a", "an", *phrases.ANYBODY, "nobody", "no") and rng.random() < 0.6:
        return f"{_choice(rng, phrases.STYLE_PREFIXES[a.style])} {text}"
    return f"{text}, {_choice(rng, phrases.STYLE_SUFFIXES[a.style])}"


def _noun(person: Person, rng: np.random.Generator) -> str:
    return _choice(rng, phrases.NOUNS[person.gender, person.age])


def _person_and_clothes(a: Attributes, rng: np.random.Generator) -> str:
    """ "a woman with long black hair in a red shirt and blue jeans", parts left out at random."""
    who = _noun(a.person, rng) if rng.random() < 0.85 else _choice(rng, phrases.ANYBODY)
    head = _head(a, rng) if rng.random() < 0.45 else ""
    return _join(who, head, f"{_choice(rng, ('in', 'wearing'))} {_clothes(a, rng)}")


def _head(a: Attributes, rng: np.random.Generator) -> str:
    """Hair, beard, glasses; face hair and glasses only where the face shows."""
    person, found = a.person, []
    if person.hair_style == "bald" and person.hat is None:
        found.append("a bald head")
    elif person.hat is None:
        color = person.hair_color if a.colored else ""
        found.append(phrases.HAIR[person.hair_style].format(color).replace("  ", " ").strip())
    if a.view == "front" and person.beard and rng.random() < 0.6:
        found.append("a beard")
    if a.view == "front" and person.glasses and rng.random() < 0.6:
        found.append("glasses")
    return f"with {_list(found)}" if found else ""


def _clothes(a: Attributes, rng: np.random.Generator) -> str:
    person = a.person
    worn = [person.outer or person.upper]
    if person.outer is not None and a.view == "front" and rng.random() < 0.5:
        worn.insert(0, person.upper)
    if person.lower is not None and rng.random() < 0.85:
        worn.append(person.lower)
    if rng.random() < 0.3:
        worn.append(person.shoes)
    if person.hat is not None and rng.random() < 0.7:
        worn.append(person.hat)
    return _list([_garment(garment, a, rng) for garment in worn])


def _garment(garment: Garment, a: Attributes, rng: np.random.Generator, article: bool = True) -> str:
    pattern = garment.pattern if garment.pattern != "plain" and rng.random() < 0.8 else ""
    noun = _choice(rng, phrases.SYNONYMS.get(garment.kind, (garment.kind,)))
    text = _join(pattern, _color(garment.color, rng) if a.colored else "", noun)
    return text if garment.kind in phrases.PLURAL or not article else _article(text)


def _pose(a: Attributes, rng: np.random.Generator) -> str:
    ground = a.pose == "sitting" and a.seat is None and rng.random() < 0.6
    text = _choice(rng, phrases.SITTING_LOW if ground else phrases.POSES[a.pose])
    if a.seat is None or rng.random() < 0.15:
        return text
    color = _color(a.seat.color, rng) if a.colored and rng.random() < 0.85 else ""
    return f"{text} {'in' if a.seat.kind == 'armchair' else 'on'} {_article(_join(color, a.seat.kind))}"


def _bare_pose(a: Attributes, rng: np.random.Generator) -> str:
    return "" if a.pose is None else _pose(a, rng)


def _place(a: Attributes, rng: np.random.Generator) -> str:
    backdrop = next((o for o in a.objects if o.name == "backdrop"), None)
    if backdrop is None:
        return _choice(rng, phrases.PLACES[a.place])
    options = ["in a studio"]
    if a.colored:
        color = _color(backdrop.color, rng)
        plain = f"on a plain {color} background"
        options += [plain, plain, f"in front of {_article(color)} backdrop", f"with {_article(color)} background"]
    return _choice(rng, options)


def _time(a: Attributes, rng: np.random.Generator, probability: float) -> str:
    """Indoors daylight goes without saying."""
    if rng.random() > probability or (a.indoor and a.time == "day"):
        return ""
    return _choice(rng, phrases.TIMES[a.time])


def _view(a: Attributes, rng: np.random.Generator, probability: float) -> str:
    """The front goes without saying more often than the side and the back."""
    if a.view is None or rng.random() > probability * (0.5 if a.view == "front" else 1.3):
        return ""
    return _choice(rng, phrases.VIEWS[a.view])


def _object(a: Attributes, rng: np.random.Generator, probability: float) -> str:
    things = [o for o in a.objects if o.name != "backdrop"]
    if not things or rng.random() > probability:
        return ""
    thing: SceneObject = things[rng.integers(len(things))]
    text = _join(_color(thing.color, rng) if a.colored else "", thing.name)
    return f"{thing.relation} {text if thing.name in phrases.PLURAL else _article(text)}"


def _color(name: str, rng: np.random.Generator) -> str:
    return _choice(rng, phrases.COLOR_WORDS.get(name, (name,)))


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _join(*pieces: str) -> str:
    return " ".join(piece for piece in pieces if piece)


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]
