"""People, and a generator that draws what it is shown."""

from types import SimpleNamespace

import numpy as np
import pytest

from bolid_sdk.bundle import open_bundle
from bolid_sdk.errors import InputError
from bolid_training.avatars.parts import Part
from bolid_training.data import People


@pytest.fixture
def keypoints():
    def made(count=3):
        points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 12, 3)).astype(np.float32)
        points[..., 2] = 2
        points[:, 0, :2], points[:, 1, :2] = (0.1, 0.1), (0.5, 0.9)  # the person's box is 0.8 high
        return points

    return made


@pytest.fixture
def photographs(keypoints):
    def made(count=40, size=8, time="day"):
        """Noise that stands for pictures of people, four each, of whom some are drawn as cartoons."""
        places = ("beach", "desert")
        known = {"pose": "walking", "time": time, "captions": []}
        metadata = [{"style": "photo" if i % 3 else "cartoon", "scene": places[i % 2], **known} for i in range(count)]
        rng = np.random.default_rng(0)
        parts = np.full((count, size, size), Part.UPPER, np.uint8)
        return People(
            images=rng.integers(256, size=(count, size, size, 3), dtype=np.uint8),
            parts=parts,
            keypoints=keypoints(count),
            identity=np.arange(count, dtype=np.int32) // 4,
            metadata=metadata,
        )

    return made


@pytest.fixture
def copyist(keypoints):
    class Copyist:
        """A generator that draws its reference again, and knows nobody in the first picture it is shown."""

        def __init__(self):
            self.bundle, self.refused = open_bundle(None), False

        def identify(self, image):
            if not self.refused:
                self.refused = True
                raise InputError("nobody")
            return SimpleNamespace(image=image, keypoints=keypoints(1)[0])

        backend = "none"

        def batch(self, requests, seed, **options):
            return [SimpleNamespace(image=identity.image) for identity, _ in requests]

        def __call__(self, identity, prompt, seed, **options):
            return self.batch([(identity, prompt)], seed, **options)[0]

    return Copyist
