"""What a comparison keeps is used again for the same question, and for no other."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bolid_sdk import Identity
from bolid_sdk.errors import InputError
from bolid_training.evaluate.kept import kept
from bolid_training.evaluate.known import identify
from bolid_training.evaluate.protocol import trials


def test_what_was_asked_before_is_not_made_again(tmp_path):
    made = []

    def ask(folder=tmp_path / "new", question="who", array=0.0):
        arrays = [np.zeros(2), np.full((2, 3), array).T]
        return kept(folder, {"question": question}, arrays, lambda: made.append(question) or np.arange(len(made)))

    for again in range(2):
        np.testing.assert_array_equal(ask(), [0])
        np.testing.assert_array_equal(ask(question="where"), [0, 1])
        np.testing.assert_array_equal(ask(array=1.0), [0, 1, 2])
        assert len(ask(folder=None)) == 4 + again
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_judges_look_at_nothing_twice(judges, keypoints, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)

    def seen(judges):
        points = keypoints(3)
        return (
            judges.keypoints(images),
            judges.people(images),
            judges.looks(images),
            judges.distances(images, images[::-1].copy(), points),
        )

    first = seen(replace(judges, digest="these", folder=tmp_path))
    blind = replace(judges, identity=None, pose=None, clip=None, digest="these", folder=tmp_path)
    for one, again, alone in zip(first, seen(blind), seen(judges), strict=True):
        np.testing.assert_array_equal(one, again)
        np.testing.assert_array_equal(one, alone)
    with pytest.raises(AttributeError):
        seen(replace(blind, digest="others"))


def test_who_was_recognised_before_is_not_identified_again(photographs, keypoints, tmp_path):
    people, shown = photographs(size=64), []

    class Viewer:
        bundle, backend = SimpleNamespace(digest="a"), "library 1.0"

        def identify(self, images):
            shown.append(images)
            if len(shown) == 1:
                raise InputError("nobody")
            tokens = np.full((2, 3), len(shown), np.float32)
            return Identity(tokens=tokens, keypoints=keypoints(1)[0], aspect=1.0, digest="a" * 64)

    chosen = trials(people, 8)
    first = identify(Viewer(), people, chosen, references=2, keep=tmp_path)
    count = len(shown)
    assert len(first) == len(chosen) - 1
    again = identify(Viewer(), people, chosen, references=2, keep=tmp_path)
    # who was refused is asked for once more, alone and beside the further photograph that there may be
    assert len(shown) - count in (1, 2)
    assert len(again) == len(chosen)
    tokens = {trial: identity.tokens for trial, identity in again}
    for trial, identity in first:
        np.testing.assert_array_equal(tokens[trial], identity.tokens)
