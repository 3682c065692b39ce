"""What the denoiser is told beside the sample: computed once a picture, the same in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import InputError
from bolid_sdk.graphs import Graphs
from bolid_sdk.identity import unconditional_tokens
from bolid_sdk.images import FloatArray, crop_resize, normalise
from bolid_sdk.pose import Pose, draw_skeleton
from bolid_sdk.prompt import PromptTokenizer, TokenIds, TokenizedPrompt
from bolid_sdk.sampling import check_finite

Scale: TypeAlias = float | ArrayLike

UNCONDITIONAL_PROMPT = ""


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
    """Runs the graphs in front of the denoiser. Safe to share between threads; B pictures, G guidance branches."""

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self._bundle, self._graphs = bundle, graphs

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

    @cached_property
    def _nobody(self) -> FloatArray:
        return unconditional_tokens(self._graphs, self._bundle)

    @cached_property
    def _no_image(self) -> FloatArray:
        size = self._sizes.image_size
        return self._project(np.zeros((1, 3, size, size), np.float32))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, TokenizedPrompt]:
        """What the (first) tokenizer says of each different prompt."""
        return {prompt: self._tokenizers["input_ids"](prompt) for prompt in dict.fromkeys(prompts)}

    def text(self, prompts: Sequence[str], branches: int) -> dict[str, FloatArray]:
        """`encoder_hidden_states` [G*B, 77, C], and `text_embeds` [G*B, pooled_width] if there are such.

        The unconditional half comes first. Each different prompt is encoded once.
        """
        zeros = branches == 1 or self._bundle.manifest.zero_unconditional
        wanted = list(dict.fromkeys([*prompts, *([] if zeros else [UNCONDITIONAL_PROMPT])]))
        outputs = self._graphs["text_encoder"].run(self._token_ids(wanted))
        guided = {}
        for name, values in outputs.items():
            check_finite(values, "the text encoder")
            by_prompt = dict(zip(wanted, values, strict=True))
            nothing = np.zeros_like(values[0]) if zeros else by_prompt[UNCONDITIONAL_PROMPT]
            guided[name] = self._guided(np.stack([by_prompt[prompt] for prompt in prompts]), nothing, branches)
        return guided

    def _token_ids(self, prompts: Sequence[str]) -> dict[str, TokenIds]:
        """`input_ids` int64 [prompts, 77], and `input_ids_2` if the second text tower has another tokenizer."""
        return {
            name: np.stack([tokenizer(prompt).ids for prompt in prompts])
            for name, tokenizer in self._tokenizers.items()
        }

    def size(self, told: SizeConditioning, count: int, branches: int) -> dict[str, FloatArray]:
        """`time_ids` [G*B, 6], the same for both branches; nothing if the denoiser is not told of sizes."""
        if not self._sizes.time_ids:
            return {}
        return {"time_ids": np.tile(told.time_ids(), (branches * count, 1))}

    def identity(self, tokens: Sequence[FloatArray], branches: int) -> FloatArray:
        """`identity_tokens` [G*B, N, C] from B people's tokens [N, C]."""
        return self._guided(np.stack(tokens), self._nobody if branches == 2 else None, branches)

    def image(self, image: Image.Image | None, count: int, branches: int) -> FloatArray:
        """`image_tokens` [G*B, M, C]; without an image prompt a zero picture's, silenced by the scale."""
        tokens = self._no_image if image is None else self._project(self._image_pixels(image))
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
        drawn = [(index, pose) for index, pose in enumerate(poses) if pose is not None]
        if drawn and features and scale != 0:
            self._guide(drawn, features, scale, width, height)
        return {
            f"pose_features_{level}": self._guided(values, np.zeros_like(values[0]), branches)
            for level, values in enumerate(features)
        }

    def _guide(
        self, drawn: list[tuple[int, Pose]], features: list[FloatArray], scale: float, width: int, height: int
    ) -> None:
        maps = np.stack([draw_skeleton(pose.fitted(width / height), width, height) for _, pose in drawn])
        outputs = self._graphs["pose_guider"].run({"skeleton": normalise(maps, (0, 0, 0), (1, 1, 1))})
        indices = [index for index, _ in drawn]
        for level, target in enumerate(features):
            values = outputs[f"pose_features_{level}"]
            check_finite(values, "the pose guider")
            target[indices] = values * np.float32(scale)

    def _feature_size(self, width: int, height: int, level: int) -> tuple[int, int]:
        stride = self._sizes.vae_factor * self._sizes.pose_divisor(level)
        return height // stride, width // stride

    def _image_pixels(self, image: Image.Image) -> FloatArray:
        manifest = self._bundle.manifest
        crop = crop_resize(image, _centre_box(image.width / image.height), manifest.sizes.image_size)
        return normalise(crop, manifest.image_mean, manifest.image_std)

    def _project(self, pixels: FloatArray) -> FloatArray:
        patch_tokens = self._graphs["image_encoder"].run({"pixels": pixels})["patch_tokens"]
        tokens = self._graphs["image_projector"].run({"patch_tokens": patch_tokens})["image_tokens"][0]
        check_finite(tokens, "the image projector")
        return np.asarray(tokens, np.float32)

    @staticmethod
    def _guided(conditional: FloatArray, unconditional: FloatArray | None, branches: int) -> FloatArray:
        if branches == 1 or unconditional is None:
            return conditional
        return np.concatenate([np.repeat(unconditional[None], len(conditional), axis=0), conditional])


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


def _centre_box(aspect: float) -> NDArray[np.float64]:
    """The largest centred square, as IP-Adapter's CLIP preprocessing cuts it: [1, 4]."""
    width, height = min(1.0, 1.0 / aspect), min(1.0, aspect)
    return np.array([[(1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2]])
