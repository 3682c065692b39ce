"""What the denoiser is told beside the sample: computed once a picture, the same in every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from bolid_sdk.backends import Array
from bolid_sdk.blank import blank_patch_tokens
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import KEYPOINTS, Sizes
from bolid_sdk.errors import BundleError, InputError
from bolid_sdk.face_map import draw_face_map
from bolid_sdk.graphs import Graphs
from bolid_sdk.identity import unconditional_tokens
from bolid_sdk.images import FloatArray, crop_resize, normalise
from bolid_sdk.kept import Kept
from bolid_sdk.loras import LoraStack
from bolid_sdk.parts import centre_box
from bolid_sdk.pose import Pose, draw_skeleton
from bolid_sdk.prompt import PromptTokenizer, TokenizedPrompt
from bolid_sdk.sampling import check_finite

Scale: TypeAlias = float | ArrayLike

EncodedIds: TypeAlias = tuple[tuple[str, bytes], ...]
"""A prompt's int64 ids by the text encoder's input: `input_ids`, and `input_ids_2` if there is a second tokenizer."""

UNCONDITIONAL_PROMPT = ""
NO_LORAS = LoraStack()
"""For bundles that take none."""

KEPT_PROMPTS = 32
"""Encoded prompts that are kept: about a quarter of a megabyte each in Stable Diffusion 1.5."""

KEPT_POSES = 4
"""Poses whose features are kept: about 10 MB each at 512 x 512 in Stable Diffusion 1.5."""


@dataclass(frozen=True, kw_only=True)
class SizeConditioning:
    """What SDXL is told of a picture's size (arXiv:2307.01952, 2.2), pixels as (height, width) and (top, left).

    `original_size`: of the picture before it was cropped; `crop_top_left`: where; `target_size`: what is drawn.
    """

    original_size: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int]

    def time_ids(self) -> FloatArray:
        """float32 [6], in the order of diffusers' `_get_add_time_ids`."""
        return np.array([*self.original_size, *self.crop_top_left, *self.target_size], np.float32)


class Conditioner:
    """Runs the graphs in front of the denoiser. Safe to share between threads; B pictures, G guidance branches.

    The latest prompts and poses are kept, encoded. Each is encoded by itself, so that what was asked for before, or
    along with it, cannot change a picture by rounding.
    """

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self._bundle, self._graphs = bundle, graphs
        self._texts: Kept[dict[str, FloatArray]] = Kept(KEPT_PROMPTS)
        self._pose_features = lru_cache(KEPT_POSES)(partial(_pose_features, graphs))

    @property
    def _sizes(self) -> Sizes:
        return self._bundle.manifest.sizes

    @cached_property
    def _tokenizers(self) -> dict[str, PromptTokenizer]:
        """By the text encoder's input."""
        length = self._sizes.text_length
        return {
            name: PromptTokenizer(self._bundle.file(entry.file), length=length, pad_id=entry.pad_id)
            for name, entry in self._bundle.manifest.tokenizers.items()
        }

    def _encoded(self, prompt: str, loras: LoraStack) -> dict[str, FloatArray]:
        ids = self._token_ids(prompt)
        return self._texts.get((ids, loras.key), lambda: _encoded_text(self._graphs, ids, loras.of("text_encoder")))

    def _no_text(self, loras: LoraStack) -> dict[str, FloatArray]:
        encoded = self._encoded(UNCONDITIONAL_PROMPT, loras)
        if self._bundle.manifest.zero_unconditional:
            return {name: np.zeros_like(values) for name, values in encoded.items()}
        return encoded

    @cached_property
    def _nobody(self) -> FloatArray:
        return unconditional_tokens(self._graphs, self._bundle)

    @cached_property
    def _no_image(self) -> FloatArray:
        return self._project(blank_patch_tokens(self._graphs, self._bundle))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, TokenizedPrompt]:
        """What the (first) tokenizer says of each different prompt."""
        return {prompt: self._tokenizers["input_ids"](prompt) for prompt in dict.fromkeys(prompts)}

    def text(self, prompts: Sequence[str], branches: int, loras: LoraStack = NO_LORAS) -> dict[str, FloatArray]:
        """`encoder_hidden_states` [G*B, 77, C], and `text_embeds` [G*B, pooled_width] if there are such.

        The unconditional half comes first.
        """
        encoded = [self._encoded(prompt, loras) for prompt in prompts]
        nothing = self._no_text(loras) if branches == 2 else {}
        return {
            name: self._guided(np.stack([values[name] for values in encoded]), nothing.get(name), branches)
            for name in encoded[0]
        }

    def _token_ids(self, prompt: str) -> EncodedIds:
        return tuple((name, tokenizer(prompt).ids.tobytes()) for name, tokenizer in self._tokenizers.items())

    def size(self, told: SizeConditioning, count: int, branches: int) -> dict[str, FloatArray]:
        """`time_ids` [G*B, 6], the same for both branches; nothing if the denoiser is not told of sizes."""
        if not self._sizes.time_ids:
            return {}
        return {"time_ids": np.tile(told.time_ids(), (branches * count, 1))}

    def identity(self, tokens: Sequence[FloatArray], branches: int, num_zero: int = 0) -> FloatArray:
        """`identity_tokens` [G*B, N + num_zero, C] from B people's tokens [N, C]; N may differ between people."""
        nobody = [self._nobody] if branches == 2 else []
        zeros = np.zeros((num_zero, self._sizes.context_width), np.float32)
        *people, last = [np.concatenate([many, zeros]) for many in _equally_many([*tokens, *nobody])]
        if not nobody:
            return np.stack([*people, last])
        return self._guided(np.stack(people), last, branches)

    def encode_image(self, image: Image.Image) -> FloatArray:
        """The tokens [M, C] of an image prompt, which all pictures of a call share."""
        return self._project(self._patch_tokens(image))

    def image(self, tokens: FloatArray | None, count: int, branches: int) -> FloatArray:
        """`image_tokens` [G*B, M, C] from an image prompt's [M, C]; the unconditional half sees a zero picture.

        Without an image prompt they are zeros, for the scale silences whatever they are: the image encoder is often the
        largest graph in memory.
        """
        if tokens is None:
            return np.zeros((branches * count, self._sizes.image_tokens, self._sizes.context_width), np.float32)
        conditional = np.repeat(tokens[None], count, axis=0)
        return self._guided(conditional, self._no_image if branches == 2 else None, branches)

    def pose(
        self, poses: Sequence[Pose | None], scale: float, width: int, height: int, branches: int
    ) -> dict[str, FloatArray]:
        """`pose_features_i` [G*B, c_i, h / d_i, w / d_i], already scaled; zero without a pose. Drawn once a picture.

        The unconditional half has no pose either, so that guidance makes the pose clearer along with text and person.
        """
        features = [
            np.zeros((len(poses), channels, *self._feature_size(width, height, level)), np.float32)
            for level, channels in enumerate(self._sizes.pose_channels)
        ]
        for index, pose in enumerate(poses):
            if pose is not None and features and scale != 0:
                keypoints = np.ascontiguousarray(pose.fitted(width / height), np.float32).tobytes()
                for target, values in zip(features, self._pose_features(keypoints, width, height), strict=True):
                    _check_fit(values, target[index])
                    target[index] = values * np.float32(scale)
        guided = {
            f"pose_features_{level}": self._guided(values, np.zeros_like(values[0]), branches)
            for level, values in enumerate(features)
        }
        return guided | (self._skeletons(poses, scale, width, height, branches) if self._sizes.identity_net else {})

    def _skeletons(
        self, poses: Sequence[Pose | None], scale: float, width: int, height: int, branches: int
    ) -> dict[str, FloatArray]:
        """What an IdentityNet sees: `skeleton` [G*B, 3, H, W], black without a pose, and `pose_scale` [1].

        A published one has learned from maps of faces alone, and so sees them without text and person too.
        """
        face_map = self._sizes.face_map
        maps = np.zeros((len(poses), height, width, 3), np.uint8)
        for index, pose in enumerate(poses):
            if pose is not None:
                draw = draw_face_map if face_map else draw_skeleton
                maps[index] = draw(pose.fitted(width / height), width, height)
        skeletons = normalise(maps, (0, 0, 0), (1, 1, 1))
        black = np.zeros_like(skeletons[0])
        guided = np.tile(skeletons, (branches, 1, 1, 1)) if face_map else self._guided(skeletons, black, branches)
        return {"skeleton": guided, "pose_scale": np.array([scale], np.float32)}

    def _feature_size(self, width: int, height: int, level: int) -> tuple[int, int]:
        stride = self._sizes.vae_factor * self._sizes.pose_divisor(level)
        return height // stride, width // stride

    def _patch_tokens(self, image: Image.Image) -> FloatArray:
        manifest = self._bundle.manifest
        crop = crop_resize(image, centre_box(image.width / image.height), manifest.sizes.image_size)
        pixels = normalise(crop, manifest.image_mean, manifest.image_std)
        return np.asarray(self._graphs["image_encoder"].run({"pixels": pixels})["patch_tokens"], np.float32)

    def _project(self, patch_tokens: FloatArray) -> FloatArray:
        tokens = self._graphs["image_projector"].run({"patch_tokens": patch_tokens})["image_tokens"][0]
        check_finite(tokens, "the image projector")
        return np.asarray(tokens, np.float32)

    @staticmethod
    def _guided(conditional: FloatArray, unconditional: FloatArray | None, branches: int) -> FloatArray:
        if branches == 1 or unconditional is None:
            return conditional
        return np.concatenate([np.repeat(unconditional[None], len(conditional), axis=0), conditional])


def _equally_many(tokens: Sequence[FloatArray]) -> list[FloatArray]:
    """People of several references have more tokens than others: all are repeated up to a common multiple.

    Attention to tokens that are all repeated equally often is attention to the tokens.
    """
    count = math.lcm(*(len(person) for person in tokens))
    return [np.tile(person, (count // len(person), 1)) for person in tokens]


def _encoded_text(graphs: Graphs, ids: EncodedIds, loras: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The text encoder's outputs of one prompt, without the batch axis."""
    tokens: dict[str, Array] = {name: np.frombuffer(values, np.int64)[None] for name, values in ids}
    outputs = graphs["text_encoder"].run({**tokens, **loras})
    for values in outputs.values():
        check_finite(values, "the text encoder")
    return {name: np.asarray(values[0], np.float32) for name, values in outputs.items()}


def _pose_features(graphs: Graphs, keypoints: bytes, width: int, height: int) -> list[FloatArray]:
    """[c_i, h / 2**i, w / 2**i] of every level, for float32 keypoints [12, 3] that fit the picture."""
    points = np.frombuffer(keypoints, np.float32).reshape(KEYPOINTS, 3)
    skeleton = normalise(draw_skeleton(points, width, height)[None], (0, 0, 0), (1, 1, 1))
    outputs = graphs["pose_guider"].run({"skeleton": skeleton})
    features = [outputs[f"pose_features_{level}"] for level in range(len(outputs))]
    for values in features:
        check_finite(values, "the pose guider")
    return [np.asarray(values[0], np.float32) for values in features]


def _check_fit(features: FloatArray, place: FloatArray) -> None:
    if features.shape != place.shape:
        raise BundleError(
            f"the pose guider gave features {list(features.shape)}; vae_factor and pose_divisors of the manifest "
            f"promise {list(place.shape)}: export the bundle again"
        )


def layer_scales(value: Scale, layers: int, name: str) -> FloatArray:
    """One number for all cross-attention layers or one for each: float32 [layers]. Raises InputError."""
    try:
        scales = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r} is not numeric; expected a number or {layers} of them") from None
    if scales.ndim > 1 or (scales.ndim == 1 and len(scales) != layers):
        raise InputError(f"{name} has shape {list(scales.shape)}; expected one number or {layers}, one a layer")
    if not np.isfinite(scales).all():
        raise InputError(f"{name}={value!r} is not finite; expected a number, usually between 0 and 1.5")
    return np.array(np.broadcast_to(scales, layers))
