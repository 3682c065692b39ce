"""The metrics against closed forms."""

import numpy as np
import pytest

from bolid_training.avatars.parts import Part
from bolid_training.evaluate.metrics import (
    clothes_colours,
    colour_distance,
    cosines,
    found_first,
    frechet_distance,
    keypoint_errors,
    pck,
)


def test_keypoint_errors_are_in_units_of_the_person(keypoints):
    truth = keypoints()
    found = truth.copy()
    found[..., 0] += 0.04
    assert keypoint_errors(found, truth) == pytest.approx(0.05, abs=1e-6)


def test_pck_counts_only_points_inside_the_picture(keypoints):
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


def test_cosines_of_rows():
    first, second = np.array([[1.0, 0], [0, 2], [3, 3]]), np.array([[5.0, 0], [1, 0], [1, 0]])
    assert cosines(first, second) == pytest.approx([1, 0, 0.5**0.5])


def test_found_first_is_asked_among_so_many_people():
    gallery = np.eye(5)
    queries = gallery[[0, 1, 4, 3, 2]]  # the third and the fifth are taken for each other
    assert found_first(queries, gallery, 100) == pytest.approx([1, 1, 0, 1, 0])
    assert found_first(queries, gallery, 5).mean() == pytest.approx(0.6)
    # galleries (0, 1), (2, 3), (3, 4): nobody there is like the mistaken ones, and the first of equals is taken
    assert found_first(queries, gallery, 2) == pytest.approx([1, 1, 1, 1, 0])


def test_frechet_distance_of_gaussians_with_known_moments():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20_000, 3))
    first, second = noise, 2 * rng.standard_normal((20_000, 3)) + [1, 0, 0]
    # |mu|^2 + sum (s_p - s_q)^2 for equal axes
    assert frechet_distance(first, second) == pytest.approx(1 + 3 * (1 - 2) ** 2, rel=0.03)
    assert frechet_distance(noise, noise) == pytest.approx(0, abs=1e-6)
