"""Figures: keypoints against the mesh, contact with the ground, determinism."""

import numpy as np
import pytest

pytest.importorskip("anny")
pytest.importorskip("embreex")

from bolid_training.avatars.anatomy import anatomy, rest
from bolid_training.avatars.body import Figure, build_figure
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Person, sample_person
from bolid_training.avatars.poses import POSE_CLASSES, Pose, sample_pose
from bolid_training.avatars.skeleton import bone_transforms

LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP, LEFT_ANKLE, RIGHT_ANKLE = 0, 1, 6, 7, 10, 11


def person(seed: int = 0) -> Person:
    return sample_person(np.random.default_rng(seed))


def figure(kind: str, seed: int = 0, yaw: float = 0.0) -> Figure:
    rng = np.random.default_rng(seed)
    return build_figure(sample_person(rng), sample_pose(rng, kind), yaw)


def vertices(result: Figure) -> np.ndarray:
    return np.concatenate([mesh.vertices for mesh in result.meshes])


def test_rest_pose_moves_nothing_without_rotations() -> None:
    """Skinning with the identity is the identity: transforms of bones without rotation do not shift."""
    shared, shape = anatomy(), rest(person().build)
    rotations, translations = bone_transforms(shared, shape, Pose(kind="standing"))
    root = shared.bones["root"]
    np.testing.assert_allclose(rotations[root], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(translations[root], 0, atol=1e-6)
    assert np.abs(np.linalg.det(rotations) - 1).max() < 1e-5


def test_thinned_body_has_the_keypoints_of_the_full_one() -> None:
    import anny
    import torch

    model = anny.Anny()
    build = person().build
    labels = ["left_shoulder", "right_shoulder", "left_hip", "right_hip"]
    with torch.no_grad():
        output = model(phenotype_kwargs={name: getattr(build, name) for name in model.phenotype_labels})
        full = output["rest_vertices"][0].float().numpy()
        regress = anny.KeypointsRegressor.coco(model, labels=labels)
        expected = regress.regression_weights.float().numpy() @ full
    actual = (anatomy().keypoints @ rest(build).vertices)[[0, 1, 6, 7]]
    np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize("kind", POSE_CLASSES)
def test_keypoints_lie_inside_the_figure(kind: str) -> None:
    """Every joint is within 12 cm of the surface and within the bounds."""
    for seed in range(3):
        result = figure(kind, seed, yaw=seed)
        distances = np.linalg.norm(vertices(result)[None] - result.keypoints[:, None], axis=2).min(1)
        assert distances.max() < 0.12
        assert (result.keypoints > result.bounds[0]).all()
        assert (result.keypoints < result.bounds[1]).all()


def test_left_is_on_the_persons_left() -> None:
    """Facing -y, the person's left is +x; turned around, it is -x."""
    front, back = (build_figure(person(), Pose(kind="standing"), yaw).keypoints for yaw in (0.0, np.pi))
    for left, right in ((LEFT_SHOULDER, RIGHT_SHOULDER), (LEFT_HIP, RIGHT_HIP), (LEFT_ANKLE, RIGHT_ANKLE)):
        assert front[left, 0] > front[right, 0] + 0.05
        assert back[left, 0] < back[right, 0] - 0.05


@pytest.mark.parametrize("kind", POSE_CLASSES)
def test_touches_the_ground_unless_jumping(kind: str) -> None:
    for seed in range(3):
        lowest = figure(kind, seed).bounds[0, 2]
        assert lowest > 0.05 if kind == "jumping" else lowest < 0.13


@pytest.mark.parametrize("kind", ["standing", "arms raised", "waving"])
def test_both_feet_stand(kind: str) -> None:
    for seed in range(5):
        result = figure(kind, seed)
        soles = sorted(mesh.vertices[:, 2].min() for mesh in result.meshes if mesh.parts[0] == Part.SHOES)
        assert soles[1] < 0.01
        assert abs(result.keypoints[LEFT_ANKLE, 2] - result.keypoints[RIGHT_ANKLE, 2]) < 0.02


def test_pose_classes_look_like_their_names() -> None:
    """Heights of hips, wrists and shoulders tell the classes apart."""
    for seed in range(8):
        raised = figure("arms raised", seed).keypoints
        assert (raised[4:6, 2] > raised[0:2, 2]).all()
        waving = figure("waving", seed).keypoints
        assert waving[4:6, 2].max() > waving[0:2, 2].min()
        lying = figure("lying", seed)
        assert lying.keypoints[:, 2].max() < 0.9
        standing, crouching = figure("standing", seed), figure("crouching", seed)
        assert crouching.keypoints[LEFT_HIP, 2] < 0.7 * standing.keypoints[LEFT_HIP, 2]


def test_seats_are_under_the_hips() -> None:
    seen = 0
    for seed in range(12):
        result = figure("sitting", seed, yaw=seed)
        if result.seat is None:
            continue
        seen += 1
        hips = result.keypoints[LEFT_HIP : RIGHT_HIP + 1].mean(0)
        assert 0.02 < hips[2] - result.seat.height < 0.25
        assert np.linalg.norm((hips - result.seat.position)[:2]) < 0.35
        assert 0.2 < result.seat.height < 0.65
    assert seen >= 6


def test_same_seed_same_figure() -> None:
    first, second = figure("running", 3, 1.0), figure("running", 3, 1.0)
    np.testing.assert_array_equal(vertices(first), vertices(second))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    assert person(4) == person(4)
    assert person(4) != person(5)


def test_unknown_pose_class_is_refused() -> None:
    with pytest.raises(ValueError, match="standing"):
        sample_pose(np.random.default_rng(0), "flying")
