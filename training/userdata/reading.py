"""From a folder to the pictures that can be trained on, with a reason for each that cannot."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.errors import InputError
from bolid_training.userdata.entries import Entry, Skipped, read_keypoints
from bolid_training.userdata.folders import folder_entries
from bolid_training.userdata.poses import PoseFinder
from bolid_training.userdata.shards import shard_entries

EXPECTED = (
    "expected folders of one person each with pictures and .txt captions of the same name, a metadata.jsonl, or "
    "webdataset .tar shards"
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at a picture found: its size in pixels and keypoints float32 [12, 3] in [0, 1] of it, or a reason
    to leave it out."""

    width: int = 0
    height: int = 0
    keypoints: NDArray[np.float32] | None = None
    reason: str | None = None

    def to_json(self) -> str:
        points = None if self.keypoints is None else self.keypoints.tolist()
        return json.dumps({**vars(self), "keypoints": points})

    @classmethod
    def from_json(cls, text: str) -> "Look":
        values = json.loads(text)
        points = values.pop("keypoints")
        return cls(**values, keypoints=None if points is None else np.array(points, np.float32))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Pictures to train on, what was seen in each, and those left out."""

    entries: list[Entry]
    looks: list[Look]
    skipped: list[Skipped]

    @property
    def identities(self) -> NDArray[np.int32]:
        """[N]: a number for each person."""
        return np.unique([entry.identity for entry in self.entries], return_inverse=True)[1].astype(np.int32)

    def report(self) -> dict:
        return {
            "pictures": len(self.entries),
            "people": len({entry.identity for entry in self.entries}),
            "captions": sum(len(entry.captions) for entry in self.entries),
            "with_part_labels": sum(entry.parts is not None for entry in self.entries),
            "skipped": {skipped.name: skipped.reason for skipped in self.skipped},
        }


def find_entries(data: Path) -> tuple[list[Entry], list[Skipped]]:
    """The captioned pictures of folders and shards, and those without a caption or named and not there.

    Raises InputError when there is no folder, no picture, or no caption at all.
    """
    if not data.exists():
        raise InputError(f"no such folder: {data}; {EXPECTED}")
    if not data.is_dir():
        raise InputError(f"{data} is a file; give the folder that holds it: {EXPECTED}")
    in_folders, missing = folder_entries(data)
    entries = [*in_folders, *shard_entries(data)]
    if not entries:
        raise InputError(f"{data} holds no pictures; {EXPECTED}")
    captioned = [entry for entry in entries if entry.captions]
    if not captioned:
        raise InputError(
            f"none of the {len(entries)} pictures in {data} has a caption; write what each shows into a .txt file of "
            'the same name, or into metadata.jsonl as {"file_name": …, "text": …}'
        )
    uncaptioned = [Skipped(name=entry.name, reason="no caption") for entry in entries if not entry.captions]
    return captioned, [*missing, *uncaptioned]


def look(entry: Entry, finder: PoseFinder) -> Look:
    """Decodes a picture and finds the person in it. What is wrong with it becomes the reason to leave it out."""
    try:
        image = entry.open()
        points = finder.find(image, entry.name) if entry.keypoints is None else read_keypoints(entry.keypoints)
        check_parts(entry)
    except (InputError, OSError) as error:
        return Look(reason=str(error))
    return Look(width=image.width, height=image.height, keypoints=points)


def check_parts(entry: Entry) -> None:
    """Raises OSError for part labels that are damaged, InputError for those that are a picture in colours."""
    labels = entry.open_parts()
    if labels is None:
        return
    labels.load()
    if len(labels.getbands()) > 1:
        raise InputError(
            f"{entry.name}.parts.png has {len(labels.getbands())} channels ({labels.mode}); part labels have one, of "
            "the numbers of bolid_training.avatars.parts.Part: write them as grey values"
        )


def choose(entries: Iterable[Entry], looks: Iterable[Look], skipped: Iterable[Skipped], *, single: bool) -> Chosen:
    """The pictures that can be seen, of people with two of them, a photograph at least: the reference.

    With `single` a photograph that is alone is its own reference. Raises InputError when nothing is left.
    """
    pairs = list(zip(entries, looks, strict=True))
    left_out = [*skipped, *(Skipped(name=e.name, reason=found.reason) for e, found in pairs if found.reason)]
    seen = [(entry, found) for entry, found in pairs if not found.reason]
    if not seen:
        raise InputError(f"none of the pictures can be used: {_reasons(left_out)}")
    pictures = Counter(entry.identity for entry, _ in seen)
    referable = {entry.identity for entry, _ in seen if entry.style == "photo"}
    kept = [(e, found) for e, found in seen if e.identity in referable and (single or pictures[e.identity] > 1)]
    if not kept:
        raise InputError(
            f"no person has two pictures ({len(seen)} pictures of {len({e.identity for e, _ in seen})} people): "
            "identity is learned from one picture and drawn in another. Put pictures of one person into one "
            "sub-folder, or take each for its own partner with --single (which teaches to copy it)"
        )
    names = {entry.name for entry, _ in kept}
    reason = lambda e: f"{'the only picture' if pictures[e.identity] == 1 else 'no photograph'} of its person"  # noqa: E731
    left_out += [Skipped(name=e.name, reason=reason(e)) for e, _ in seen if e.name not in names]
    return Chosen(entries=[e for e, _ in kept], looks=[found for _, found in kept], skipped=left_out)


def _reasons(skipped: list[Skipped], most: int = 3) -> str:
    listed = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:most])
    return f"{listed}; and {len(skipped) - most} more" if len(skipped) > most else listed
