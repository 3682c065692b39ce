"""The comparison of two bundles: pairs, limits, and what too few pictures can tell."""

import numpy as np
import pytest

from bolid_training.evaluate.gate import LIMITS, verdict

METRICS = (*LIMITS, "clothes_colour_distance")


def values(mean=0.5, count=400, deviation=0.1, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, count)
    return dict.fromkeys(METRICS, mean + noise)


def test_pairs_forgive_what_both_have_in_common():
    """Either alone is uncertain by 0.01; the difference is not."""
    found = verdict({name: v - 0.004 for name, v in values().items()}, values(), np.arange(400))
    assert found["passed"]
    drop = found["gates"]["id_similarity"]["drop"]
    assert drop["value"] == pytest.approx(0.004)
    assert drop["ci95"] == pytest.approx([0.004, 0.004])


def test_a_drop_beyond_the_limit_fails_and_a_gain_passes():
    worse, better = ({name: v + change for name, v in values().items()} for change in (-0.02, 0.02))
    found = verdict(worse, values(), np.arange(400))
    assert not found["passed"]
    assert {gate["state"] for gate in found["gates"].values()} == {"failed"}
    assert verdict(better, values(), np.arange(400))["passed"]


def test_the_clip_score_is_relative_to_the_baseline():
    """0.004 of 0.5 is less than one per cent, of 0.2 it is more."""
    for mean, passes in ((0.5, True), (0.2, False)):
        found = verdict({n: v - 0.004 for n, v in values(mean).items()}, values(mean), np.arange(400))
        assert found["gates"]["clip_score"]["passed"] is passes
        assert found["gates"]["id_similarity"]["passed"]


def test_few_pictures_leave_it_open():
    found = verdict(values(count=20, seed=1), values(count=20, seed=2), np.arange(20))
    assert not found["passed"]
    assert "more pictures" in found["gates"]["id_similarity"]["state"]
