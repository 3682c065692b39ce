"""A temporary folder for what is not verified yet; a full disk is one message, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bolid_export.room import existing, temporary_folder
from bolid_sdk.errors import OutputError

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""The disk's, the user's or the process's limit, or a disk that nobody may write to."""


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """On the disk of `target`, so that it can link to the files; gone when the block ends. Raises OutputError."""
    place = scratch_place(target)
    try:
        with tempfile.TemporaryDirectory(prefix=".bolid-export-", dir=place) as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise OutputError(
            f"cannot write to {place}: {error.strerror}, so nothing was written; make room, or choose another disk "
            "with -o"
        ) from error


def scratch_place(target: Path) -> Path:
    """The nearest folder above `target`, or the system's temporary one where nothing can be written there."""
    place = existing(target.parent)
    return place if os.access(place, os.W_OK) else temporary_folder()
