"""webdataset shards: tar files whose members of one key are a sample, as `bolid-train data` writes them, too.

    0001.jpg   the picture (png, jpg, jpeg, webp)
    0001.json  {"caption": "…" or "captions": […], "identity": …, "keypoints": [[x, y, visibility], … 12]}
    0001.txt   the caption, if there is no JSON
    0001.parts.png   labels of `bolid_training.avatars.parts.Part`, if there are any

Pictures stay where they are: what is kept of each is its place in the tar.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from bolid_sdk.errors import InputError
from bolid_training.userdata.entries import Blob, Entry
from bolid_training.userdata.folders import captions_of, identity_of

PICTURES = ("png", "jpg", "jpeg", "webp")


def shard_entries(root: Path) -> list[Entry]:
    """The samples of every *.tar below `root`, in order. Raises InputError for a tar that cannot be read."""
    return [entry for path in shard_files(root) for entry in _of_shard(path, path.relative_to(root).as_posix())]


def shard_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.tar") if path.is_file())


def _of_shard(path: Path, name: str) -> Iterator[Entry]:
    for key, members in _samples(path):
        picture = next((members[kind] for kind in PICTURES if kind in members), None)
        if picture is None:
            continue
        values = _json(members["json"]) if "json" in members else {}
        text = members["txt"].read().decode(errors="replace").strip() if "txt" in members else ""
        yield Entry(
            name=f"{name}/{key}",
            identity=identity_of(values, f"{name}/{key} (alone)"),
            captions=captions_of(values) or ((text,) if text else ()),
            picture=picture,
            keypoints=values.get("keypoints"),
            parts=members.get("parts.png"),
            style=str(values.get("style") or "photo"),
        )


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Blob]]]:
    """Members by key; the extension is all that follows the first dot of the file's name."""
    samples: dict[str, dict[str, Blob]] = {}
    try:
        # "r:" takes no compressed tar, in which members have no place of their own
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")
                blob = Blob(path=path, offset=member.offset_data, size=member.size)
                samples.setdefault(folder + slash + key, {})[extension.lower()] = blob
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is not an uncompressed tar file that can be read ({error}); write it again") from None
    yield from samples.items()


def _json(blob: Blob) -> dict:
    """What cannot be read says nothing: the sample is then one without a caption."""
    try:
        values = json.loads(blob.read())
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
