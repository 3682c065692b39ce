"""What the adapter is given: drops, pairs, and pictures without their person."""

import numpy as np
import torch

from bolid_training.avatars.captions import names_clothes
from bolid_training.avatars.parts import Part
from bolid_training.conditions import estimated_keypoints, masked_features, part_crops, place_only
from bolid_training.data import FLIP, People, pixels
from bolid_training.model.pose_estimator import draw_heatmaps
from bolid_training.stages.pose import augment, position_divergence, visible_heatmaps, warp


def people(count=12, views=3):
    return People(
        images=np.zeros((count, 8, 8, 3), np.uint8),
        parts=np.zeros((count, 8, 8), np.uint8),
        keypoints=np.zeros((count, 12, 3), np.float32),
        identity=np.arange(count, dtype=np.int32) // views,
        metadata=[{"style": "photo" if index % views else "cartoon", "captions": ["a"]} for index in range(count)],
    )


def test_siblings_are_other_photographs_of_the_same_person():
    split = people()
    for index, siblings in enumerate(split.siblings):
        assert index not in siblings
        assert set(split.identity[siblings]) == {split.identity[index]}
        assert split.photos[siblings].all()


def test_targets_have_a_photograph_beside_them():
    split = people(count=6, views=2)  # the first of each two pictures is a cartoon
    assert split.with_photos.tolist() == [0, 2, 4]


def test_place_only_keeps_the_place_and_loses_the_person():
    image = np.full((64, 64, 3), (20, 120, 220), np.uint8)
    parts = np.zeros((64, 64), np.uint8)
    parts[20:50, 25:40] = Part.UPPER
    image[20:50, 25:40] = (255, 0, 0)
    out = place_only(image, parts)
    background = parts == Part.BACKGROUND
    assert (out[background] == image[background]).all()
    assert np.abs(out[~background].astype(int) - (20, 120, 220)).max() < 12


def test_estimated_keypoints_carry_visibility_as_confidence():
    exact = np.random.default_rng(0).uniform(0.2, 0.8, (12, 3)).astype(np.float32)
    exact[:, 2] = [0, 1, 2] * 4
    found = estimated_keypoints(exact, seed=1)
    assert np.abs(found[:, :2] - exact[:, :2]).max() < 0.04
    assert (found[:, 2] == np.array([0, 0.6, 1] * 4, np.float32)).all()
    assert (found == estimated_keypoints(exact, seed=1)).all()


def test_part_crops_are_five_squares():
    points = np.random.default_rng(0).uniform(0.2, 0.8, (12, 3)).astype(np.float32)
    assert part_crops(np.zeros((96, 64, 3), np.uint8), points, 32).shape == (5, 32, 32, 3)


def test_masked_features_are_zero_where_dropped():
    features = masked_features([torch.ones(3, 4, 2, 2)], torch.tensor([True, False, True]))
    assert features[0].sum((1, 2, 3)).tolist() == [16, 0, 16]


def test_augmented_heatmaps_follow_the_picture():
    """A white dot at a keypoint stays under that keypoint's peak, mirrored or not."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        points = torch.full((1, 12, 3), 2.0)
        points[..., :2] = torch.from_numpy(rng.uniform(0.35, 0.65, (1, 12, 2))).float()
        image = np.zeros((1, 128, 128, 3), np.uint8)
        x, y = (points[0, 4, :2] * 128).int().tolist()
        image[0, y - 2 : y + 2, x - 2 : x + 2] = 255
        images, heatmaps = augment(pixels(image), visible_heatmaps(points, 32), np.random.default_rng(seed + 100))
        row, column = divmod(int(images[0, 0].argmax()), 128)
        peaks = heatmaps[0, [4, FLIP[4]]].flatten(1)
        distances = [
            ((divmod(int(p.argmax()), 32)[0] * 4 - row) ** 2 + (int(p.argmax()) % 32 * 4 - column) ** 2) for p in peaks
        ]
        assert min(distances) <= 2 * 5**2


def test_warp_moves_by_half_sides_and_scales_about_the_centre():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32, 32] = 1
    moved = warp(image, 1.0, 0.5, 0.0, padding="zeros")
    assert divmod(int(moved.argmax()), 64) == (32, 48)


def test_position_divergence_is_zero_at_the_target_and_grows_with_the_distance():
    points = torch.full((1, 12, 2), 0.5)
    target = draw_heatmaps(points, 24, 24)
    divergences = [float(position_divergence(draw_heatmaps(points + shift, 24, 24), target)) for shift in (0, 0.1, 0.3)]
    assert divergences[0] < 1e-5
    assert divergences[0] < divergences[1] < divergences[2]
    assert float(position_divergence(target, torch.zeros_like(target))) == 0  # nobody there


def test_captions_that_name_clothes_are_told_apart():
    assert names_clothes("a man in a light blue t-shirt and grey pants walking")
    assert not names_clothes("a young woman with short hair walking in a snowy landscape on a rooftop")
