"""The folder of compiled graphs is shared: others delete from it, and some of it may be another user's."""

import hashlib
import os
from pathlib import Path

import pytest

from bolid_sdk.backends.blobs import Blobs


@pytest.fixture
def blobs(tmp_path):
    return Blobs(folder=tmp_path, limit=0)


def refuse(*arguments, **options):
    raise PermissionError(1, "Operation not permitted")


@pytest.fixture
def old_and_new(blobs):
    files = [blobs.folder / f"{name}.blob" for name in ("old", "new")]
    for seconds, file in enumerate(files):
        file.write_bytes(b"compiled")
        os.utime(file, (seconds, seconds))
    return files


def test_a_blob_of_another_user_is_read(blobs, monkeypatch):
    """Only its owner may say when it was used."""
    file = blobs.path("graph", 1)
    blobs.write(file, memoryview(b"compiled"))
    monkeypatch.setattr(os, "utime", refuse)
    assert blobs.open(file)[:8] == b"compiled"


def test_blobs_that_others_delete_meanwhile_are_passed_over(blobs, old_and_new):
    (blobs.folder / "deleted.blob").symlink_to("nowhere")
    blobs.trim()
    assert [file.exists() for file in old_and_new] == [False, True]


def test_blobs_that_only_others_may_delete_stay(blobs, old_and_new, monkeypatch):
    monkeypatch.setattr(Path, "unlink", refuse)
    blobs.trim()
    assert [file.exists() for file in old_and_new] == [True, True]


@pytest.fixture
def large(tmp_path):
    """So large that its sha256 is remembered; without holes it would be 128 MB."""
    file = tmp_path / "graph.onnx"
    with file.open("wb") as output:
        output.truncate(1 << 27)
    return file


def test_the_sha256_of_a_large_file_is_remembered(blobs, large):
    expected = hashlib.sha256(hashlib.sha256(bytes(1 << 27)).hexdigest().encode()).hexdigest()
    assert blobs.digest([large]) == expected
    (memory,) = blobs.folder.glob("*.sha256")
    memory.write_text("remembered")
    assert blobs.digest([large]) == hashlib.sha256(b"remembered").hexdigest()


def test_a_folder_that_cannot_be_written_costs_only_time(large, tmp_path):
    expected = Blobs(folder=tmp_path, limit=0).digest([large])
    assert Blobs(folder=tmp_path / "deleted", limit=0).digest([large]) == expected
    (tmp_path / "file").touch()
    assert Blobs(folder=tmp_path / "file", limit=0).digest([large]) == expected
