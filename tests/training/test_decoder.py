"""What the decoder is shown: windows of pictures, and how much their pixels count; and what it begins with."""

import numpy as np
import pytest
import torch

from bolid_training.avatars.parts import Part
from bolid_training.model.checkpoint import build_vae
from bolid_training.model.config import AvatarConfig
from bolid_training.stages.decoder import part_weights, windows
from bolid_training.stages.vae import deepen


def test_windows_begin_at_their_corners_whatever_the_leading_axes():
    places = np.stack(np.meshgrid(np.arange(16), np.arange(16)))  # x and y of each pixel
    corners = np.array([[0, 0], [4, 2], [8, 8]])
    cut = windows(np.stack([places] * 3), corners, 8)
    assert cut.shape == (3, 2, 8, 8)
    assert (cut[:, :, 0, 0] == corners).all()
    assert (cut[:, :, -1, -1] == corners + 7).all()


def test_faces_count_most_and_places_least_and_every_picture_counts_alike():
    parts = np.full((2, 8, 8), int(Part.BACKGROUND), np.uint8)
    parts[0, 0], parts[0, 1] = Part.FACE, Part.UPPER
    weights = part_weights(parts)
    assert weights.shape == (2, 1, 8, 8)
    assert weights.mean((1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert weights[0, 0, 0, 0] > weights[0, 0, 1, 0] > weights[0, 0, 2, 0] > 0
    assert (weights[1] == 1).all()


BLOCKS = [(1, 2, 1, 1), (3, 2, 2, 1)]


def test_a_deeper_decoder_begins_as_the_shallower_one_and_a_shallower_one_is_refused():
    shallow, deep = (build_vae(AvatarConfig(vae_width=8, vae_decoder_blocks=blocks)).decoder for blocks in BLOCKS)
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    deepen(shallow, deep)
    with torch.no_grad():
        assert torch.equal(deep(latents), shallow(latents))
    with pytest.raises(ValueError, match="3 blocks more"):
        deepen(deep, shallow)
