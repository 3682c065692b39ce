"""The network of the identity-embedding loss: what it says of a picture, and that a loss can ask it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bolid_training.avatars.parts import Part
from bolid_training.data import People, pixels
from bolid_training.metric_learning import body_boxes, found_keypoints
from bolid_training.stages.reid import SIZE, Reid, build_reid


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    build_reid().save_pretrained(folder / "reid" / "model")
    return folder


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    points = rng.uniform(0.3, 0.7, (3, 12, 3)).astype(np.float32)
    points[..., 2] = 2
    return People(
        images=rng.integers(256, size=(3, 128, 128, 3), dtype=np.uint8),
        parts=np.full((3, 128, 128), Part.UPPER, np.uint8),
        keypoints=points,
        identity=np.arange(3, dtype=np.int32),
        metadata=[{"style": "photo"}] * 3,
    )


def test_it_says_of_a_person_what_the_network_says_of_their_box(runs, people):
    """A box that is cut by hand, of a picture that is smooth, so that a pixel more or less does not matter."""
    points = people.keypoints[:1]
    ramp = torch.linspace(-1, 1, 128)
    picture = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.zeros(128, 128)])[None]
    reid = Reid(runs)
    left, top, right, bottom = (128 * body_boxes(points)[0]).round().astype(int)
    cut = F.interpolate(picture[..., top:bottom, left:right], (SIZE, SIZE), mode="bilinear")
    with torch.no_grad():
        expected = F.normalize(build_reid().eval()(cut).logits)
        assert F.cosine_similarity(reid(picture, points), expected) > 0.99


def test_a_loss_on_it_reaches_the_pixels_of_the_person_and_no_others(runs, people):
    picture = pixels(people.images[:1]).requires_grad_()
    reid = Reid(runs)
    reid(picture, people.keypoints[:1])[0, 0].backward()
    left, top, right, bottom = (128 * body_boxes(people.keypoints[:1])[0]).round().astype(int)
    reached = picture.grad.abs().sum((0, 1)) > 0
    assert reached[top + 2 : bottom - 2, left + 2 : right - 2].float().mean() > 0.9
    reached[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
    assert not reached.any()
    assert not any(parameter.requires_grad for parameter in reid.network.parameters())


def test_everybody_is_embedded_once_and_alike_alone(runs, people, tmp_path):
    reid = Reid(runs)
    found = reid.of(people, tmp_path)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        alone = reid(pixels(people.images[1:2]), found_keypoints(people)[1:2]).numpy()
    assert (found[1] * alone).sum() > 0.99  # in bfloat16 where there is hardware for it
    (kept,) = (tmp_path / "cache").iterdir()
    assert np.array_equal(np.load(kept), found)


def test_a_missing_network_is_named_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="bolid-train stage reid"):
        Reid(tmp_path)
