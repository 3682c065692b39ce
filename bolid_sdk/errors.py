"""One family of exceptions; each message says what was received, what was expected and what to do."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

LISTED = 6
"""More names than this in a message help nobody; the count is always said."""

DAMAGED_ARRAYS = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error),
    TypeError,  # an array where an archive of them is expected
    MemoryError,  # a header may promise any number of values
    RuntimeError,  # an archive may be locked by a password
)
"""What NumPy raises for a file that holds no array, or no archive of arrays."""


def listed(names: Iterable[str]) -> str:
    """The first few names, sorted, and an ellipsis if there are more."""
    first = sorted(names)
    return ", ".join(first[:LISTED]) + (", …" if len(first) > LISTED else "")


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something worth knowing that is no error. `code` is for programs, `message` for people."""

    code: str
    message: str


class BolidError(Exception):
    """Base of everything BoLID raises on purpose. The command lines turn it into one line and an exit code."""

    exit_code = 2


class InputError(BolidError, ValueError):
    """A value the caller gave cannot be used: an option, a scale, a size, a seed."""


class ImageError(InputError):
    """A picture is missing, is no picture, is truncated or too large."""


class PromptError(InputError):
    """A prompt is empty or not text."""


class PoseError(InputError):
    """Keypoints are malformed, or a picture's pose cannot be used."""


class PersonNotFoundError(PoseError):
    """The pose estimator is not confident that anybody is in the picture."""


class SeveralPeopleError(PoseError):
    """The picture shows more than one person and nothing says which one is meant."""


class IdentityFileError(InputError):
    """A saved identity is damaged, or belongs to another encoder."""


class BundleError(BolidError):
    """A bundle is missing, truncated, tampered with, or of another schema."""


class BackendError(BolidError):
    """A backend or device is unknown, not installed, or does not work here."""


class OutputError(BolidError):
    """A result cannot be written where it was asked for."""


class NumericalError(BolidError):
    """A graph produced NaN or infinity: our failure, not the caller's."""

    exit_code = 1
