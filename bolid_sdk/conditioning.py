"""What the denoiser is told beside the sample: computed once a picture, the same in every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import InputError
from bolid_sdk.graphs import Graphs
from bolid_sdk.identity import blank_patch_tokens, unconditional_tokens
from bolid_sdk.images import FloatArray, crop_resize, normalise
from bolid_sdk.parts import centre_box
from bolid_sdk.pose import Pose, draw_skeleton
from bolid_sdk.prompt import PromptTokenizer, TokenizedPrompt
from bolid_sdk.sampling import check_finite

Scale: TypeAlias = float | ArrayLike

UNCONDITIONAL_PROMPT = ""


class Conditioner:
    """Runs the graphs in front of the denoiser. Safe to share between threads; B pictures, G guidance branches."""

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self._bundle, self._graphs = bundle, graphs

    @property
    def _sizes(self) -> Sizes:
        return self._bundle.manifest.sizes

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        entry = self._bundle.manifest.tokenizer
        return PromptTokenizer(self._bundle.file(entry.file), length=self._sizes.text_length, pad_id=entry.pad_id)

    @cached_property
    def _nobody(self) -> FloatArray:
        return unconditional_tokens(self._graphs, self._bundle)

    @cached_property
    def _no_image(self) -> FloatArray:
        return self._project(blank_patch_tokens(self._graphs, self._sizes))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, TokenizedPrompt]:
        return {prompt: self._tokenizer(prompt) for prompt in dict.fromkeys(prompts)}

    def text(self, prompts: Sequence[str], tokenized: dict[str, TokenizedPrompt], branches: int) -> FloatArray:
        """`encoder_hidden_states` [G*B, 77, C]: the unconditional half first. Each different prompt is encoded once."""
        wanted = dict(tokenized)
        if branches == 2:
            wanted.setdefault(UNCONDITIONAL_PROMPT, self._tokenizer(UNCONDITIONAL_PROMPT))
        ids = np.stack([prompt.ids for prompt in wanted.values()])
        states = self._graphs["text_encoder"].run({"input_ids": ids})["encoder_hidden_states"]
        check_finite(states, "the text encoder")
        by_prompt = dict(zip(wanted, states, strict=True))
        conditional = np.stack([by_prompt[prompt] for prompt in prompts])
        return self._guided(conditional, by_prompt.get(UNCONDITIONAL_PROMPT), branches)

    def identity(self, tokens: Sequence[FloatArray], branches: int) -> FloatArray:
        """`identity_tokens` [G*B, N, C] from B people's tokens [N, C]; N may differ between people."""
        nobody = [self._nobody] if branches == 2 else []
        *people, last = _equally_many([*tokens, *nobody])
        if not nobody:
            return np.stack([*people, last])
        return self._guided(np.stack(people), last, branches)

    def image(self, image: Image.Image | None, count: int, branches: int) -> FloatArray:
        """`image_tokens` [G*B, M, C]; without an image prompt a zero picture's, silenced by the scale."""
        tokens = self._no_image if image is None else self._project(self._patch_tokens(image))
        conditional = np.repeat(tokens[None], count, axis=0)
        return self._guided(conditional, self._no_image if branches == 2 else None, branches)

    def pose(
        self, poses: Sequence[Pose | None], scale: float, width: int, height: int, branches: int
    ) -> dict[str, FloatArray]:
        """`pose_features_i` [G*B, c_i, h / 2**i, w / 2**i], already scaled; zero without a pose. Drawn once a picture.

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
        stride = self._sizes.vae_factor * 2**level
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
