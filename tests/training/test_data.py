"""Arrays that are computed once and kept."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import bolid_training.data
from bolid_training.data import People, cached, cached_of, digest, load_together


def test_two_runs_that_compute_one_array_do_not_disturb_each_other(tmp_path):
    """The other one begins and ends while this one computes."""
    file = tmp_path / "cache" / "array.npy"
    other = (
        "import sys, pathlib, numpy as np; from bolid_training.data import cached;"
        "cached(pathlib.Path(sys.argv[1]), lambda piece: np.full((64, 1), piece.start), 128)"
    )

    def compute(piece):
        if piece.start:
            subprocess.run([sys.executable, "-c", other, file], check=True)
        return np.full((64, 1), piece.start)

    found = cached(file, compute, 128)
    np.testing.assert_array_equal(found[:, 0], np.repeat([0, 64], 64))
    assert [path.name for path in file.parent.iterdir()] == ["array.npy"]


def test_what_a_network_said_is_kept_until_it_has_been_trained_on(tmp_path):
    network, calls = nn.Linear(1, 1), []

    def compute(piece):
        calls.append(piece)
        return np.full((piece.stop - piece.start, 1), network.weight.item())

    first = [cached(tmp_path / "array.npy", compute, 64, by=network) for _ in range(2)]
    assert len(calls) == 1
    np.testing.assert_array_equal(*first)
    nn.init.constant_(network.weight, 3.0)
    assert (cached(tmp_path / "array.npy", compute, 64, by=network) == 3).all()


def test_a_digest_is_of_weights_and_their_names_whatever_their_type_and_layout():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    before = digest(network)
    assert digest(network.to(memory_format=torch.channels_last)) == before
    assert digest(network, network) != before
    network[1].num_batches_tracked += 1
    assert digest(network) != before
    assert digest(nn.Linear(1, 1).bfloat16()) != digest(nn.Linear(1, 1).bfloat16())


def test_people_of_several_data_sets_are_all_different(tmp_path, monkeypatch):
    """The second has a picture of nobody, too."""
    sets = {"one": [3, 3, 0], "two": [0, 3, -1]}

    def load(folder, split, limit):
        identity = np.array(sets[folder.name][:limit], np.int32)
        pixels = np.zeros((len(identity), 1, 1, 3), np.uint8)
        keypoints, metadata = np.zeros((len(identity), 12, 3), np.float32), [{} for _ in identity]
        return People(images=pixels, parts=pixels[..., 0], keypoints=keypoints, identity=identity, metadata=metadata)

    monkeypatch.setattr(bolid_training.data, "load_people", load)
    folders = [tmp_path / name for name in sets]
    assert load_together(folders, "train").identity.tolist() == [3, 3, 0, 4, 7, -1]
    assert load_together(folders, "train", 4).identity.tolist() == [3, 3, 0, 4]
    assert load_together(folders[:1], "train", 2).identity.tolist() == [3, 3]


def test_what_is_computed_of_other_people_is_computed_anew(tmp_path):
    people = People(
        images=np.zeros((2, 8, 8, 3), np.uint8),
        parts=np.zeros((2, 8, 8), np.uint8),
        keypoints=np.zeros((2, 12, 3), np.float32),
        identity=np.arange(2, dtype=np.int32),
        metadata=[{"captions": ["somebody"]}] * 2,
    )
    darker, told = replace(people, images=people.images + 1), replace(people, metadata=[{"captions": []}] * 2)
    computed = []
    for group in (people, replace(people), darker, told, darker):
        cached_of(group, tmp_path, "zeros", lambda piece: computed.append(piece) or np.zeros((2, 1)))
    assert len(computed) == len(list((tmp_path / "cache").iterdir())) == 3
