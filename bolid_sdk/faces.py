"""Somebody's face as other networks describe it, for bundles that know people by that (FaceID, InstantID, PuLID)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import InputError

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One reference of a person.

    `embedding` float [D]: of the face network that the adapter was trained with: normalised for FaceID, as antelopev2
    gives it for InstantID and PuLID (D = 512). For PuLID also what EVA02-CLIP-L-14-336 makes of the aligned face, in
    grey, on white: `vision_embedding` float [768], normalised here, and `vision_states` float [5, 577, 1024], the
    hidden states that its code returns with `return_hidden=True`.
    """

    embedding: ArrayLike
    vision_embedding: ArrayLike | None = None
    vision_states: ArrayLike | None = None


def face_inputs(references: Any, sizes: Sizes, *, most: int, bundle: str) -> dict[str, FloatArray]:
    """The identity encoder's inputs, without the batch axis, of one to `most` faces.

    `references`: float [D] or [references, D], a Face or several. Raises InputError.
    """
    faces = _faces(references)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (sizes.patch_width,)}
    if sizes.vision_states:
        shapes |= {"vision_embedding": (sizes.vision_width,), "vision_states": sizes.vision_states}
    columns = {name: [_floats(getattr(face, name), shape) for face in faces] for name, shape in shapes.items()}
    if not 1 <= len(faces) <= most or any(values is None for column in columns.values() for values in column):
        raise InputError(
            f"the bundle {bundle!r} knows people by face embeddings and {_described(references)} was given; expected "
            f"{_expected(sizes)} from the face network that its adapter was trained with, 1 to {most} references"
        )
    stacked = {name: np.stack([v for v in column if v is not None]) for name, column in columns.items()}
    inputs = {"patch_tokens": stacked.pop("embedding")[:, None], **stacked}
    if sizes.vision_states:
        norms = np.linalg.norm(inputs["vision_embedding"], axis=-1, keepdims=True)
        inputs["vision_embedding"] = inputs["vision_embedding"] / np.maximum(norms, np.float32(1e-12))
    return inputs


def nobodys_face(sizes: Sizes) -> dict[str, FloatArray]:
    """What EVA-CLIP sees of nobody, for a bundle that reads it: zeros, as the rest of nobody's face."""
    if not sizes.vision_states:
        return {}
    return {
        "vision_embedding": np.zeros((1, sizes.vision_width), np.float32),
        "vision_states": np.zeros((1, *sizes.vision_states), np.float32),
    }


def _faces(references: Any) -> list[Face]:
    if isinstance(references, Face):
        return [references]
    if isinstance(references, np.ndarray) and references.dtype.kind == "f" and references.ndim in (1, 2):
        return [Face(embedding=embedding) for embedding in np.atleast_2d(references)]
    if isinstance(references, Sequence) and all(isinstance(face, Face) for face in references):
        return list(references)
    return []


def _floats(values: ArrayLike | None, shape: tuple[int, ...]) -> FloatArray | None:
    """float32 of that shape, all finite; None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return None
    fits = array.dtype.kind == "f" and array.shape == shape and bool(np.isfinite(array).all())
    return array.astype(np.float32) if fits else None


def _described(references: Any) -> str:
    if isinstance(references, np.ndarray):
        return f"an array of {references.dtype} {list(references.shape)}"
    if isinstance(references, Face):
        return f"a Face of {', '.join(f'{name} {_shape(values)}' for name, values in vars(references).items())}"
    return type(references).__name__


def _shape(values: ArrayLike | None) -> str:
    return f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__


def _expected(sizes: Sizes) -> str:
    if not sizes.vision_states:
        return f"float [{sizes.patch_width}] or [references, {sizes.patch_width}]"
    return (
        f"Face(embedding=float [{sizes.patch_width}], vision_embedding=float [{sizes.vision_width}], "
        f"vision_states=float {list(sizes.vision_states)}), finite, or several,"
    )
