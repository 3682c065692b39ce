"""More people from the same pictures: clothes and hair in other colours, the same in all pictures of a person.

A person is new to the adapter when the colours are. Two cores render 13 pictures a second; one dyes about 150, and the
segmentation says where.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolid_training.avatars.captions import names_clothes
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import HAIR_COLORS, PALETTE
from bolid_training.avatars.reader import Samples

DYED = {
    "upper": (Part.UPPER,),
    "lower": (Part.LOWER,),
    "shoes": (Part.SHOES,),
    "hair": (Part.HAIR,),
    "hat": (Part.HAT,),
}
COLOURLESS = ("pencil sketch", "black and white")
GAIN = (0.45, 1.25)


class Dye(NamedTuple):
    """Channels exchanged, then weighted."""

    order: NDArray[np.int64]
    gain: NDArray[np.float64]

    def __call__(self, colours: ArrayLike) -> NDArray[np.float64]:
        """sRGB [..., 3] of any scale; not clipped."""
        return np.asarray(colours)[..., self.order] * self.gain


def recoloured(people: Samples, variant: int) -> Samples:
    """The same pictures of people who wear other colours: identities of their own, captions without clothes.

    Their attributes name the nearest colours that have a name. Everything depends on the identity and `variant` (from
    1) alone. Styles that show no colours stay as they are.
    """
    identity = people.identity + variant * (int(people.identity.max()) + 1)
    images, metadata = people.images.copy(), []
    for index, (person, entry) in enumerate(zip(identity, people.metadata, strict=True)):
        dyes = draw_dyes(np.random.default_rng([variant, int(person)]))
        if entry["style"] not in COLOURLESS:
            images[index] = dyed(images[index], people.parts[index], dyes)
        worn = renamed(entry["attributes"]["person"], dyes)
        metadata.append(
            entry
            | {"captions": _without_clothes(entry["captions"]), "attributes": entry["attributes"] | {"person": worn}}
        )
    return type(people)(
        images=images, parts=people.parts, keypoints=people.keypoints, identity=identity, metadata=metadata
    )


def draw_dyes(rng: np.random.Generator) -> dict[str, Dye]:
    """One for each of `DYED`."""
    return {name: Dye(rng.permutation(3), rng.uniform(*GAIN, 3)) for name in DYED}


def dyed(image: NDArray[np.uint8], parts: NDArray[np.uint8], dyes: Mapping[str, Dye]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with each of `DYED` in colours of its own."""
    out = image.copy()
    for name, group in DYED.items():
        where = np.isin(parts, group)
        out[where] = dyes[name](image[where]).clip(0, 255).astype(np.uint8)
    return out


def renamed(person: Mapping[str, Any] | None, dyes: Mapping[str, Dye]) -> dict[str, Any] | None:
    """A person of a sample's metadata by the names of the dyed colours."""
    if person is None:
        return None
    hair = nearest_name(dyes["hair"](HAIR_COLORS[person["hair_color"]]), HAIR_COLORS | PALETTE)
    worn = {
        name: person[name]
        and person[name] | {"color": nearest_name(dyes[part](PALETTE[person[name]["color"]]), PALETTE)}
        for name, part in {"upper": "upper", "outer": "upper", "lower": "lower", "shoes": "shoes", "hat": "hat"}.items()
    }
    return dict(person) | worn | {"hair_color": hair}


def nearest_name(colour: ArrayLike, names: Mapping[str, ArrayLike]) -> str:
    """Of sRGB colours [3] in [0, 1]."""
    seen = np.clip(colour, 0, 1)
    return min(names, key=lambda name: float(np.square(seen - np.asarray(names[name])).sum()))


def _without_clothes(captions: list[str]) -> list[str]:
    return [caption for caption in captions if not names_clothes(caption)] or [""]
