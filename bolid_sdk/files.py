"""Writing files and folders whole or not at all: temporary sibling, fsync, rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bolid_sdk.errors import OutputError


def cache_folder() -> Path:
    """Where what can be made again is kept: BOLID_CACHE_DIR, or bolid-sdk in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bolid-sdk"
    return Path(os.environ.get("BOLID_CACHE_DIR") or user).expanduser()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary sibling of `path` that takes its place when the block ends well. Raises OutputError."""
    target = Path(path)
    part = _sibling(target)
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {target}: {reason}; choose a writable folder with free space") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new empty sibling folder that takes `path`'s place when the block ends well.

    Raises OutputError when the folder exists already (unless `overwrite`) or cannot be written.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another folder or ask for it to be overwritten")
    part = _sibling(target)
    try:
        part.mkdir(parents=True)
        yield part
        _sync_tree(part)
        _take_place(part, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {target}: {reason}; choose a writable folder with free space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


def _sync_tree(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())


def _take_place(part: Path, target: Path) -> None:
    """A folder cannot replace a filled one in a single call, so the old one steps aside and comes back on failure."""
    old = _sibling(target)
    if target.exists():
        target.rename(old)
    try:
        part.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
