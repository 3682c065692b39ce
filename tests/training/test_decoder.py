"""What the decoder is shown: windows of pictures, and how much their pixels count."""

import numpy as np
import pytest

from bolid_training.avatars.parts import Part
from bolid_training.stages.decoder import part_weights, windows


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
