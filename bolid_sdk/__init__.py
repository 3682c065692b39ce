"""BoLID: pictures of one particular person, whole body, in any pose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bolid_sdk.errors import (
        BackendError,
        BolidError,
        BundleError,
        IdentityFileError,
        ImageError,
        InputError,
        Notice,
        NumericalError,
        OutputError,
        PersonNotFoundError,
        PoseError,
        PromptError,
        SeveralPeopleError,
    )
    from bolid_sdk.faces import Face
    from bolid_sdk.generator import Generator
    from bolid_sdk.identity import Identity
    from bolid_sdk.loras import Lora
    from bolid_sdk.result import Result, Step
    from bolid_sdk.sampling import Sampling

__all__ = [
    "BackendError",
    "BolidError",
    "BundleError",
    "Face",
    "Generator",
    "Identity",
    "IdentityFileError",
    "ImageError",
    "InputError",
    "Lora",
    "Notice",
    "NumericalError",
    "OutputError",
    "PersonNotFoundError",
    "PoseError",
    "PromptError",
    "Result",
    "Sampling",
    "SeveralPeopleError",
    "Step",
]

_HOMES = {
    "Face": "faces",
    "Generator": "generator",
    "Identity": "identity",
    "Lora": "loras",
    "Result": "result",
    "Step": "result",
    "Sampling": "sampling",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import bolid_sdk` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'bolid_sdk' has no attribute {name!r}")
    return getattr(import_module(f"bolid_sdk.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
