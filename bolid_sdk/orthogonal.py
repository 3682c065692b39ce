"""PuLID's attention modes, which its code has as globals, as numbers of a request.

ORTHO and ORTHO_v2 take away what of the identity's attention the text's has said already (docs/architecture.md has the
formula); NUM_ZERO tokens of zeros give attention somewhere else to go, which loosens the likeness.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.errors import InputError

Ortho: TypeAlias = Literal["off", "v1", "v2"]

ORTHOGONALITY: dict[Ortho, tuple[float, float]] = {"off": (0.0, 0.0), "v1": (1.0, 0.0), "v2": (1.0, 1.0)}
"""The denoiser's input `orthogonality` for each mode; v1 is ORTHO, v2 ORTHO_v2."""

ORTHO: Ortho = "v2"
NUM_ZERO = 8
"""Defaults: the "fidelity" of PuLID's demo. Its "extremely style" is v1 with 16, v1.1's demo has v2 with 20."""

MAX_NUM_ZERO = 80


def checked_ortho(mode: Any) -> Ortho:
    """One of the modes. Raises InputError."""
    if not isinstance(mode, str) or mode not in ORTHOGONALITY:
        raise InputError(f"ortho={mode!r} does not exist; there is {', '.join(ORTHOGONALITY)}")
    return mode


def orthogonality(mode: Ortho) -> NDArray[np.float32]:
    """The denoiser's input, float32 [2]."""
    return np.array(ORTHOGONALITY[mode], np.float32)


def checked_num_zero(value: Any) -> int:
    """A number of zero tokens. Raises InputError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 <= value <= MAX_NUM_ZERO:
        raise InputError(f"num_zero={value!r} is unusable; expected a whole number from 0 to {MAX_NUM_ZERO}")
    return int(value)
