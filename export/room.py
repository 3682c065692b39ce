"""Whether there is room for an export, in memory and on disks, before hours are spent on it.

What is on a disk is known, so too little of it ends the export at once. Memory is an estimate, within a factor of two;
an export that it refuses may still fit, so that a flag can overrule it. It refuses all the same: where memory runs out
the system kills the process, without a word and after all the work, and a warning would have scrolled by.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import disk_usage

from bolid_sdk.errors import BolidError, OutputError

ROOT = Path("/")
UNLIMITED = 1 << 60
"""A cgroup of version 1 without a limit has the largest number of pages."""

VERSION_2 = "memory.max", "memory.current", "inactive_file"
VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""Limit, use, and the part of it that is cached files, by the cgroup's version."""


class MemoryShortageError(BolidError):
    """By an estimate, there is less memory than the export needs."""


def gigabytes(count: float) -> str:
    """ "3.51 GB", "0.05 GB"."""
    return f"{count / 1e9:.2f} GB"


def temporary_folder() -> Path:
    """TMPDIR, or the system's."""
    return Path(tempfile.gettempdir())


def require_disk(wanted: Mapping[Path, int]) -> None:
    """`wanted`: bytes by folder, which need not exist yet; those on one disk add up. Raises OutputError."""
    by_disk: defaultdict[int, Counter[Path]] = defaultdict(Counter)
    for folder, count in wanted.items():
        place = existing(folder)
        by_disk[place.stat().st_dev][place] += count
    for places in by_disk.values():
        needed, free = sum(places.values()), disk_usage(next(iter(places))).free
        if needed > free:
            names = " and ".join(str(place) for place in places)
            raise OutputError(
                f"the export needs {gigabytes(needed)} of disk in {names}, {gigabytes(free)} are free; make room, or "
                "choose other disks with -o and the environment variable TMPDIR"
            )


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())


def require_memory(needed: int, root: Path = ROOT) -> None:
    """`needed`: bytes of the process at its peak, what it holds now among them. Raises MemoryShortageError."""
    available = available_memory(root)
    if available is None or needed - held_memory(root) <= available:
        return
    raise MemoryShortageError(
        f"the export needs about {gigabytes(needed)} of memory, by an estimate within a factor of two; "
        f"{gigabytes(available + held_memory(root))} can be had here; stop other programs, raise the container's "
        "limit, or go on with --ignore-memory"
    )


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take, by the system and by its cgroup; None where nobody says (no Linux)."""
    system = _field(root / "proc/meminfo", "MemAvailable:")
    rooms = [*_cgroup_rooms(root), *([] if system is None else [system * 1024])]
    return min(rooms, default=None)


def held_memory(root: Path = ROOT) -> int:
    """Bytes of this process that are no file's: mapped files count as available."""
    return (_field(root / "proc/self/status", "RssAnon:") or 0) * 1024


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Of the process's cgroup and those around it, each of which may have a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _rooms(root / "sys/fs/cgroup", path, *VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _rooms(root / "sys/fs/cgroup/memory", path, *VERSION_1)


def _rooms(mount: Path, path: str, limit: str, use: str, cached: str) -> Iterator[int]:
    own = mount / path.lstrip("/")
    # a container sees its own cgroup as the mount, and under a name that is not there
    for folder in [own, *own.parents]:
        if not folder.is_relative_to(mount):
            return
        most, used = _number(folder / limit), _number(folder / use)
        if most is not None and used is not None and most < UNLIMITED:
            yield max(0, most - used + (_field(folder / "memory.stat", cached) or 0))


def _number(file: Path) -> int | None:
    """None where there is none: "max", or no such file."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _field(file: Path, name: str) -> int | None:
    """The number after a name at the start of a line."""
    lines = (line.split() for line in _text(file).splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), None)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
