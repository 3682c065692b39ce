"""The metrics against closed forms, and the protocol's promises."""

import numpy as np
import pytest

from bolid_training.avatars.parts import Part
from bolid_training.data import People
from bolid_training.evaluate.intervals import summary
from bolid_training.evaluate.metrics import clothes_colours, colour_distance, keypoint_errors, pck
from bolid_training.evaluate.protocol import trials


def keypoints(count=3):
    points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 12, 3)).astype(np.float32)
    points[..., 2] = 2
    points[:, 0, :2], points[:, 1, :2] = (0.1, 0.1), (0.5, 0.9)  # the person's box is 0.8 high
    return points


def test_keypoint_errors_are_in_units_of_the_person():
    truth = keypoints()
    found = truth.copy()
    found[..., 0] += 0.04
    assert keypoint_errors(found, truth) == pytest.approx(0.05, abs=1e-6)


def test_pck_counts_only_points_inside_the_picture():
    truth = keypoints(1)
    found = truth.copy()
    found[0, 2:5, 1] += 0.2
    assert pck(keypoint_errors(found, truth), 0.1) == pytest.approx(9 / 12)
    truth[0, 2:5, 2] = 0
    assert pck(keypoint_errors(found, truth), 0.1) == 1


def test_clothes_colour_distance_is_euclidean_and_ignores_missing_garments():
    parts = np.zeros((32, 32), np.uint8)
    parts[:16] = Part.UPPER
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    colours = [clothes_colours(image, parts)[None] for image in (red, blue)]
    assert np.isnan(colours[0][0, 1]).all()
    assert colour_distance(*colours) == pytest.approx(2**0.5)


def test_summary_covers_the_mean_and_leaves_out_nan():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = summary([*values, np.nan])
    assert found["value"] == pytest.approx(values.mean(), abs=1e-4)
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert high - low == pytest.approx(4 * 0.1 / 400**0.5, rel=0.15)


def test_trials_take_one_photograph_a_person_and_another_place():
    count = 40
    metadata = [
        {"style": "photo" if i % 3 else "cartoon", "pose": "walking", "scene": "beach", "captions": []}
        for i in range(count)
    ]
    blank = np.zeros((count, 8, 8), np.uint8)
    people = People(
        images=np.repeat(blank[..., None], 3, -1),
        parts=blank,
        keypoints=np.zeros((count, 12, 3), np.float32),
        identity=np.arange(count, dtype=np.int32) // 4,
        metadata=metadata,
    )
    chosen = trials(people, 8)
    assert len({trial.identity for trial in chosen}) == len(chosen) == 8
    assert all(people.photos[trial.index] and trial.place != "beach" for trial in chosen)
    assert chosen == trials(people, 8)
