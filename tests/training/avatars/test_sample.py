"""A sample is a function of its numbers, and its annotation fits the picture."""

import numpy as np
import pytest

pytest.importorskip("anny")

from bolid_training.avatars.parts import Part
from bolid_training.avatars.sample import make_empty, make_sample, person_of

SIZE = 64


@pytest.fixture(scope="module")
def samples():
    return [make_sample(identity, view, 0, SIZE) for identity in range(12) for view in range(2)]


def test_same_numbers_same_sample(samples):
    again = make_sample(3, 1, 0, SIZE)
    first = samples[7]
    assert (again.identity, again.view_index) == (first.identity, first.view_index)
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.parts, first.parts)
    assert again.metadata() == first.metadata()


def test_other_seed_other_sample(samples):
    assert not np.array_equal(make_sample(3, 1, 1, SIZE).image, samples[7].image)


def test_views_share_the_person_and_nothing_else(samples):
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.attributes.person == second.attributes.person == person_of(first.identity, 0)
        assert not np.array_equal(first.image, second.image)
    assert len({sample.attributes.person for sample in samples}) == 12


def test_joints_are_in_the_frame_and_on_the_body(samples):
    inside = on_body = total = 0
    for sample in samples:
        visible = sample.keypoints[sample.keypoints[:, 2] == 2]
        inside += (sample.keypoints[:, 2] > 0).all()
        pixels = np.clip((visible[:, :2] * SIZE).astype(int), 0, SIZE - 1)
        on_body += (sample.parts[pixels[:, 1], pixels[:, 0]] != Part.BACKGROUND).sum()
        total += len(visible)
    assert inside >= 0.95 * len(samples)
    assert on_body >= 0.9 * total


def test_body_takes_a_fair_share_of_the_frame(samples):
    for sample in samples:
        person = (sample.parts != Part.BACKGROUND) & (sample.parts != Part.PROP)
        rows, columns = np.nonzero(person)
        extent = max(np.ptp(rows), np.ptp(columns)) / SIZE
        assert 0.4 <= extent <= 0.95


def test_empty_pictures_show_nobody():
    sample = make_empty(0, 0, SIZE)
    assert sample.identity == -1
    assert not sample.keypoints.any()
    assert (sample.parts == Part.BACKGROUND).all()
