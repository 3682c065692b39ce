"""Reads the shards back, finished ones only, so a data set can be used while it is being written."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A split in memory.

    images uint8 [N, H, W, 3]; parts uint8 [N, H, W]; keypoints float32 [N, 12, 3] (x, y, visibility 0 to 2);
    identity int32 [N], -1 for nobody; metadata: N dicts as in the shards' JSON.
    """

    images: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    identity: np.ndarray
    metadata: list[dict]

    def __len__(self) -> int:
        return len(self.images)


def shard_paths(root: Path, split: str) -> list[Path]:
    """Finished shards of a split, in order."""
    return sorted((Path(root) / split).glob(f"{split}-*.tar"))


def iterate_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {extension: bytes}) of every sample of a shard; the extension is all that follows the key's dot."""
    key, members = None, {}
    with tarfile.open(path) as tar:
        for entry in tar:
            stem, _, extension = entry.name.partition(".")
            if key is not None and stem != key:
                yield key, members
                members = {}
            key = stem
            members[extension] = tar.extractfile(entry).read()
    if key is not None:
        yield key, members


def load_split(root: Path, split: str, limit: int | None = None, *, cache: bool = True) -> Samples:
    """The first `limit` samples (all by default) of the finished shards of a split.

    Decoded shards are kept in `root/cache` for the next time unless `cache` is off. Raises FileNotFoundError when there
    is no finished shard yet.
    """
    paths = shard_paths(root, split)
    if not paths:
        raise FileNotFoundError(
            f"no finished shard {split}-*.tar in {Path(root) / split}: run `bolid-train data` first"
        )
    loaded, count = [], 0
    for path in paths:
        loaded.append(_load_shard(path, Path(root) / "cache" if cache else None))
        count += len(loaded[-1])
        if limit is not None and count >= limit:
            break
    return concatenate(loaded, limit)


def decode_shard(path: Path) -> Samples:
    """All samples of one shard."""
    samples = [members for _, members in iterate_shard(path)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda members: _pixels(members["png"]), samples))
        parts = list(pool.map(lambda members: _pixels(members["parts.png"]), samples))
    metadata = [json.loads(members["json"]) for members in samples]
    return Samples(
        images=np.stack(images),
        parts=np.stack(parts),
        keypoints=np.array([entry["keypoints"] for entry in metadata], dtype=np.float32),
        identity=np.array([entry["identity"] for entry in metadata], dtype=np.int32),
        metadata=metadata,
    )


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _load_shard(path: Path, cache: Path | None) -> Samples:
    """Through the cache, whose entries are void once the shard's size or time changes."""
    if cache is None:
        return decode_shard(path)
    state = path.stat()
    stored = cache / f"{path.stem}-{state.st_size:x}-{state.st_mtime_ns:x}.npz"
    if stored.exists():
        with np.load(stored) as arrays:
            fields = {name: arrays[name] for name in ("images", "parts", "keypoints", "identity")}
            return Samples(**fields, metadata=json.loads(arrays["metadata"].tobytes()))
    samples = decode_shard(path)
    _store(samples, stored)
    return samples


def _store(samples: Samples, stored: Path) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    for outdated in stored.parent.glob(f"{stored.name.rsplit('-', 2)[0]}-*-*.npz"):
        outdated.unlink(missing_ok=True)
    temporary = stored.with_name(f".{stored.stem}.{os.getpid()}.npz")
    metadata = np.frombuffer(json.dumps(samples.metadata).encode(), dtype=np.uint8)
    np.savez(
        temporary,
        images=samples.images,
        parts=samples.parts,
        keypoints=samples.keypoints,
        identity=samples.identity,
        metadata=metadata,
    )
    temporary.replace(stored)


def concatenate(shards: list[Samples], limit: int | None = None) -> Samples:
    """All samples of several, the first `limit` of them."""
    return Samples(
        images=np.concatenate([shard.images for shard in shards])[:limit],
        parts=np.concatenate([shard.parts for shard in shards])[:limit],
        keypoints=np.concatenate([shard.keypoints for shard in shards])[:limit],
        identity=np.concatenate([shard.identity for shard in shards])[:limit],
        metadata=[entry for shard in shards for entry in shard.metadata][:limit],
    )
