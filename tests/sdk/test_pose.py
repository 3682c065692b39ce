"""Skeleton maps, part boxes, and counting people."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from bolid_sdk.contracts import LIMBS, PART_NAMES
from bolid_sdk.parts import part_boxes
from bolid_sdk.pose import (
    JOINT_COLOURS,
    LIMB_COLOURS,
    Pose,
    count_people,
    draw_skeleton,
    estimate_pose,
    pose_from_array,
)

KEYPOINTS = arrays(np.float32, (12, 3), elements=st.floats(-2, 3, width=32))
ODD_KEYPOINTS = arrays(np.float32, (12, 3), elements=st.floats(-10, 10, width=32) | st.just(float("nan")))


def confident(points) -> np.ndarray:
    return np.concatenate([points, np.ones((12, 1))], axis=1).astype(np.float32)


def turned(points, degrees) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - 0.5) @ rotation.T + 0.5


def test_limbs_and_joints_have_colours_of_their_own():
    assert len(LIMBS) == len(LIMB_COLOURS) == 12
    assert len({tuple(colour) for colour in np.concatenate([LIMB_COLOURS, JOINT_COLOURS])}) == 24


def test_a_skeleton_lies_where_its_keypoints_are(standing):
    drawn = draw_skeleton(confident(standing), 128, 128)
    assert drawn.shape == (128, 128, 3)
    assert drawn.dtype == np.uint8
    for (x, y), colour in zip(standing * 128, JOINT_COLOURS, strict=True):
        np.testing.assert_allclose(drawn[int(y), int(x)], colour, atol=1)
    # The mean of two opposite corners is black: nothing is drawn where nobody is.
    assert drawn[:10].max() == 0


def test_mirrored_people_differ(standing):
    mirrored = draw_skeleton(confident((1 - standing[:, 0])[:, None] * (1, 0) + standing * (0, 1)), 128, 128)
    assert np.abs(mirrored.astype(int) - draw_skeleton(confident(standing), 128, 128)).max() > 200


def test_unseen_points_and_their_limbs_are_left_out(standing):
    points = confident(standing)
    points[8, 2] = 0.1
    x, y = (standing[8] * 128).astype(int)
    assert draw_skeleton(points, 128, 128)[y - 4 : y + 4, x - 4 : x + 4].max() == 0
    assert draw_skeleton(points * (1, 1, 0), 64, 64).max() == 0


def test_lines_grow_with_the_picture(standing):
    small = draw_skeleton(confident(standing), 128, 128) > 0
    large = draw_skeleton(confident(standing), 512, 512) > 0
    assert large.mean() == pytest.approx(small.mean(), rel=0.25)


def test_edges_are_smooth(standing):
    values = draw_skeleton(confident(turned(standing, 20)), 128, 128).max(axis=2)
    assert ((values > 20) & (values < 230)).sum() > 100


@settings(max_examples=60, deadline=None)
@given(ODD_KEYPOINTS, st.integers(1, 80), st.integers(1, 80))
def test_any_keypoints_can_be_drawn(keypoints, width, height):
    assert draw_skeleton(keypoints, width, height).shape == (height, width, 3)


def test_drawing_is_fast(standing):
    points = confident(standing)
    draw_skeleton(points, 128, 128)
    fastest = min(_seconds(lambda: draw_skeleton(points, 128, 128)) for _ in range(20))
    assert fastest < 5e-3


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 270])
def test_parts_hold_their_keypoints_however_the_body_lies(standing, degrees):
    points = turned(standing, degrees)
    boxes = dict(zip(PART_NAMES, part_boxes(confident(points)), strict=True))
    contents = {"body": range(12), "torso": (0, 1, 6, 7), "legs": range(6, 12), "feet": (10, 11)}
    for part, indices in contents.items():
        low, high = boxes[part][:2], boxes[part][2:]
        assert (points[list(indices)] > low).all()
        assert (points[list(indices)] < high).all()
    shoulders, hips = points[:2].mean(axis=0), points[6:8].mean(axis=0)
    head = (boxes["head"][:2] + boxes["head"][2:]) / 2
    beyond = (head - shoulders) @ (shoulders - hips) / np.linalg.norm(shoulders - hips) ** 2
    assert 0.3 < beyond < 0.7


def test_a_side_view_has_a_head_of_the_same_size(standing):
    side = standing.copy()
    side[:, 0] = 0.5
    front_boxes, side_boxes = part_boxes(confident(standing)), part_boxes(confident(side))
    assert np.ptp(side_boxes[1, ::2]) == pytest.approx(np.ptp(front_boxes[1, ::2]), rel=0.2)


@settings(max_examples=100, deadline=None)
@given(KEYPOINTS, st.floats(0.3, 3))
def test_boxes_are_square_and_bounded(keypoints, aspect):
    boxes = part_boxes(keypoints, aspect)
    assert boxes.shape == (5, 4)
    width, height = (boxes[:, 2] - boxes[:, 0]) * aspect, boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(width, height, rtol=1e-6)
    assert (height > 0).all()
    assert (height < 40).all()


@settings(max_examples=50, deadline=None)
@given(ODD_KEYPOINTS)
def test_boxes_are_always_finite(keypoints):
    assert np.isfinite(part_boxes(keypoints)).all()


def test_nobody_is_the_whole_picture():
    boxes = part_boxes(np.zeros((12, 3)), 0.5)
    np.testing.assert_allclose(boxes, np.tile([-0.5, 0, 1.5, 1], (5, 1)))


def test_parts_without_keypoints_are_the_body(standing):
    points = confident(standing)
    points[[0, 1, 10, 11], 2] = 0
    boxes = part_boxes(points)
    np.testing.assert_array_equal(boxes[1], boxes[0])
    np.testing.assert_array_equal(boxes[4], boxes[0])
    assert not np.array_equal(boxes[3], boxes[0])


def test_the_aspect_only_stretches(standing):
    """The same person in a picture with empty space at the sides has the same crops."""
    wide = standing.copy()
    wide[:, 0] = (standing[:, 0] - 0.5) / 2 + 0.5
    square, boxes = part_boxes(confident(standing)), part_boxes(confident(wide), 2.0)
    np.testing.assert_allclose((boxes[:, ::2] - 0.5) * 2 + 0.5, square[:, ::2], atol=1e-5)
    np.testing.assert_allclose(boxes[:, 1::2], square[:, 1::2], atol=1e-5)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_a_fitted_pose_keeps_proportions(standing, aspect):
    pose = Pose(keypoints=confident(standing), aspect=0.75)
    fitted = pose.fitted(aspect)
    before, after = standing * (0.75, 1), fitted[:, :2] * (aspect, 1)
    ratio = np.linalg.norm(after[0] - after[11]) / np.linalg.norm(before[0] - before[11])
    for one, other in ((0, 1), (6, 10), (2, 9)):
        expected = ratio * np.linalg.norm(before[one] - before[other])
        assert np.linalg.norm(after[one] - after[other]) == pytest.approx(expected, rel=1e-4)
    assert (fitted[:, :2] > 0).all()
    assert (fitted[:, :2] < 1).all()


def test_keypoints_without_confidence_are_sure(standing):
    pose = pose_from_array(standing.tolist())
    assert (pose.keypoints[:, 2] == 1).all()
    assert pose.fitted(3.0) is pose.keypoints


def heatmaps(*people) -> np.ndarray:
    grid = (np.arange(32) + 0.5) / 32
    maps = [
        np.exp(-((grid[None, None] - p[:, :1, None]) ** 2 + (grid[None, :, None] - p[:, 1:, None]) ** 2) / 0.001)
        for p in people
    ]
    return np.max(maps, axis=0).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3))
def test_people_are_counted(count):
    person = np.array(
        [(0.1, 0.2), (0.05, 0.2), (0.12, 0.3), (0.03, 0.3), (0.12, 0.4), (0.03, 0.4), (0.1, 0.5), (0.05, 0.5),
         (0.1, 0.7), (0.05, 0.7), (0.1, 0.9), (0.05, 0.9)]
    )  # fmt: skip
    people = [person + (0.35 * index, 0) for index in range(count)]
    assert count_people(heatmaps(*people), confident(person)) == count


def test_left_taken_for_right_is_one_person(standing):
    swapped = standing.reshape(6, 2, 2)[:, ::-1].reshape(12, 2)
    assert count_people(heatmaps(standing, swapped), confident(standing)) == 1


class Surveyor:
    """An estimator that always sees one pose, and notes the colours it sees there."""

    def __init__(self, points):
        self.points, self.colours = confident(points)[None].astype(np.float32), []

    def run(self, inputs):
        picture = inputs["pixels"][0].transpose(1, 2, 0) * 0.5 + 0.5
        columns, rows = (self.points[0, :, :2] * picture.shape[1::-1]).astype(int).T
        self.colours.append(picture[rows, columns])
        return {"keypoints": self.points.copy(), "heatmaps": heatmaps(self.points[0, :, :2])[None]}


@pytest.mark.parametrize("size", [(96, 96), (128, 96)])
@pytest.mark.parametrize(("width", "height"), [(200, 200), (150, 300), (300, 200)])
def test_the_second_look_is_told_in_the_pictures_coordinates(standing, size, width, height):
    """In a picture whose red and green are x and y, the estimator sees where its keypoints are."""
    estimator = Surveyor(0.5 + 0.3 * (standing - 0.5))
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    found = estimate_pose(estimator, picture, size)
    assert found.people == 1
    first, second = (colours[:, :2] for colours in estimator.colours)
    np.testing.assert_allclose(found.keypoints[:, :2], second, atol=0.02)
    assert np.ptp(second, axis=0).max() < 0.8 * np.ptp(first, axis=0).max()


def test_each_keypoint_is_of_the_look_that_is_surer_of_it(standing):
    looks = [confident(0.5 + 0.5 * (standing - 0.5)), confident(0.5 * standing)]
    looks[0][:6, 2], looks[1][:6, 2] = 0.8, 0.6
    looks[0][6:, 2], looks[1][6:, 2] = 0.6, 0.8

    class Looker:
        def run(self, inputs):
            keypoints = looks.pop(0)
            return {"keypoints": keypoints[None], "heatmaps": heatmaps(keypoints[:, :2])[None]}

    first = looks[0].copy()
    found = estimate_pose(Looker(), Image.new("RGB", (96, 96)), (96, 96)).keypoints
    np.testing.assert_allclose(found[:6], first[:6], atol=1e-6)
    assert np.abs(found[6:, :2] - first[6:, :2]).max() > 0.05
    assert (found[:, 2] == np.float32(0.8)).all()
