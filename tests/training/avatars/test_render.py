"""The ray caster against closed forms, and what the parts of a dressed person are."""

import numpy as np
import pytest

pytest.importorskip("anny")
pytest.importorskip("embreex")

from bolid_training.avatars.body import build_figure
from bolid_training.avatars.mesh import box, sphere, srgb_to_linear
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import sample_person
from bolid_training.avatars.poses import Pose
from bolid_training.avatars.render import Camera, Light, Rendering, render

CAMERA = Camera(position=(0, -4, 1), target=(0, 0, 1), vertical_fov=40)
SUN = Light(direction=(-1, -1, 2), color=(1, 1, 1), sky=(0, 0, 0), ground=(0, 0, 0))


def blue(directions: np.ndarray) -> np.ndarray:
    return np.tile(np.float32([0, 0, 1]), (len(directions), 1))


def shoot(meshes, light: Light = SUN, size: int = 64) -> Rendering:
    return render(meshes, CAMERA, light, background=blue, size=size)


def test_projection_agrees_with_the_picture() -> None:
    """A small sphere appears where its centre is projected, and as far away."""
    centre = np.array([0.5, 0.3, 1.4])
    seen = shoot([sphere(0.1, (1, 1, 1), Part.PROP).moved(centre)], size=128)
    rows, columns = np.nonzero(seen.parts == Part.PROP)
    points, depth = CAMERA.project(centre[None])
    np.testing.assert_allclose([(columns.mean() + 0.5) / 128, (rows.mean() + 0.5) / 128], points[0], atol=0.005)
    assert abs(seen.depth[rows, columns].min() - (np.linalg.norm(centre - CAMERA.position) - 0.1)) < 0.01
    assert depth[0] == pytest.approx(4.3)


def test_lambert_and_shadow() -> None:
    """A white floor facing up gets the cosine of the sun, and nothing in a shadow."""
    floor = box((20, 20, 0.1), (1, 1, 1)).moved((0, 0, -0.1))
    lit = shoot([floor]).image[-1, 32]
    np.testing.assert_allclose(lit, 2 / np.sqrt(6), atol=0.01)
    shaded = shoot([floor, box((20, 20, 0.1), (1, 1, 1)).moved((0, 0, 8))]).image[-1, 32]
    np.testing.assert_allclose(shaded, 0, atol=1e-6)


def test_occlusion_of_points() -> None:
    seen = shoot([box((1, 0.1, 2), (1, 1, 1))])
    behind, before = [0, 1, 1], [0, -1, 1]
    np.testing.assert_array_equal(seen.occluded(np.array([behind, before]), 0.1), [True, False])


def test_background_is_what_nothing_hides() -> None:
    seen = shoot([box((0.1, 0.1, 0.1), (1, 1, 1))])
    np.testing.assert_array_equal(seen.image[0, 0], [0, 0, 1])
    assert seen.parts[0, 0] == Part.BACKGROUND
    assert np.isinf(seen.depth[0, 0])


def test_the_transfer_function_is_the_standards() -> None:
    """Both ends of its straight and its curved piece, and the grey of half the light (IEC 61966-2-1)."""
    values = [0, 0.04045, 0.5, 0.735357, 1]
    np.testing.assert_allclose(srgb_to_linear(values), [0, 0.0031308, 0.214041, 0.5, 1], atol=1e-6)


def test_a_dressed_person_shows_its_parts_in_order() -> None:
    """From the top: hair or hat or face, upper, lower or legs, shoes; seen from the front at 128 pixels."""
    for seed in range(6):
        figure = build_figure(sample_person(np.random.default_rng(seed)), Pose(kind="standing"), 0.0)
        parts = shoot(figure.meshes, size=128).parts
        height = {part: np.nonzero(parts == part)[0].mean() for part in Part if (parts == part).any()}
        assert {Part.FACE, Part.UPPER, Part.SHOES} <= height.keys()
        assert Part.LOWER in height or Part.LEGS in height or Part.UPPER in height
        assert height[Part.FACE] < height[Part.UPPER] < height[Part.SHOES]
        assert (parts == Part.FACE).sum() > 25
