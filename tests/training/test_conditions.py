"""What the adapter is given: drops, pairs, and pictures without their person."""

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from bolid_sdk.contracts import LIMBS
from bolid_training.avatars.captions import names_clothes
from bolid_training.avatars.parts import Part
from bolid_training.conditions import (
    draw_dropped,
    estimated_keypoints,
    guided_features,
    masked_features,
    part_crops,
    penultimate_states,
    place_only,
)
from bolid_training.data import People
from bolid_training.model.checkpoint import build_scheduler
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import draw_heatmaps
from bolid_training.stages.adapter import part_colours
from bolid_training.stages.pose import (
    draw_limbs,
    draw_views,
    paste_second_person,
    position_divergence,
    visible_heatmaps,
)
from bolid_training.stages.unet import noisy_batch


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


def test_guided_features_have_no_pose_in_the_unconditional_half():
    (feature,) = guided_features([torch.ones(2, 3, 4, 4)])
    assert feature.shape == (4, 3, 4, 4)
    assert (feature[:2].sum(), feature[2:].mean()) == (0, 1)


def test_conditions_are_left_out_together_or_alone_in_the_shares_given():
    text, pose = draw_dropped(np.random.default_rng(0), 100_000, 0.08, 0.04, 0.1)
    shares = [(text & pose).mean(), (text & ~pose).mean(), (pose & ~text).mean()]
    np.testing.assert_allclose(shares, [0.08, 0.04, 0.1], atol=0.005)


def test_a_second_person_stands_beside_the_first_with_keypoints_of_its_own():
    """Person i is a square of shade i around keypoint 4; so the shade under a keypoint says whose it is."""
    shades, side = [0.25, 0.5, 0.75], 128
    images, masks = torch.full((3, 3, side, side), -1.0), torch.zeros(3, 6, side, side)
    for image, mask, shade in zip(images, masks, shades, strict=True):
        image[:, 54:74, 54:74], mask[1, 54:74, 54:74] = shade, 1
    keypoints = torch.full((3, 1, 12, 3), 0.5)
    keypoints[..., 2] = 2
    for seed in range(4):
        pasted, covered, located = paste_second_person(images, masks, keypoints, np.random.default_rng(seed))
        assert located.shape == (3, 2, 12, 3)
        columns, rows = (located[:, :, 4, :2] * side).long().unbind(-1)
        for index in range(3):
            seen = pasted[index, 0, rows[index], columns[index]].tolist()
            assert seen == pytest.approx([shades[index], shades[index - 1]], abs=0.01)
            assert covered[index, 1, rows[index], columns[index]].min() > 0.9
        assert visible_heatmaps(located, 32)[:, 4].amax((1, 2)).min() > 0.8


def test_views_of_the_person_hold_the_box():
    boxes = np.tile(np.array([0.3, 0.2, 0.6, 0.5]), (200, 1))
    views = draw_views(boxes, np.arange(200) % 2 == 0, np.random.default_rng(0))
    assert views.side[::2].mean() > 2.5 * views.side[1::2].mean()
    off = (views.centre[1::2] - torch.tensor([0.45, 0.35])).abs()
    assert off.max() < 0.3 / 2  # the middle of the box is always seen
    assert 0.3 < views.mirror.float().mean() < 0.7


def test_part_colours_are_means_and_say_what_is_not_seen():
    images, parts = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 32, 32), np.uint8)
    images[0, :10], parts[0, :10] = (255, 0, 51), Part.UPPER
    parts[0, 20, :3] = Part.SHOES
    colours = part_colours(images, parts)[0]
    np.testing.assert_allclose(colours[2], [1, 0, 0.2, 1], atol=1e-6)
    assert (colours[[0, 1, 3, 4]] == 0).all()


def test_position_divergence_is_zero_at_the_target_and_grows_with_the_distance():
    points = torch.full((1, 12, 2), 0.5)
    target = draw_heatmaps(points, 24, 24)
    divergences = [float(position_divergence(draw_heatmaps(points + shift, 24, 24), target)) for shift in (0, 0.1, 0.3)]
    assert divergences[0] < 1e-5
    assert divergences[0] < divergences[1] < divergences[2]
    assert float(position_divergence(target, torch.zeros_like(target))) == 0  # nobody there


def test_noisy_batches_are_what_the_scheduler_says_and_late():
    scheduler, rng = build_scheduler(AvatarConfig()), np.random.default_rng(0)
    latents = rng.standard_normal((400, 2, 4, 4)).astype(np.float32)
    batch = noisy_batch(latents, scheduler, rng)
    t, alpha = batch["timestep"], scheduler.alphas_cumprod[batch["timestep"]][:, None, None, None]
    assert t.min() >= 0
    assert t.max() <= 999
    assert 0.45 < (t > 600).float().mean() < 0.6
    x0 = alpha.sqrt() * batch["sample"] - (1 - alpha).sqrt() * batch["target"]
    assert (x0 - torch.from_numpy(latents)).abs().max() < 1e-4


def test_captions_that_name_clothes_are_told_apart():
    assert names_clothes("a man in a light blue t-shirt and grey pants walking")
    assert not names_clothes("a young woman with short hair walking in a snowy landscape on a rooftop")


def test_limbs_lie_between_their_keypoints():
    keypoints = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, (2, 1, 12, 3))).float()
    keypoints[..., 2] = 2
    keypoints[1, 0, LIMBS[3][0], 2] = 0
    maps = draw_limbs(keypoints, 48)
    for index, (start, stop) in enumerate(LIMBS):
        column, row = ((keypoints[0, 0, start, :2] + keypoints[0, 0, stop, :2]) / 2 * 48).long().tolist()
        assert maps[0, index, row, column] > 0.6
    assert maps[1, 3].max() == 0
    assert 0.005 < maps[0].mean() < 0.2


@torch.no_grad()
def test_patch_tokens_are_what_the_last_layer_but_one_says():
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "image_size": 16, "patch_size": 8}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=3, **sizes)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    expected = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(penultimate_states(encoder, pixels), expected)
