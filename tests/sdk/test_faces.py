"""Faces as numbers: what FaceID, InstantID and PuLID are given, the map of a face, and PuLID's modes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bolid_sdk import Face
from bolid_sdk.conditioning import Conditioner
from bolid_sdk.contracts import Sizes, graph_specs
from bolid_sdk.errors import InputError, PoseError
from bolid_sdk.face_map import COLOURS, draw_face_map
from bolid_sdk.identity import identify, unconditional_tokens
from bolid_sdk.manifest import capabilities
from bolid_sdk.orthogonal import orthogonality
from bolid_sdk.pose import Pose
from bolid_sdk.request import read_face_pose, resolve_options
from bolid_sdk.sampling import ResolvedSampling

PULID = Sizes(
    latent_channels=4,
    vae_factor=8,
    context_width=6,
    image_size=0,
    patch_tokens=1,
    patch_width=8,
    identity_tokens=10,
    image_tokens=0,
    cross_attention_layers=3,
    pose_channels=(),
    pose_height=0,
    pose_width=0,
    native_height=64,
    native_width=64,
    min_side=32,
    max_side=128,
    parts=1,
    vision_width=5,
    vision_states=(2, 4, 3),
)
INSTANT_ID = replace(PULID, identity_tokens=16, vision_width=0, vision_states=(), identity_net=True, face_map=True)


class IdentityEncoder:
    """Keeps what it is given; all tokens are the mean of everything, plus one."""

    def __init__(self, sizes):
        self.spec, self.sizes, self.seen = graph_specs(sizes)["identity_encoder"], sizes, []

    def run(self, inputs):
        assert tuple(inputs) == self.spec.input_names
        for tensor in self.spec.inputs:
            axes = zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            assert all(found == axis for axis, found in axes if isinstance(axis, int))
            assert inputs[tensor.name].dtype == np.float32
        self.seen.append(inputs)
        mean = sum(array.sum() for array in inputs.values())
        return {"identity_tokens": np.full((1, self.sizes.identity_tokens, self.sizes.context_width), 1 + mean)}


def room(sizes):
    manifest = SimpleNamespace(
        name="dreams",
        sizes=sizes,
        capabilities=capabilities(graph_specs(sizes), sizes),
        sampling=ResolvedSampling(steps=4, guidance=2.0, sampler="ddim", spacing="trailing"),
    )
    return {"identity_encoder": IdentityEncoder(sizes)}, SimpleNamespace(manifest=manifest, identity_digest="digest")


def face(random):
    return Face(
        embedding=random.standard_normal(8),
        vision_embedding=random.standard_normal(5),
        vision_states=random.standard_normal((2, 4, 3)),
    )


def test_pulid_is_given_what_eva_clip_sees_too():
    graphs, bundle = room(PULID)
    faces = [face(np.random.default_rng(seed)) for seed in range(3)]
    identity = identify(graphs, bundle, faces)
    assert identity.tokens.shape == (10, 6)
    assert identity.pose is None
    (seen,) = graphs["identity_encoder"].seen
    for name, given_ in (("patch_tokens", "embedding"), ("vision_states", "vision_states")):
        expected = np.stack([getattr(one, given_) for one in faces])
        np.testing.assert_allclose(seen[name].reshape(expected.shape), expected, rtol=1e-6)
    directions = np.stack([one.vision_embedding / np.linalg.norm(one.vision_embedding) for one in faces])
    np.testing.assert_allclose(seen["vision_embedding"][0], directions, rtol=1e-6)
    unconditional_tokens(graphs, bundle)
    assert all(not array.any() and array.shape[1] == 1 for array in graphs["identity_encoder"].seen[1].values())


def test_a_face_of_an_embedding_alone_is_that_embedding():
    embeddings = np.random.default_rng(0).standard_normal((2, 8))
    for given_ in (embeddings, [Face(embedding=one) for one in embeddings]):
        graphs, bundle = room(INSTANT_ID)
        identify(graphs, bundle, given_)
        (seen,) = graphs["identity_encoder"].seen
        np.testing.assert_allclose(seen["patch_tokens"], embeddings[None, :, None], rtol=1e-6)


def wrong_faces():
    good = vars(face(np.random.default_rng(0)))
    yield from ("ref.jpg", good["embedding"], [], [Face(**good), "ref.jpg"], [Face(**good)] * 17)
    for name, value in good.items():
        for wrong in (
            value[:-1],
            value[None],
            np.full_like(value, np.nan),
            value.astype(int),
            "no",
            [[1.0], [2.0, 3.0]],
        ):
            yield Face(**good | {name: wrong})
    yield Face(embedding=good["embedding"])


@pytest.mark.parametrize("wrong", list(wrong_faces()), ids=lambda wrong: type(wrong).__name__)
def test_other_things_than_faces_are_refused(wrong):
    graphs, bundle = room(PULID)
    with pytest.raises(InputError, match=r"expected Face\(embedding=float \[8\], vision_embedding=float \[5\], vision"):
        identify(graphs, bundle, wrong)
    assert not graphs["identity_encoder"].seen


def pulid_options(**options):
    return resolve_options(options, room(PULID)[1].manifest, 1, 8)


def test_modes_are_numbers_of_a_request():
    found = {mode: orthogonality(pulid_options(ortho=mode).ortho).tolist() for mode in ("off", "v1", "v2")}
    assert found == {"off": [0, 0], "v1": [1, 0], "v2": [1, 1]}
    default = pulid_options()
    assert (default.ortho, default.num_zero) == ("v2", 8)
    assert default.settings(room(PULID)[1].manifest).items() >= {"ortho": "v2", "num_zero": 8}.items()
    assert pulid_options(num_zero=0).num_zero == 0
    for wrong in ({"ortho": "v3"}, {"ortho": 1}, {"num_zero": -1}, {"num_zero": 81}, {"num_zero": True}):
        with pytest.raises(InputError, match=r"ortho=.* there is off, v1, v2|num_zero=.* from 0 to 80"):
            pulid_options(**wrong)
    other = room(INSTANT_ID)[1].manifest
    assert resolve_options({}, other, 1, 8).num_zero == 0
    for option in ({"ortho": "v2"}, {"num_zero": 8}):
        with pytest.raises(InputError, match="has no orthogonal"):
            resolve_options(option, other, 1, 8)


@given(branches=st.sampled_from([1, 2]), num_zero=st.integers(0, 80), people=st.integers(1, 3))
def test_zeros_follow_everybodys_tokens(branches, num_zero, people):
    graphs, bundle = room(PULID)
    tokens = list(np.random.default_rng(people).standard_normal((people, 10, 6)).astype(np.float32))
    found = Conditioner(bundle, graphs).identity(tokens, branches, num_zero)
    assert found.shape == (branches * people, 10 + num_zero, 6)
    assert found.dtype == np.float32
    assert not found[:, 10:].any()
    np.testing.assert_array_equal(found[-people:, :10], tokens)
    nobody = unconditional_tokens(graphs, bundle)
    assert all(np.array_equal(row[:10], nobody) for row in found[:-people])


def test_both_branches_see_the_map_of_a_face():
    graphs, bundle = room(INSTANT_ID)
    points = read_face_pose(np.random.default_rng(0).uniform(0.3, 0.7, (5, 2)))
    told = Conditioner(bundle, graphs).pose([points, None], scale=0.8, width=64, height=96, branches=2)
    drawn = draw_face_map(points.keypoints, 64, 96).transpose(2, 0, 1) / np.float32(255)
    assert drawn.any()
    for row, expected in zip(told["skeleton"], [drawn, np.zeros_like(drawn)] * 2, strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_array_equal(told["pose_scale"], np.float32([0.8]))


def test_a_faces_pose_is_five_points():
    assert read_face_pose(None) is None
    given_ = Pose(keypoints=np.ones((5, 3), np.float32), aspect=0.5)
    assert read_face_pose(given_) is given_
    for wrong in (
        np.zeros((12, 2)),
        Pose(keypoints=np.zeros((12, 3), np.float32)),
        "pose.jpg",
        np.full((5, 2), np.nan),
    ):
        with pytest.raises(PoseError, match=r"\[5, 2|NaN"):
            read_face_pose(wrong)


def published_map(pixels, width, height, grown=0.0):
    """By its definition at every pixel: a disc of 10 pixels, else an ellipse to the nose, 4 pixels half as wide.

    All outlines `grown` by so many pixels.
    """
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    image = np.zeros((height, width, 3))
    for index in (0, 1, 3, 4):
        axis = (pixels[index] - pixels[2]) / 2
        length, offset = np.linalg.norm(axis), grid - (pixels[index] + pixels[2]) / 2
        along = offset @ axis / length / (length + grown)
        across = offset @ np.array((-axis[1], axis[0])) / length / (4 + grown)
        image[along**2 + across**2 <= 1] = np.floor(0.6 * np.array(COLOURS[index]))
    for point, colour in zip(pixels, COLOURS, strict=True):
        image[((grid - np.floor(point)) ** 2).sum(-1) <= (10 + grown) ** 2] = colour
    return image


def test_the_map_of_a_face_is_drawn_as_published():
    """To a pixel and a half: outlines of polygons count as inside, as they do in the published drawing."""
    pixels = np.array([(90.0, 80), (160, 74), (128, 120), (100, 160), (150, 158)])
    found = draw_face_map(np.column_stack([pixels / (256, 224), np.ones(5)]), 256, 224)
    small, large = (published_map(pixels, 256, 224, grown) for grown in (-1.5, 1.5))
    certain = (small == large).all(-1)
    np.testing.assert_array_equal(found[certain], small[certain])
    drawn = small.any(-1) & certain
    assert len(np.unique(found[drawn], axis=0)) == 5 + 4, "every disc and every ellipse"
    assert drawn.sum() > 0.5 * large.any(-1).sum()


def test_points_that_are_not_seen_are_not_drawn():
    points = np.column_stack([np.full((5, 2), 0.5), [0, 0, 1, 0, 0]]).astype(np.float32)
    assert {tuple(colour) for colour in draw_face_map(points, 64, 64).reshape(-1, 3)} == {(0, 0, 0), COLOURS[2]}
    points[2, 2] = 0
    assert not draw_face_map(points, 64, 64).any()
