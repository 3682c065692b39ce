"""Compiled graphs on disk: found by what they were compiled from and for, the least recently used given up first."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bolid_sdk.errors import InputError, OutputError
from bolid_sdk.files import atomic_file, cache_folder

MAGIC = b"BOLIDOV1"
TRAILER_BYTES = len(MAGIC) + 8
PIECE = 1 << 17
"""Bytes written at once. What is written as a whole lies in the page cache in units of 2 MB, and a process that reads
one small constant from the map holds all of its unit."""

DEFAULT_LIMIT = 20 * 10**9
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """A folder of compiled graphs of at most `limit` bytes in all. Other processes, and users, may share it."""

    folder: Path
    limit: int

    def path(self, graph: str, *parts: object) -> Path:
        """Where the graph of sha256 `graph` is, compiled for `parts`: shapes, options, version, processor."""
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self.folder / f"{graph[:32]}-{key[:32]}.blob"

    def knows(self, graph: str) -> bool:
        """Whether this graph has been compiled for anything: then it has been looked at, too."""
        return any(self.folder.glob(f"{graph[:32]}-*.blob"))

    def open(self, path: Path) -> mmap.mmap | None:
        """The blob, mapped copy-on-write, and its trailer; None where there is none, or one that is damaged."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):
            return None
        if mapped[-TRAILER_BYTES:] != trailer(max(0, len(mapped) - TRAILER_BYTES)):
            return None
        with suppress(OSError):  # deleted meanwhile, or another user's
            os.utime(path)
        return mapped

    def write(self, path: Path, content: memoryview) -> None:
        """Whole or not at all. Raises OutputError."""
        with atomic_file(path) as file:
            for start in range(0, len(content), PIECE):
                file.write(content[start : start + PIECE])
            file.write(trailer(len(content)))
        self.trim()

    def trim(self) -> None:
        """Deletes the least recently used blobs above the limit; one in use keeps its memory."""
        files = sorted(_last_uses(self.folder.glob("*.blob")), reverse=True)
        total = 0
        for _, size, file in files:
            total += size
            if total > self.limit and file != files[0][2]:
                with suppress(OSError):
                    file.unlink()

    def digest(self, files: Iterable[Path]) -> str:
        """sha256 over the sha256 of `files`. Of large ones it is remembered by path, size and time of change."""
        return hashlib.sha256("".join(self._digest(file) for file in files).encode()).hexdigest()

    def _digest(self, file: Path) -> str:
        status = file.stat()
        if status.st_size < 1 << 27:
            return _sha256(file)
        identity = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        memory = self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.sha256"
        with suppress(OSError):
            return memory.read_text()
        digest = _sha256(file)
        with suppress(OSError, OutputError), atomic_file(memory) as output:
            output.write(digest.encode())
        return digest


def open_blobs(version: str) -> tuple[Blobs | None, tuple[str, ...]]:
    """The folder in BOLID_CACHE_DIR or the user's cache; None and a notice where it cannot be written.

    BOLID_CACHE_LIMIT is its size, such as 500M or 20G. Raises InputError for what is no size.
    """
    folder = cache_folder() / "openvino" / version
    limit = parse_limit(os.environ.get("BOLID_CACHE_LIMIT"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Blobs(folder=folder, limit=limit), ()
    except (OSError, RuntimeError, OutputError) as error:
        return None, (f"compiled graphs are not cached: {error}; set BOLID_CACHE_DIR to a writable folder",)


def parse_limit(text: str | None) -> int:
    """Bytes: "500M", "20G", "1000000". Raises InputError."""
    if not text:
        return DEFAULT_LIMIT
    number, unit = (text[:-1], text[-1].upper()) if text[-1].isalpha() else (text, "")
    if not number.isdecimal() or unit not in UNITS:
        raise InputError(f"BOLID_CACHE_LIMIT={text!r} is no size; expected bytes, or such as 500M or 20G")
    return int(number) * UNITS[unit]


def trailer(length: int) -> bytes:
    """What a whole blob of `length` bytes ends with: a truncated one ends otherwise."""
    return MAGIC + length.to_bytes(8, "little")


def _last_uses(files: Iterable[Path]) -> Iterator[tuple[float, int, Path]]:
    """When each was used last, and its size; without those that another process has deleted meanwhile."""
    for file in files:
        with suppress(OSError):
            status = file.stat()
            yield status.st_mtime, status.st_size, file


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
