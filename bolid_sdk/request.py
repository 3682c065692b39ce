"""What a caller asks for, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from bolid_sdk.best_of import candidate_seeds
from bolid_sdk.conditioning import Scale, SizeConditioning, layer_scales
from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import InputError
from bolid_sdk.face_map import FACE_KEYPOINT_NAMES
from bolid_sdk.images import FloatArray, ImageSource, open_image
from bolid_sdk.loras import LoraRequest, LoraSource, check_loras
from bolid_sdk.manifest import Manifest
from bolid_sdk.orthogonal import NUM_ZERO, ORTHO, Ortho, checked_num_zero, checked_ortho
from bolid_sdk.pose import Pose, check_pose, pose_from_array
from bolid_sdk.sampling import ResolvedSampling, Sampling

MAX_SEED = 2**63 - 1
MAX_PICTURES = 1024
MAX_SIDE = 16384
"""Of a size that a model is told, in pixels: larger ones are mistakes."""


class PoseChoice(Enum):
    REFERENCE = "reference"


REFERENCE: Final = PoseChoice.REFERENCE
"""The default pose: that of the reference picture."""

PoseSource: TypeAlias = ImageSource | ArrayLike | Pose | PoseChoice | None


class Options(TypedDict, total=False):
    """Keyword arguments of a generation; all optional.

    image_prompt: a picture whose scene and style are followed.
    pose: REFERENCE (default), a picture of somebody in that pose, 12 keypoints [12, 2 or 3] in [0, 1], a Pose, or None.
        For InstantID's bundles five keypoints of the face that is to be drawn, [5, 2 or 3]: eyes, nose, mouth corners.
    seed: 0 to 2**63 - 1, or one for each picture; None draws one. Picture i of a batch gets seed + i.
    best_of: how many pictures to draw for each that is wanted, of which the one is kept that follows the pose best, as
        the bundle's pose estimator sees it; up to the generator's `max_batch`. Default 1. The result has its seed.
    identity_scale, image_scale: a number, or one for each cross-attention layer; 0 switches off. Default 1.
    pose_scale: a number; default 1.
    ortho, num_zero: for PuLID's bundles, "off", "v1" or "v2" (default), and 0 to 80 tokens of zeros (default 8).
    sampling: what should differ from the bundle's defaults.
    width, height: multiples of `sizes.size_step` in the bundle's range; the native size by default.
    original_size, crop_top_left: (height, width) and (top, left) in pixels, for bundles that are told of sizes (SDXL):
        of which size the picture should look, by default its own, and as if cropped where, by default at (0, 0).
    loras: LoRA files, or what `Generator.load_lora` has read of them, each alone (weight 1) or as (file, weight); for
        bundles that were exported with --hot-lora.
    """

    image_prompt: ImageSource | None
    pose: PoseSource
    seed: int | Sequence[int] | None
    best_of: int
    identity_scale: Scale
    image_scale: Scale
    pose_scale: float
    ortho: Ortho | None
    num_zero: int | None
    sampling: Sampling | None
    width: int | None
    height: int | None
    original_size: tuple[int, int] | None
    crop_top_left: tuple[int, int] | None
    loras: Sequence[LoraRequest] | None


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """Options with nothing left open, checked against a bundle. `seeds`: of every picture's `best_of` candidates."""

    image_prompt: ImageSource | None
    pose: PoseSource
    seeds: tuple[int, ...]
    best_of: int
    identity_scale: FloatArray
    image_scale: FloatArray
    pose_scale: float
    ortho: Ortho
    num_zero: int
    sampling: ResolvedSampling
    width: int
    height: int
    size_conditioning: SizeConditioning
    loras: tuple[tuple[LoraSource, float], ...]

    def settings(self, manifest: Manifest) -> dict[str, Any]:
        """What a picture's history says beside its sampling, as JSON types, by the names of `Options`."""
        told: dict[str, Any] = {
            "best_of": self.best_of,
            "identity_scale": _rounded(self.identity_scale),
            "image_scale": _rounded(self.image_scale),
            "pose_scale": round(self.pose_scale, 6),
        }
        if "orthogonal" in manifest.capabilities:
            told |= {"ortho": self.ortho, "num_zero": self.num_zero}
        if "size_conditioning" in manifest.capabilities:
            size = self.size_conditioning
            told |= {"original_size": list(size.original_size), "crop_top_left": list(size.crop_top_left)}
        return told


def resolve_options(options: Options, manifest: Manifest, count: int, max_batch: int) -> ResolvedOptions:
    """Raises InputError for whatever cannot be used, TypeError for an unknown name."""
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; expected some of {', '.join(Options.__annotations__)}")
    if not 1 <= count <= MAX_PICTURES:
        raise InputError(f"{count} pictures were asked for; expected 1 to {MAX_PICTURES} a call")
    sizes = manifest.sizes
    layers = sizes.cross_attention_layers
    sampling = (options.get("sampling") or Sampling()).resolve(manifest.sampling)
    require_capability(manifest, "caching", sampling.caching != "off")
    image_prompt, pose = options.get("image_prompt"), options.get("pose", REFERENCE)
    require_capability(manifest, "image_prompt", image_prompt is not None)
    require_capability(manifest, "pose", pose is not None and pose is not REFERENCE)
    best_of = _best_of(options.get("best_of", 1), pose, max_batch)
    require_capability(manifest, "pose_estimation", best_of > 1)
    ortho, num_zero = options.get("ortho"), options.get("num_zero")
    require_capability(manifest, "orthogonal", ortho is not None or num_zero is not None)
    image_scale: Scale = 0.0 if image_prompt is None else options.get("image_scale", 1.0)
    width = _side("width", options.get("width"), sizes.native_width, sizes)
    height = _side("height", options.get("height"), sizes.native_height, sizes)
    return ResolvedOptions(
        image_prompt=image_prompt,
        pose=pose,
        seeds=candidate_seeds(_seeds(options.get("seed"), count), best_of, MAX_SEED + 1),
        best_of=best_of,
        identity_scale=layer_scales(options.get("identity_scale", 1.0), layers, "identity_scale"),
        image_scale=layer_scales(image_scale, layers, "image_scale"),
        pose_scale=float(layer_scales(options.get("pose_scale", 1.0), 1, "pose_scale")[0]),
        ortho=checked_ortho(ORTHO if ortho is None else ortho),
        num_zero=checked_num_zero(_num_zero(manifest) if num_zero is None else num_zero),
        sampling=sampling,
        width=width,
        height=height,
        size_conditioning=_size_conditioning(options, manifest, (height, width)),
        loras=_loras(options, manifest),
    )


def _rounded(scales: FloatArray) -> list[float]:
    """Without the digits that float32 adds."""
    return [round(float(scale), 6) for scale in scales]


def _num_zero(manifest: Manifest) -> int:
    return NUM_ZERO if manifest.sizes.vision_states else 0


def read_face_pose(source: ImageSource | ArrayLike | Pose | None) -> Pose | None:
    """A face's five keypoints, for an IdentityNet that sees a map of them. Raises PoseError."""
    if source is None:
        return None
    if isinstance(source, Pose):
        return check_pose(source, FACE_KEYPOINT_NAMES)
    return pose_from_array(cast(ArrayLike, source), FACE_KEYPOINT_NAMES)


def read_pose(source: ImageSource | ArrayLike | Pose | None) -> Pose | Image.Image | None:
    """Tells keypoints from pictures: None, a Pose, or a picture still to be searched. Raises PoseError, ImageError."""
    if source is None:
        return None
    if isinstance(source, Pose):
        return check_pose(source)
    if isinstance(source, str | os.PathLike | Image.Image):
        return open_image(source)
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3:
        return open_image(source)
    return pose_from_array(cast(ArrayLike, source))


def require_capability(manifest: Manifest, capability: str, wanted: bool) -> None:
    """Raises InputError when something is wanted that the bundle's graphs cannot do."""
    if wanted and capability not in manifest.capabilities:
        raise InputError(
            f"the bundle {manifest.name!r} has no {capability.replace('_', ' ')}; beyond a person and a prompt it has: "
            f"{', '.join(manifest.capabilities) or 'nothing'}"
        )


def require_loras(manifest: Manifest) -> None:
    """Raises InputError when the bundle's graphs take none."""
    if "loras" not in manifest.capabilities:
        raise InputError(
            f"the bundle {manifest.name!r} takes no LoRAs at run time; export it with bolid-export --hot-lora RANK, or "
            "with the LoRA fused: --lora FILE:WEIGHT"
        )


def _loras(options: Options, manifest: Manifest) -> tuple[tuple[LoraSource, float], ...]:
    given = options.get("loras")
    loras = () if given is None else check_loras(given)
    if loras:
        require_loras(manifest)
    return loras


def _best_of(count: Any, pose: PoseSource, max_batch: int) -> int:
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or not 1 <= count <= max_batch:
        raise InputError(
            f"best_of={count!r} is unusable; expected 1 to {max_batch}, as many as this generator draws at once: its "
            "max_batch"
        )
    if count > 1 and pose is None:
        raise InputError(f"best_of={count} chooses by the pose, and pose=None asks for none; give one or leave it out")
    return int(count)


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    if seed is None:
        seed = int(np.random.default_rng().integers(0, 2**32))
    seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        seeds = [int(seed) + index for index in range(count)]
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = [int(value) for value in seed if isinstance(value, int | np.integer)]
    else:
        seeds = []
    if len(seeds) != count or not all(0 <= value <= MAX_SEED for value in seeds):
        raise InputError(f"seed={seed!r} is unusable; expected a whole number from 0 to {MAX_SEED}, or {count} of them")
    return tuple(seeds)


def _side(name: str, value: Any, native: int, sizes: Sizes) -> int:
    if value is None:
        return native
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value % sizes.size_step or not sizes.min_side <= value <= sizes.max_side:
        raise InputError(
            f"{name}={value!r} is unusable; this bundle makes multiples of {sizes.size_step} from {sizes.min_side} to "
            f"{sizes.max_side}, natively {native}"
        )
    return int(value)


def _size_conditioning(options: Options, manifest: Manifest, size: tuple[int, int]) -> SizeConditioning:
    """`size` is the picture's own (height, width)."""
    original, corner = options.get("original_size"), options.get("crop_top_left")
    require_capability(manifest, "size_conditioning", original is not None or corner is not None)
    return SizeConditioning(
        original_size=size if original is None else _pixels("original_size", original, "(height, width)", 1),
        crop_top_left=(0, 0) if corner is None else _pixels("crop_top_left", corner, "(top, left)", 0),
        target_size=size,
    )


def _pixels(name: str, value: Any, meaning: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else ()
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or not all(least <= side <= MAX_SIDE for side in pair):
        raise InputError(
            f"{name}={value!r} is unusable; expected {meaning}: two whole numbers of pixels from {least} to {MAX_SIDE}"
        )
    return int(pair[0]), int(pair[1])
