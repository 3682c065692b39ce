"""More people from the same pictures: clothes and hair in other colours, the same in all pictures of a person.

A person is new to the adapter when the colours are. Two cores render 13 pictures a second; one dyes about 150, and the
segmentation says where.
"""

import numpy as np
from numpy.typing import NDArray

from bolid_training.avatars.captions import names_clothes
from bolid_training.avatars.parts import Part
from bolid_training.avatars.reader import Samples

DYED = ((Part.UPPER,), (Part.LOWER,), (Part.SHOES,), (Part.HAIR,), (Part.HAT,))
COLOURLESS = ("pencil sketch", "black and white")
GAIN = (0.45, 1.25)


def recoloured(people: Samples, variant: int) -> Samples:
    """The same pictures of people who wear other colours: identities of their own, captions without clothes.

    Everything depends on the identity and `variant` (from 1) alone. Styles that show no colours stay as they are.
    """
    identity = people.identity + variant * (int(people.identity.max()) + 1)
    images = people.images.copy()
    for index, person in enumerate(identity):
        if people.metadata[index]["style"] not in COLOURLESS:
            images[index] = dye(images[index], people.parts[index], np.random.default_rng([variant, int(person)]))
    metadata = [entry | {"captions": _without_clothes(entry["captions"])} for entry in people.metadata]
    return type(people)(
        images=images, parts=people.parts, keypoints=people.keypoints, identity=identity, metadata=metadata
    )


def dye(image: NDArray[np.uint8], parts: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with each of `DYED` in colours of its own: channels exchanged, then weighted."""
    out = image.copy()
    for group in DYED:
        order, gain = rng.permutation(3), rng.uniform(*GAIN, 3)
        where = np.isin(parts, group)
        out[where] = (image[where][:, order] * gain).clip(0, 255).astype(np.uint8)
    return out


def _without_clothes(captions: list[str]) -> list[str]:
    return [caption for caption in captions if not names_clothes(caption)] or [""]
