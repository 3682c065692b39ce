"""What takes long, kept in a folder for the next comparison: one of hours goes on where it was stopped."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.files import atomic_file


def kept(
    folder: Path | None, asked: Mapping[str, Any], arrays: Iterable[NDArray], make: Callable[[], NDArray]
) -> NDArray:
    """`make()`, or what it gave when the same was `asked` of the same `arrays`, from `folder` where one is given.

    Both together are all that the answer may depend on, but for the code: after a change of that, empty the folder.
    Raises OutputError.
    """
    if folder is None:
        return make()
    file = folder / f"{digest(asked, arrays)}.npy"
    if file.exists():
        return np.load(file)
    found = make()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as whole:
        np.save(whole, found)
    return found


def digest(asked: Mapping[str, Any], arrays: Iterable[NDArray]) -> str:
    """32 hexadecimal digits; `asked` in JSON's types."""
    told = hashlib.sha256(json.dumps(asked).encode())
    for array in arrays:
        told.update(np.ascontiguousarray(array).data)
    return told.hexdigest()[:32]
