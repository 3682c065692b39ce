"""What guidance needs to know of nobody: from the bundle, without its largest graph, or from that graph."""

import numpy as np
import pytest

from bolid_sdk.backends import open_backend
from bolid_sdk.blank import blank_patch_tokens
from bolid_sdk.errors import BundleError
from bolid_sdk.generator import Generator
from bolid_sdk.graphs import Graphs
from bolid_sdk.sampling import Sampling


@pytest.fixture(scope="module")
def encoded(tiny_bundle):
    """By the encoder, for the bundle has no such file."""
    assert tiny_bundle.manifest.encodes_nobody
    return blank_patch_tokens(Graphs(tiny_bundle, open_backend("onnxruntime", "cpu")), tiny_bundle)


@pytest.fixture
def with_blank(make_bundle, tiny_files, tmp_path):
    def make(array):
        np.save(tmp_path / "blank.npy", array)
        return make_bundle({**tiny_files, "blank.npy": tmp_path / "blank.npy"}, blank_patch_tokens="blank.npy")

    return make


@pytest.fixture(scope="module")
def person(generator, reference):
    return generator.identify(reference)


def picture_of(generator, person):
    return generator(person, "on a sofa", seed=1, sampling=Sampling(steps=2, guidance=3.0)).image.tobytes()


def test_the_same_picture_without_the_encoder(with_blank, encoded, generator, person, monkeypatch):
    stored = Generator(with_blank(encoded).path)
    assert not stored.bundle.manifest.encodes_nobody
    loaded, load = [], Graphs._load
    monkeypatch.setattr(Graphs, "_load", lambda self, name: loaded.append(name) or load(self, name))
    assert picture_of(stored, person) == picture_of(generator, person)
    assert "identity_encoder" in loaded
    assert "image_encoder" not in loaded


def test_what_is_stored_is_what_guidance_leads_away_from(with_blank, encoded, person):
    pictures = [picture_of(Generator(with_blank(tokens).path), person) for tokens in (encoded, encoded + 1)]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 5, 9), np.float32), np.zeros((1, 5, 8)), np.array([{}], object)], ids=str
)
def test_another_array_is_refused(with_blank, wrong):
    bundle = with_blank(wrong)
    with pytest.raises(BundleError, match=r"blank\.npy is .*export the bundle again"):
        blank_patch_tokens({}, bundle)


def test_the_file_has_to_be_listed(make_bundle, tiny_files):
    with pytest.raises(BundleError, match=r"blank\.npy is used but not listed"):
        make_bundle(tiny_files, blank_patch_tokens="blank.npy")
