"""Who is in the picture: body, face, hair and clothes, as values with names captions can use."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PALETTE: dict[str, tuple[float, float, float]] = {  # sRGB in [0, 1]
    "red": (0.80, 0.10, 0.12),
    "orange": (0.93, 0.47, 0.10),
    "yellow": (0.95, 0.80, 0.18),
    "green": (0.20, 0.62, 0.25),
    "dark green": (0.09, 0.29, 0.17),
    "blue": (0.14, 0.34, 0.78),
    "navy": (0.09, 0.12, 0.30),
    "light blue": (0.53, 0.74, 0.92),
    "purple": (0.45, 0.20, 0.60),
    "pink": (0.94, 0.55, 0.70),
    "brown": (0.42, 0.26, 0.15),
    "beige": (0.84, 0.75, 0.60),
    "white": (0.95, 0.95, 0.94),
    "grey": (0.50, 0.51, 0.53),
    "black": (0.07, 0.07, 0.08),
}
PATTERNS = ("plain", "striped", "checked", "dotted")
SKINS: dict[str, tuple[float, float, float]] = {  # sRGB in [0, 1]
    "pale": (0.96, 0.82, 0.75),
    "fair": (0.93, 0.76, 0.66),
    "light": (0.87, 0.68, 0.56),
    "olive": (0.78, 0.60, 0.45),
    "tan": (0.70, 0.50, 0.36),
    "brown": (0.56, 0.38, 0.26),
    "dark brown": (0.42, 0.27, 0.19),
    "black": (0.30, 0.19, 0.14),
}
HAIR_COLORS: dict[str, tuple[float, float, float]] = {  # sRGB in [0, 1]
    "black": (0.07, 0.06, 0.06),
    "dark brown": (0.20, 0.13, 0.09),
    "brown": (0.36, 0.22, 0.13),
    "blond": (0.80, 0.63, 0.36),
    "red": (0.60, 0.24, 0.10),
    "grey": (0.60, 0.60, 0.60),
    "white": (0.88, 0.87, 0.85),
}
HAIR_STYLES = {  # style: length
    "bald": "none",
    "short": "short",
    "bob": "medium",
    "long": "long",
    "ponytail": "long",
    "bun": "long",
    "curly": "medium",
    "afro": "medium",
}
HATS = ("cap", "beanie", "sun hat")
UPPERS = ("t-shirt", "tank top", "shirt", "sweater", "hoodie")
DRESSES = ("dress", "long dress")
OUTERS = ("jacket", "coat")
LOWERS = ("trousers", "jeans", "leggings", "shorts", "skirt", "long skirt")
SHOES = ("sneakers", "shoes", "boots")


@dataclass(frozen=True, kw_only=True)
class Garment:
    """One piece of clothing: `kind` of the tables above, `color` of PALETTE, `pattern` of PATTERNS."""

    kind: str
    color: str
    pattern: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Body shape, each in [0, 1] as anny's phenotypes."""

    gender: float  # 0 male, 1 female
    age: float  # 1/3 child, 2/3 young adult, 1 old
    muscle: float
    weight: float
    height: float
    proportions: float


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person as captions name them; colors are keys of the palettes above."""

    gender: str  # "man" or "woman"; a child's word is the caption's business
    age: str  # "child", "young", "middle-aged", "old"
    build: Build
    skin: str
    skin_rgb: tuple[float, float, float]  # sRGB, a little off the named tone
    hair_style: str
    hair_length: str  # "none", "short", "medium", "long"
    hair_color: str
    beard: bool
    glasses: bool
    upper: Garment
    outer: Garment | None  # worn open over the upper
    lower: Garment | None  # None under a dress
    shoes: Garment
    hat: Garment | None


def sample_person(rng: np.random.Generator) -> Person:
    """A plausible person; the same state of `rng` gives the same person."""
    woman = rng.random() < 0.5
    age = str(rng.choice(["child", "young", "middle-aged", "old"], p=[0.14, 0.42, 0.26, 0.18]))
    skin = str(rng.choice(list(SKINS)))
    hair_style = _hair_style(rng, woman, age)
    upper, lower = _clothes(rng, woman)
    hat = _hat(rng, hair_style)
    return Person(
        gender="woman" if woman else "man",
        age=age,
        build=_build(rng, woman, age),
        skin=skin,
        skin_rgb=tuple(float(v) for v in np.clip(np.array(SKINS[skin]) * rng.uniform(0.95, 1.05, 3), 0, 1)),
        hair_style=hair_style,
        hair_length=HAIR_STYLES[hair_style],
        hair_color=_hair_color(rng, skin, age),
        beard=bool(not woman and age != "child" and rng.random() < 0.3),
        glasses=bool(rng.random() < (0.35 if age == "old" else 0.15)),
        upper=upper,
        outer=_outer(rng, upper),
        lower=lower,
        shoes=_shoes(rng),
        hat=hat,
    )


def _build(rng: np.random.Generator, woman: bool, age: str) -> Build:
    low, high = {"child": (0.32, 0.42), "young": (0.6, 0.7), "middle-aged": (0.75, 0.86), "old": (0.9, 1.0)}[age]
    return Build(
        gender=rng.uniform(0.82, 1.0) if woman else rng.uniform(0.0, 0.15),
        age=rng.uniform(low, high),
        muscle=float(np.clip(rng.normal(0.5, 0.17), 0.1, 0.95)),
        weight=float(np.clip(rng.normal(0.5, 0.2), 0.1, 1.0)),
        height=float(np.clip(rng.normal(0.5, 0.16), 0.1, 0.9)),
        proportions=rng.uniform(0.3, 0.8),
    )


def _hair_style(rng: np.random.Generator, woman: bool, age: str) -> str:
    if woman:
        return str(
            rng.choice(["short", "bob", "long", "ponytail", "bun", "curly", "afro"], p=_shares(1, 2, 3, 2, 1.5, 1, 1))
        )
    bald = {"child": 0.0, "young": 0.6, "middle-aged": 1.2, "old": 2.5}[age]
    return str(
        rng.choice(
            ["short", "bald", "curly", "afro", "bob", "long", "ponytail"], p=_shares(6, bald, 1, 0.8, 0.3, 0.3, 0.3)
        )
    )


def _shares(*weights: float) -> np.ndarray:
    return np.array(weights) / sum(weights)


def _hair_color(rng: np.random.Generator, skin: str, age: str) -> str:
    if age == "old" and rng.random() < 0.8:
        return str(rng.choice(["grey", "white"]))
    dark = skin in ("olive", "tan", "brown", "dark brown", "black")
    names = ["black", "dark brown", "brown", "blond", "red"]
    return str(rng.choice(names, p=_shares(5, 3, 1, 0.3, 0.1) if dark else _shares(1, 2, 2.5, 3, 1.2)))


def _garment(rng: np.random.Generator, kinds: Sequence[str], plain: float = 0.6) -> Garment:
    color = str(rng.choice(list(PALETTE)))
    patterned = str(rng.choice(PATTERNS[1:], p=[0.5, 0.3, 0.2]))
    return Garment(kind=str(rng.choice(kinds)), color=color, pattern="plain" if rng.random() < plain else patterned)


def _clothes(rng: np.random.Generator, woman: bool) -> tuple[Garment, Garment | None]:
    if woman and rng.random() < 0.3:
        return _garment(rng, DRESSES, 0.5), None
    upper = _garment(rng, UPPERS, 0.55)
    kinds = ("trousers", "jeans", "leggings", "shorts", "skirt", "skirt", "long skirt") if woman else LOWERS[:4]
    kinds = [kind for kind in kinds if woman or kind != "leggings"]
    lower = _garment(rng, kinds, 0.88)
    if lower.kind == "jeans":
        lower = Garment(kind="jeans", color=str(rng.choice(["blue", "navy", "light blue", "black", "grey"])))
    elif lower.color == upper.color:
        lower = Garment(kind=lower.kind, color="black" if upper.color != "black" else "beige", pattern=lower.pattern)
    return upper, lower


def _outer(rng: np.random.Generator, upper: Garment) -> Garment | None:
    if rng.random() > 0.25 or upper.kind == "hoodie":
        return None
    garment = _garment(rng, OUTERS, 1.0)
    return garment if garment.color != upper.color else None


def _hat(rng: np.random.Generator, hair_style: str) -> Garment | None:
    if rng.random() > 0.22 or hair_style in ("bun", "afro"):
        return None
    return _garment(rng, HATS, 1.0)


def _shoes(rng: np.random.Generator) -> Garment:
    kind = str(rng.choice(SHOES, p=[0.5, 0.3, 0.2]))
    colors = list(PALETTE) if kind == "sneakers" else ["black", "brown", "beige", "grey", "navy", "red"]
    return Garment(kind=kind, color=str(rng.choice(colors)))
