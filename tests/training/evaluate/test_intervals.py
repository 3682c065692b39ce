"""Bootstrap intervals: what they cover, and what is drawn."""

import numpy as np
import pytest

from bolid_training.evaluate.intervals import distance_difference, distance_summary, summary


def test_summary_covers_the_mean_and_leaves_out_nan():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = summary([*values, np.nan])
    assert found["value"] == pytest.approx(values.mean(), abs=1e-4)
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert high - low == pytest.approx(4 * 0.1 / 400**0.5, rel=0.15)


def test_summary_draws_people_because_pictures_of_one_are_not_independent():
    people = np.repeat(np.arange(100), 4)
    each = np.random.default_rng(1).normal(0.5, 0.1, 100)
    values = each[people]
    low, high = summary(values, people)["ci95"]
    assert high - low == pytest.approx(4 * each.std() / 100**0.5, rel=0.15)
    narrow = summary(values)["ci95"]
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 2, rel=0.15)


def test_summary_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="none of 2 values"):
        summary([np.nan, np.nan])


def test_the_interval_of_a_frechet_distance_covers_it_in_spite_of_the_bias():
    rng = np.random.default_rng(0)
    found = distance_summary(rng.standard_normal((150, 8)), rng.standard_normal((300, 8)) + 0.5, np.arange(150))
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert low < 8 * 0.25 < high


def test_two_frechet_distances_are_compared_on_the_same_draws():
    rng = np.random.default_rng(0)
    real, first = rng.standard_normal((300, 8)) + 0.5, rng.standard_normal((150, 8))
    # three quarters as far, and otherwise the same pictures
    found = distance_difference(first + 0.125, first, real, np.arange(150))
    low, high = found["ci95"]
    assert low < 8 * (0.375**2 - 0.5**2) < high < 0
    alone = distance_summary(first, real, np.arange(150))["ci95"]
    assert high - low < (alone[1] - alone[0]) / 2
    assert distance_difference(first, first, real, np.arange(150)) == {"value": 0.0, "ci95": [0.0, 0.0]}
