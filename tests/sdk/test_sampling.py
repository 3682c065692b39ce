"""Sampling options, per-picture noise, and the loop's contract."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bolid_sdk.errors import InputError
from bolid_sdk.sampling import NoiseSource, ResolvedSampling, Sampling

DEFAULTS = ResolvedSampling(steps=4, guidance=3.0, sampler="euler", spacing="trailing")


def test_numpys_numbers_become_plain_ones_that_json_knows():
    numbers = {"steps": np.int64(2), "guidance": np.float32(2), "guidance_interval": np.array([0.25, 0.5])}
    resolved = Sampling(**numbers).resolve(DEFAULTS)
    assert json.loads(json.dumps(asdict(resolved)))["guidance_interval"] == [0.25, 0.5]
    assert resolved == Sampling(steps=2, guidance=2.0, guidance_interval=(0.25, 0.5)).resolve(DEFAULTS)


def test_none_keeps_the_bundles_defaults():
    assert Sampling().resolve(DEFAULTS) == DEFAULTS
    changed = Sampling(steps=8, guidance=1.0).resolve(DEFAULTS)
    assert (changed.steps, changed.branches, changed.sampler) == (8, 1, "euler")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": -3},
        {"steps": 2.0},
        {"steps": True},
        {"steps": "4"},
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"guidance": float("inf")},
        {"eta": -0.1},
        {"eta": 1.1},
        {"guidance_interval": np.array(0.5)},
        {"guidance_interval": np.array([0.5, np.nan])},
        {"sampler": "ddpm"},
        {"spacing": "even"},
    ],
)
def test_unusable_values_are_named(options):
    (name,) = options
    with pytest.raises(InputError, match=name):
        Sampling(**options).resolve(DEFAULTS)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), st.integers(0, 4))
def test_noise_belongs_to_the_seed(seeds, draws):
    together = NoiseSource(seeds=seeds, shape=(2, 3, 3)).draws()
    alone = [NoiseSource(seeds=[seed], shape=(2, 3, 3)).draws() for seed in seeds]
    for _ in range(draws):
        np.testing.assert_array_equal(next(together), np.concatenate([next(source) for source in alone]))
