"""Who is in the pictures: an Identity, computed once for each person and used for many pictures."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk.blank import blank_patch_tokens
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import KEYPOINTS, Sizes
from bolid_sdk.crops import part_crops
from bolid_sdk.errors import DAMAGED_ARRAYS, IdentityFileError, InputError, Notice, PoseError
from bolid_sdk.faces import Face, face_inputs, nobodys_face
from bolid_sdk.files import atomic_file
from bolid_sdk.graphs import Graphs
from bolid_sdk.images import FloatArray, ImageSource, crop_resize, normalise, open_image
from bolid_sdk.parts import centre_box
from bolid_sdk.pose import Pose, check_pose, detect_pose
from bolid_sdk.sampling import check_finite

__all__ = ["Identity", "identify", "unconditional_tokens"]

MAX_REFERENCES = 16
MAX_FILE_BYTES = 64 * 1024 * 1024
FIELDS = ("tokens", "keypoints", "aspect", "digest")

References: TypeAlias = ImageSource | Sequence[ImageSource] | FloatArray | Face | Sequence[Face]


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """A person, as the denoiser sees one. A value: picklable, independent of the generator that made it.

    `tokens` float32 [N, C]; `keypoints` float32 [12, 3] and `aspect` (width / height) are the first reference's pose,
    or None when the bundle finds no poses; `digest` names the encoder, which has to be the same when it is used.
    """

    tokens: FloatArray
    keypoints: FloatArray | None
    aspect: float
    digest: str
    notices: tuple[Notice, ...] = ()

    @property
    def pose(self) -> Pose | None:
        return None if self.keypoints is None else Pose(keypoints=self.keypoints, aspect=self.aspect)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes an .npz whole or not at all. Raises OutputError."""
        keypoints = np.zeros((0, 3), np.float32) if self.keypoints is None else self.keypoints
        with atomic_file(path) as file:
            np.savez(file, tokens=self.tokens, keypoints=keypoints, aspect=self.aspect, digest=self.digest)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Reads what `save` wrote; never unpickles. Raises IdentityFileError."""
        try:
            _refuse_bombs(Path(path))
            with np.load(path, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in FIELDS}
        except FileNotFoundError:
            raise IdentityFileError(f"no such identity: {path}; expected a file written by Identity.save") from None
        except (KeyError, *DAMAGED_ARRAYS) as error:
            raise IdentityFileError(f"{path} is no identity ({error}); write it again with Identity.save") from error
        return _checked(values, path)

    def check(self, bundle: Bundle) -> None:
        """Raises IdentityFileError when this identity comes from another encoder than the bundle's, or is damaged."""
        sizes = bundle.manifest.sizes
        if self.digest != bundle.identity_digest:
            raise IdentityFileError(
                f"the identity was made by encoder {self.digest[:12]}, the bundle {bundle.manifest.name!r} has "
                f"{bundle.identity_digest[:12]}; identify the person again with this bundle"
            )
        count, width = self.tokens.shape
        views = 1 if sizes.parts > 1 else max(1, count // sizes.identity_tokens)
        if (count, width) != (views * sizes.identity_tokens, sizes.context_width):
            raise IdentityFileError(
                f"the identity has {count} tokens of {width}; the bundle {bundle.manifest.name!r} reads "
                f"{sizes.identity_tokens} of {sizes.context_width}: identify the person again"
            )


def identify(graphs: Graphs, bundle: Bundle, references: References) -> Identity:
    """Encodes one person from one or several pictures, or faces. Raises ImageError, PoseError, InputError."""
    if not bundle.manifest.sizes.image_size:
        return _from_faces(graphs, bundle, references)
    sources = _as_list(references)
    images = [open_image(source) for source in sources]
    poses, notices = _poses(graphs, bundle, images, [_name(source, i) for i, source in enumerate(sources)])
    sizes = bundle.manifest.sizes
    crops = [_crops(image, pose, sizes) for image, pose in zip(images, poses, strict=True)]
    pixels = normalise(np.concatenate(crops), bundle.manifest.image_mean, bundle.manifest.image_std)
    patch_tokens = graphs["image_encoder"].run({"pixels": pixels})["patch_tokens"]
    return Identity(
        tokens=_identity_tokens(graphs, patch_tokens, sizes),
        keypoints=None if poses[0] is None else poses[0].keypoints,
        aspect=images[0].width / images[0].height,
        digest=bundle.identity_digest,
        notices=notices,
    )


def _from_faces(graphs: Graphs, bundle: Bundle, references: References) -> Identity:
    """A person as the adapter's own face network describes one: float [D] or [references, D], or Faces."""
    sizes = bundle.manifest.sizes
    inputs = face_inputs(references, sizes, most=MAX_REFERENCES, bundle=bundle.manifest.name)
    tokens = _identity_tokens(graphs, inputs.pop("patch_tokens"), sizes, inputs)
    return Identity(tokens=tokens, keypoints=None, aspect=1.0, digest=bundle.identity_digest)


def unconditional_tokens(graphs: Graphs, bundle: Bundle) -> FloatArray:
    """The tokens [N, C] of nobody: of a blank picture in all parts."""
    sizes = bundle.manifest.sizes
    blank = blank_patch_tokens(graphs, bundle)
    return _identity_tokens(graphs, np.repeat(blank, sizes.parts, axis=0), sizes, nobodys_face(sizes))


def _identity_tokens(
    graphs: Graphs, patch_tokens: FloatArray, sizes: Sizes, vision: Mapping[str, FloatArray] | None = None
) -> FloatArray:
    """`patch_tokens` [parts * references, P, D], `vision` what PuLID reads beside -> [N, C]."""
    parts = np.tile(np.arange(sizes.parts, dtype=np.int64), len(patch_tokens) // sizes.parts)
    inputs: dict[str, NDArray[Any]] = {"patch_tokens": patch_tokens[None]}
    inputs |= {name: values[None] for name, values in (vision or {}).items()}
    if sizes.parts > 1:
        inputs["parts"] = parts[None]
    tokens = np.asarray(graphs["identity_encoder"].run(inputs)["identity_tokens"][0], np.float32)
    check_finite(tokens, "the identity encoder")
    return tokens


def _poses(
    graphs: Graphs, bundle: Bundle, images: list[Image.Image], names: list[str]
) -> tuple[list[Pose | None], tuple[Notice, ...]]:
    if "pose_estimator" not in graphs:
        return [None] * len(images), ()
    sizes = bundle.manifest.sizes
    found = [
        detect_pose(
            graphs["pose_estimator"],
            image,
            size=(sizes.pose_height, sizes.pose_width),
            threshold=bundle.manifest.pose_threshold,
            name=name,
        )
        for image, name in zip(images, names, strict=True)
    ]
    return [pose for pose, _ in found], tuple(notice for _, notices in found for notice in notices)


def _crops(image: Image.Image, pose: Pose | None, sizes: Sizes) -> NDArray[np.uint8]:
    """uint8 [parts, S, S, 3] of one reference. Without a pose every part is the whole picture."""
    if sizes.parts == 1:
        return crop_resize(image, centre_box(image.width / image.height), sizes.image_size)
    keypoints = np.zeros((KEYPOINTS, 3), np.float32) if pose is None else pose.keypoints
    return part_crops(image, keypoints, sizes.image_size)


def _as_list(references: References) -> list[ImageSource]:
    many = isinstance(references, Sequence) and not isinstance(references, str)
    sources = list(cast(Sequence[ImageSource], references)) if many else [cast(ImageSource, references)]
    if not 1 <= len(sources) <= MAX_REFERENCES:
        raise InputError(f"{len(sources)} reference pictures were given; expected 1 to {MAX_REFERENCES}")
    return sources


def _name(source: ImageSource, index: int) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"reference {index + 1}"


def _refuse_bombs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > MAX_FILE_BYTES:
        raise IdentityFileError(f"{path} unpacks to {total:,} bytes; an identity has at most {MAX_FILE_BYTES:,}")


def _checked(values: dict[str, NDArray[np.generic]], path: str | os.PathLike[str]) -> Identity:
    tokens, keypoints, aspect, digest = (values[name] for name in FIELDS)
    numeric = all(array.dtype.kind == "f" for array in (tokens, keypoints, aspect))
    shaped = tokens.ndim == 2 and keypoints.shape in ((0, 3), (KEYPOINTS, 3)) and aspect.ndim == digest.ndim == 0
    if not (numeric and shaped and all(np.isfinite(cast(FloatArray, a)).all() for a in (tokens, keypoints, aspect))):
        raise IdentityFileError(f"{path} does not hold the arrays of an identity; write it again with Identity.save")
    identity = Identity(
        tokens=tokens.astype(np.float32),
        keypoints=keypoints.astype(np.float32) if len(keypoints) else None,
        aspect=float(cast(NDArray[np.float64], aspect)),
        digest=str(digest),
    )
    try:
        if identity.pose is not None:
            check_pose(identity.pose)
    except PoseError as error:
        raise IdentityFileError(f"{path} is damaged: {error}; write it again with Identity.save") from error
    return identity
