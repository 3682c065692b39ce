"""A temporary folder for what is not verified yet; a full disk is one message, and leaves nothing behind."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bolid_sdk.errors import OutputError

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""The disk's, the user's or the process's limit, or a disk that nobody may write to."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """In TMPDIR, or the system's temporary folder; gone when the block ends. Raises OutputError."""
    try:
        with tempfile.TemporaryDirectory(prefix="bolid-export-") as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise OutputError(
            f"cannot write to {tempfile.gettempdir()}: {error.strerror}, so nothing was written; make room, or choose "
            "another disk with the environment variable TMPDIR"
        ) from error
