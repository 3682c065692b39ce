"""Writing and planning of webdataset shards: tar files of about a thousand samples."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bolid_training.avatars.sample import Sample, make_empty, make_sample

SHARD_SIZE = 1000
SPLITS = ("train", "validation", "test", "empty")
TEST_SHARE, VALIDATION_SHARE, EMPTY_SHARE = 0.1, 0.03, 1 / 40
_SPLIT_STREAM = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a data set is made from: equal settings give equal files."""

    identities: int
    views: int
    size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file: all views of `members` (identities; plain indices in the split `empty`)."""

    split: str
    index: int
    members: tuple[int, ...]
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.split}/{self.split}-{self.index:05d}.tar"

    @property
    def pictures(self) -> int:
        return len(self.members) * (1 if self.split == "empty" else self.settings.views)

    def samples(self) -> Iterable[Sample]:
        """Makes the samples, in order."""
        settings = self.settings
        for member in self.members:
            if self.split == "empty":
                yield make_empty(member, settings.seed, settings.size)
            else:
                for view in range(settings.views):
                    yield make_sample(member, view, settings.seed, settings.size)


def split_identities(settings: Settings) -> dict[str, list[int]]:
    """Disjoint identities of each split in random order: 10 % test, 3 % validation, the rest training.

    `empty` holds indices of pictures without a person instead, one for 40 others. Another number of identities gives
    another split of the same people: what was trained on one data set must not be tested on another of its seed.
    """
    order = np.random.default_rng([_SPLIT_STREAM, settings.seed]).permutation(settings.identities).tolist()
    test, validation = (math.ceil(round(settings.identities * share, 6)) for share in (TEST_SHARE, VALIDATION_SHARE))
    empty = max(1, round(settings.identities * settings.views * EMPTY_SHARE))
    return {
        "train": order[test + validation :],
        "validation": order[test : test + validation],
        "test": order[:test],
        "empty": list(range(empty)),
    }


def plan(settings: Settings, splits: Iterable[str] = SPLITS) -> list[Shard]:
    """All shards, the splits interleaved: whatever has been written so far is a small version of the whole."""
    members = split_identities(settings)
    shards: list[tuple[float, Shard]] = []
    for split in splits:
        step = SHARD_SIZE if split == "empty" else max(1, SHARD_SIZE // settings.views)
        starts = range(0, len(members[split]), step)
        for index, start in enumerate(starts):
            chunk = tuple(members[split][start : start + step])
            shards.append((index / len(starts), Shard(split=split, index=index, members=chunk, settings=settings)))
    return [shard for _, shard in sorted(shards, key=lambda entry: entry[0])]


def write_shard(shard: Shard, out: Path, advance=lambda: None) -> None:
    """Writes `out / shard.name` through a temporary sibling; `advance` is called after every picture."""
    target = out / shard.name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".tmp{os.getpid()}")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(shard.samples()):
            key = f"{shard.index:05d}{number:04d}"
            _append(tar, f"{key}.png", png(sample.image))
            _append(tar, f"{key}.parts.png", png(sample.parts))
            _append(tar, f"{key}.json", json.dumps(sample.metadata(), sort_keys=True).encode())
            advance()
    temporary.replace(target)


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG, compressed fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
