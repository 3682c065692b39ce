"""What the identity encoder sees of a person, whatever the pose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from bolid_sdk.contracts import PART_NAMES
from bolid_sdk.crops import part_crops, part_quads
from bolid_sdk.images import PAD_COLOUR
from bolid_sdk.parts import part_boxes

SIZE, SIDE = 64, 256
ODD_KEYPOINTS = arrays(np.float32, (12, 3), elements=st.floats(-10, 10, width=32) | st.just(float("nan")))
COLOURS = {
    "torso": (220, 30, 30),
    "right_leg": (30, 30, 220),
    "left_leg": (30, 200, 30),
    "ground": (250, 250, 200),
}


def confident(points) -> np.ndarray:
    return np.concatenate([points, np.ones((12, 1))], axis=1).astype(np.float32)


def turned(points, degrees) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - 0.5) @ rotation.T + 0.5


def dressed(points, width=SIDE, height=SIDE) -> Image.Image:
    """A person in one colour for the torso and one for each leg, at `points` in [0, 1]."""
    image = Image.new("RGB", (width, height), COLOURS["ground"])
    draw, places = ImageDraw.Draw(image), [tuple(place) for place in points * (width, height)]
    stroke = round(0.09 * height)
    for leg, joints in (("right_leg", (7, 9, 11)), ("left_leg", (6, 8, 10))):
        draw.line([places[joint] for joint in joints], COLOURS[leg], stroke, joint="curve")
    draw.polygon([places[joint] for joint in (0, 1, 7, 6)], COLOURS["torso"])
    return image


def crops_of(image, keypoints) -> dict[str, np.ndarray]:
    return dict(zip(PART_NAMES, part_crops(image, keypoints, SIZE), strict=True))


def share(pixels, name) -> float:
    """Of `pixels` that have the colour."""
    return float((np.abs(pixels.astype(int) - COLOURS[name]).max(-1) < 60).mean())


@pytest.mark.parametrize("degrees", [0, 35, 90, 180, 250])
def test_clothes_are_where_they_always_are(standing, degrees):
    """The right leg fills the middle of the left half, however the body lies."""
    points = turned(standing, degrees)
    crops = crops_of(dressed(points), confident(points))
    legs, torso = crops["legs"], crops["torso"]
    assert share(legs[:, 10:22], "right_leg") > 0.8
    assert share(legs[:, 42:54], "left_leg") > 0.8
    assert share(torso[14:46, 20:44], "torso") > 0.9
    # a square about somebody who lies aslant shows more ground than clothes
    assert share(legs, "ground") < 0.6


@pytest.mark.parametrize("degrees", [20, 90, 160])
def test_straightened_crops_do_not_turn_with_the_body(standing, degrees):
    small = (standing - 0.5) * 0.7 + 0.5  # stays within the picture
    upright = crops_of(dressed(small), confident(small))
    points = turned(small, degrees)
    lying = crops_of(dressed(points), confident(points))
    for part in ("torso", "legs", "feet"):
        assert np.abs(upright[part].astype(int) - lying[part]).mean() < 10
    assert np.abs(upright["body"].astype(int) - lying["body"]).mean() > 15


def test_a_bent_knee_is_straightened(standing):
    points = standing.copy()
    points[10] = points[8] + (0.18, 0.02)  # the left shin is raised to the side
    crops = crops_of(dressed(points), confident(points))
    assert share(crops["legs"][4:60, 42:54], "left_leg") > 0.75


def test_a_mirrored_person_has_mirrored_crops(standing):
    points = turned(standing, 25)
    image, other = dressed(points), [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    mirrored = ((1, 0) - points * (1, -1))[other]
    flipped = part_crops(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), confident(mirrored), SIZE)
    straight = part_crops(image, confident(points), SIZE)[:, :, ::-1]
    assert np.abs(flipped.astype(int) - straight).mean() < 2


def test_the_body_is_cut_as_it_is(standing):
    image, points = dressed(standing), confident(standing)
    corners = part_boxes(points)[0]
    quads = part_quads(points)[0]
    np.testing.assert_allclose(quads[0, 0], corners[:2])
    np.testing.assert_allclose(quads[3, 2], corners[2:])
    assert crops_of(image, points)["body"].shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("unseen", [(0,), (6, 7), (8, 9, 10, 11)])
def test_what_is_not_seen_is_cut_from_its_box(standing, unseen):
    points = confident(standing)
    points[list(unseen), 2] = 0
    quads = dict(zip(PART_NAMES, part_quads(points), strict=True))
    boxes = dict(zip(PART_NAMES, part_boxes(points), strict=True))
    part = "feet" if 8 in unseen else "torso"
    np.testing.assert_allclose(quads[part].reshape(-1, 2).min(0), boxes[part][:2])
    np.testing.assert_allclose(quads[part].reshape(-1, 2).max(0), boxes[part][2:])


def test_without_a_pose_every_part_is_the_whole_picture(standing):
    image = dressed(standing)
    whole = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    for crop in part_crops(image, np.zeros((12, 3)), SIZE):
        assert np.abs(crop - whole).mean() < 4


def test_a_picture_of_another_shape_only_has_more_ground(standing):
    wide = standing * (0.5, 1) + (0.25, 0)
    square = part_crops(dressed(standing), confident(standing), SIZE)
    other = part_crops(dressed(wide, 2 * SIDE), confident(wide), SIZE)
    assert np.abs(square.astype(int) - other).mean() < 6


def test_outside_the_picture_it_is_grey(standing):
    points = standing + (0, 0.6)
    feet = crops_of(dressed(points), confident(points))["feet"]
    assert (feet == PAD_COLOUR).all()


@settings(max_examples=50, deadline=None)
@given(ODD_KEYPOINTS, st.integers(1, 90), st.integers(1, 90), st.sampled_from([32, 63, 224]))
def test_any_keypoints_give_crops(keypoints, width, height, size):
    crops = part_crops(Image.new("RGB", (width, height)), keypoints, size)
    assert crops.shape == (5, size, size, 3)
    assert crops.dtype == np.uint8
