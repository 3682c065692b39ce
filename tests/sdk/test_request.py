"""What a caller may say of sizes to a bundle that is told of them (SDXL)."""

from dataclasses import replace

import pytest

from bolid_sdk.errors import InputError
from bolid_sdk.request import resolve_options


@pytest.fixture
def sdxl(tiny_bundle):
    return replace(tiny_bundle.manifest, sizes=replace(tiny_bundle.manifest.sizes, pooled_width=8, time_ids=6))


def test_a_picture_is_by_default_its_own_size_and_whole(sdxl):
    told = resolve_options({"width": 96, "height": 32}, sdxl, 1, 8).size_conditioning
    assert told.time_ids().tolist() == [32, 96, 0, 0, 32, 96]


def test_sizes_are_told_in_the_order_of_diffusers(sdxl):
    told = resolve_options({"original_size": (1024, 768), "crop_top_left": [5, 7]}, sdxl, 1, 8).size_conditioning
    assert told.time_ids().tolist() == [1024, 768, 5, 7, 64, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"original_size": 512}, r"original_size=512 .* expected \(height, width\)"),
        ({"original_size": (512, 0)}, "from 1 to 16384"),
        ({"original_size": (512, 512.0)}, "whole numbers"),
        ({"original_size": "12"}, "original_size"),
        ({"crop_top_left": (-1, 0)}, r"expected \(top, left\)"),
        ({"crop_top_left": (1, 2, 3)}, "two whole numbers"),
    ],
)
def test_unusable_sizes_are_named(sdxl, options, message):
    with pytest.raises(InputError, match=message):
        resolve_options(options, sdxl, 1, 8)
