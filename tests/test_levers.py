"""benchmarks/levers.py and steadiness.py: what they conclude from what they measured."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from bolid_sdk import Sampling

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def levers():
    return load("levers")


def test_levers_are_read(levers):
    assert levers.sampling_of("") == Sampling()
    expected = Sampling(steps=8, caching="fast", guidance_interval=(0.1, 0.75))
    assert levers.sampling_of("steps=8 caching=fast guidance_interval=0.1:0.75") == expected
    for text in ("speed=9", "steps=many", "caching"):
        with pytest.raises(ValueError, match=r"speed|many|caching"):
            levers.sampling_of(text).resolve(
                levers.ResolvedSampling(steps=4, guidance=3, sampler="ddim", spacing="trailing")
            )


def test_every_default_lever_is_usable(levers):
    defaults = levers.ResolvedSampling(steps=12, guidance=3, sampler="ddim", spacing="trailing")
    resolved = [levers.sampling_of(text).resolve(defaults) for text in levers.LEVERS]
    assert resolved[0] == defaults
    assert len(set(map(repr, resolved))) == len(resolved)


def test_differences_are_of_pairs(levers):
    """People differ by far more than a lever does: only pairs tell that it costs 0.02 of each."""
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(40), 2)
    plain = {"id_similarity": random.normal(0.5, 0.3, 80)}
    changed = {"id_similarity": plain["id_similarity"] - 0.02 + random.normal(0, 0.001, 80)}
    found = levers.differences(changed, plain, people)["id_similarity"]
    low, high = found["ci95"]
    assert low <= found["value"] <= high
    assert found["value"] == pytest.approx(-0.02, abs=0.001)
    assert high - low < 0.002


@pytest.mark.parametrize(
    ("identity", "pose", "clip", "passed", "certain"),
    [
        ((0.0, -0.005), (0.0, 0.0), (0.0, 0.0), True, True),
        ((-0.009, -0.02), (0.0, 0.0), (0.0, 0.0), True, False),
        ((-0.011, -0.02), (0.0, 0.0), (0.0, 0.0), False, False),
        ((0.0, 0.0), (-0.02, -0.03), (0.0, 0.0), False, False),
        ((0.0, 0.0), (0.0, 0.0), (-0.0029, -0.003), True, True),
        ((0.0, 0.0), (0.0, 0.0), (-0.0031, -0.004), False, False),
    ],
)
def test_gates(levers, identity, pose, clip, passed, certain):
    """One hundredth: absolute of identity and pose, relative of a CLIP score of 0.3."""
    names = ("id_similarity", "pose_pck10", "clip_score")
    different = {
        name: {"value": value, "ci95": [low, 1.0]}
        for name, (value, low) in zip(names, (identity, pose, clip), strict=True)
    }
    plain = {"clip_score": np.array([0.2, 0.4]), "id_similarity": np.ones(2), "pose_pck10": np.ones(2)}
    assert levers.gates(different, plain) == {"passed": passed, "certain": certain}


def test_psnr_of_known_errors(levers):
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    assert levers.psnr(grey, grey + 1)[0] == pytest.approx(20 * np.log10(255))
    assert levers.psnr(grey + 1, grey)[0] == pytest.approx(20 * np.log10(255))
    assert levers.psnr(grey, grey)[0] == pytest.approx(100)


def test_memory_that_grows_is_not_flat():
    steadiness = load("steadiness")

    def moments(growth):
        megabytes = [100 + growth * number / 100 for number in range(100)]
        return [steadiness.Moment(seconds=1.0, megabytes=value, equal=True) for value in megabytes]

    assert steadiness.verdict(moments(0))["flat"]
    assert not steadiness.verdict(moments(10))["flat"]
