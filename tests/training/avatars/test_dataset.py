"""Shards: planned, resumed, read back."""

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("anny")

from bolid_training.avatars import shards
from bolid_training.avatars.cli import data
from bolid_training.avatars.dataset import OtherSettingsError, write_dataset
from bolid_training.avatars.reader import load_split, shard_paths
from bolid_training.avatars.shards import SPLITS, Settings, plan, split_identities

SMALL = Settings(identities=5, views=2, size=32, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, SMALL)
    return out


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.tar")}


def test_splits_are_disjoint_and_complete():
    splits = split_identities(Settings(identities=6000, views=8, size=128, seed=0))
    people = [identity for name in ("train", "validation", "test") for identity in splits[name]]
    assert sorted(people) == list(range(6000))
    assert (len(splits["test"]), len(splits["validation"]), len(splits["empty"])) == (600, 180, 1200)


def test_every_split_comes_early_and_identities_stay_together():
    order = plan(Settings(identities=6000, views=8, size=128, seed=0))
    assert {shard.split for shard in order[:4]} == set(SPLITS)
    assert sum(shard.pictures for shard in order) == 6000 * 8 + 1200
    assert all(shard.pictures <= shards.SHARD_SIZE for shard in order)


def test_resumed_equals_uninterrupted(dataset, tmp_path):
    write_dataset(tmp_path, SMALL, splits=("test", "empty"))
    assert len(shard_paths(tmp_path, "train")) == 0
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "train-00000.tmp1").write_bytes(b"left by an interrupted run")
    card = write_dataset(tmp_path, SMALL)
    assert card["complete"]
    assert contents(tmp_path) == contents(dataset)


def test_finished_shards_are_not_made_again(dataset):
    made = []
    write_dataset(dataset, SMALL, progress=made.append)
    assert made == []


def test_other_settings_are_refused(dataset):
    with pytest.raises(OtherSettingsError, match="choose another --out"):
        write_dataset(dataset, Settings(identities=6, views=2, size=32, seed=3))
    result = CliRunner().invoke(data, ["--out", str(dataset), "--identities", "6", "--views", "2", "--size", "32"])
    assert result.exit_code == 2
    assert "choose another --out" in result.output


def test_unknown_split_is_refused(tmp_path):
    result = CliRunner().invoke(data, ["--out", str(tmp_path), "--splits", "training"])
    assert result.exit_code == 2
    assert "train, validation, test, empty" in result.output


def test_reader_gives_what_was_written(dataset):
    first, cached = load_split(dataset, "train"), load_split(dataset, "train")
    assert first.images.shape == (6, 32, 32, 3)
    assert first.images.dtype == np.uint8
    assert first.parts.shape == (6, 32, 32)
    assert first.keypoints.shape == (6, 12, 3)
    assert first.keypoints.dtype == np.float32
    assert first.identity.tolist() == [entry["identity"] for entry in first.metadata]
    np.testing.assert_array_equal(first.images, cached.images)
    assert first.metadata == cached.metadata
    assert len(load_split(dataset, "train", limit=4)) == 4
    assert len(load_split(dataset, "empty", cache=False)) == 1


def test_reader_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="bolid-train data"):
        load_split(tmp_path, "train")
