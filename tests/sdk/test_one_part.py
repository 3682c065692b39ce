"""People as IP-Adapters know them: one centre square a reference, tokens of each, or a face network's embedding."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bolid_sdk.conditioning import Conditioner
from bolid_sdk.contracts import Sizes, graph_specs
from bolid_sdk.errors import InputError
from bolid_sdk.identity import identify, unconditional_tokens
from bolid_sdk.manifest import capabilities

SIZES = Sizes(
    latent_channels=4,
    vae_factor=8,
    context_width=6,
    image_size=16,
    patch_tokens=5,
    patch_width=8,
    identity_tokens=4,
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
)
POOLED = replace(SIZES, patch_tokens=1)
EMBEDDED = replace(POOLED, image_size=0)


class ImageEncoder:
    """Keeps what it is shown; the tokens of a picture are its mean."""

    def __init__(self, sizes):
        self.sizes, self.seen = sizes, []

    def run(self, inputs):
        pixels = inputs["pixels"]
        self.seen.append(pixels)
        tokens = np.ones((len(pixels), self.sizes.patch_tokens, self.sizes.patch_width), np.float32)
        return {"patch_tokens": tokens * pixels.mean((1, 2, 3))[:, None, None]}


class IdentityEncoder:
    """Four tokens for each view: 1, 2, 3 and 4 times the sum of its patch tokens, plus one."""

    def run(self, inputs):
        assert inputs.keys() == {"patch_tokens"}, "one part needs no numbers of parts"
        sums = inputs["patch_tokens"].sum((2, 3))
        tokens = 1 + sums[..., None] * np.arange(1, 5, dtype=np.float32)
        return {"identity_tokens": np.repeat(tokens.reshape(len(tokens), -1, 1), SIZES.context_width, axis=2)}


def room(sizes):
    """Engines by name and the bundle that they belong to."""
    manifest = SimpleNamespace(name="dreams", sizes=sizes, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    manifest.blank_patch_tokens = None
    graphs = {"image_encoder": ImageEncoder(sizes), "identity_encoder": IdentityEncoder()}
    if not sizes.image_size:
        del graphs["image_encoder"]
    return graphs, SimpleNamespace(manifest=manifest, identity_digest="digest")


def test_the_contract_has_what_the_sizes_say():
    specs = graph_specs(SIZES)
    assert specs.keys() == {
        "text_encoder",
        "image_encoder",
        "identity_encoder",
        "denoiser",
        "vae_decoder",
        "vae_encoder",
    }
    assert capabilities(specs, SIZES) == ("encode",)
    assert "identity_tokens" in next(t for t in specs["denoiser"].inputs if t.name == "identity_tokens").shape
    assert not {"image_tokens", "image_scale"} & set(specs["denoiser"].input_names)
    assert "image_encoder" not in graph_specs(EMBEDDED)
    five = graph_specs(replace(SIZES, parts=5))
    assert next(t for t in five["denoiser"].inputs if t.name == "identity_tokens").shape[1] == 4
    assert five["identity_encoder"].input_names == ("patch_tokens", "parts")


def test_a_reference_is_its_centre_square():
    graphs, bundle = room(SIZES)
    tall = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8))
    identity = identify(graphs, bundle, tall)
    (seen,) = graphs["image_encoder"].seen
    square = np.asarray(tall.crop((0, 8, 16, 24)), np.float32) / 255
    expected = (square - bundle.manifest.image_mean) / bundle.manifest.image_std
    np.testing.assert_allclose(seen[0], expected.transpose(2, 0, 1), atol=1e-5)
    assert identity.tokens.shape == (4, 6)
    assert identity.pose is None


def test_each_reference_has_tokens_of_its_own():
    graphs, bundle = room(SIZES)
    pictures = [Image.new("RGB", (16, 16), (shade,) * 3) for shade in (10, 200)]
    together = identify(graphs, bundle, pictures).tokens
    np.testing.assert_array_equal(together, np.concatenate([identify(graphs, bundle, p).tokens for p in pictures]))


def test_nobody_is_a_zero_picture_or_a_zero_embedding():
    graphs, bundle = room(SIZES)
    unconditional_tokens(graphs, bundle)
    np.testing.assert_array_equal(graphs["image_encoder"].seen, np.zeros((1, 1, 3, 16, 16)))
    for sizes in (POOLED, EMBEDDED):
        graphs, bundle = room(sizes)
        np.testing.assert_array_equal(unconditional_tokens(graphs, bundle), np.ones((4, 6)))
        assert "image_encoder" not in graphs or not graphs["image_encoder"].seen


def attention(query, tokens):
    weights = np.exp(query @ tokens.T)
    return weights / weights.sum(-1, keepdims=True) @ tokens


@pytest.mark.parametrize("branches", [1, 2])
def test_people_of_different_numbers_of_references_share_a_batch(branches):
    """What attention makes of the repeated tokens is what it makes of the tokens."""
    random = np.random.default_rng(0)
    people = [random.standard_normal((count, 6)).astype(np.float32) for count in (8, 12)]
    graphs, bundle = room(POOLED)
    batch = Conditioner(bundle, graphs).identity(people, branches)
    assert batch.shape == (2 * branches, 24, 6)
    query = random.standard_normal((3, 6))
    nobody = [unconditional_tokens(graphs, bundle)] * 2 if branches == 2 else []
    for found, expected in zip(batch, [*nobody, *people], strict=True):
        np.testing.assert_allclose(attention(query, found), attention(query, expected), atol=1e-6)


def test_faces_are_given_as_embeddings():
    graphs, bundle = room(EMBEDDED)
    faces = np.random.default_rng(0).standard_normal((2, 8))
    expected = np.concatenate([identify(graphs, bundle, face).tokens for face in faces])
    np.testing.assert_array_equal(identify(graphs, bundle, faces).tokens, expected)
    for wrong in ("ref.jpg", faces[:, :7], faces.astype(int), np.full(8, np.nan), [faces], np.zeros((17, 8))):
        with pytest.raises(InputError, match=r"knows people by face embeddings .* expected float \[8\] or"):
            identify(graphs, bundle, wrong)
