"""Files and folders appear whole or not at all."""

import errno

import pytest

from bolid_sdk.errors import OutputError
from bolid_sdk.files import atomic_file, atomic_folder


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def fail_in_file(path, error):
    with atomic_file(path) as file:
        file.write(b"half")
        raise error


def fail_in_folder(path, error):
    with atomic_folder(path) as folder:
        (folder / "part").write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        fail_in_file(path, error)
    with pytest.raises(expected):
        fail_in_folder(tmp_path / "b", error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_said(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"), atomic_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "b"
    for content in ("one", "two"):
        with atomic_folder(target, overwrite=True) as folder:
            (folder / content).write_text(content)
    assert [entry.name for entry in target.iterdir()] == ["two"]
    with pytest.raises(OutputError, match="exists already"), atomic_folder(target):
        pass
