"""The networks of a model that is exported, whatever files they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, SchedulerMixin, T2IAdapter, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from bolid_training.model.pose_estimator import PoseEstimator

Features = Literal["patches", "pooled", "embedding", "face"]
"""CLIP's patch tokens; its projected embedding as the only token; a face network's embedding, without CLIP; or that and
what EVA-CLIP sees of the face (PuLID)."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a bundle does when nothing is said: sampling steps, classifier-free guidance, and the mean confidence of a
    person's pose."""

    steps: int = 25
    guidance: float = 7.5
    pose_threshold: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Base:
    """A diffusion model that makes pictures from text, in float32 and eval mode.

    SDXL has a second text tower and its tokenizer. `zero_unconditional`: no text is zeros, not the empty prompt.
    """

    family: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    zero_unconditional: bool = False
    config: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What makes a person of it. `layers` are the UNet's own attention processors, in IP-Adapter's order.

    `identity_encoder`: patch tokens [B, V, P, D] (and int64 parts [B, V], if `parts` > 1; and EVA-CLIP's features, if
    there are `vision_states`) -> identity tokens;
    `image_projector`: patch tokens [B, P, D] -> image tokens. `reads`: what these tokens are, D = `width` wide.
    """

    layers: nn.ModuleList
    identity_encoder: nn.Module
    identity_tokens: int
    parts: int
    reads: Features
    width: int
    image_projector: nn.Module | None
    image_tokens: int
    pose_guider: T2IAdapter | None
    identity_net: ControlNetModel | None = None
    """InstantID's, which sees the skeleton and the identity tokens in every step."""
    face_map: bool = False
    """The IdentityNet's skeleton is InstantID's map of a face."""
    vision_width: int = 0
    vision_states: tuple[int, ...] = ()
    """What PuLID's identity encoder reads beside the face's embedding: `bolid_sdk.contracts.Sizes`."""


@dataclass(frozen=True, kw_only=True)
class Model(Base):
    """A base with everything that is exported with it; None: the bundle lacks what needs it."""

    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor
    pose_estimator: PoseEstimator | None
    adapter: Adapters
    lora_rank: int = 0
    """Of the LoRAs that a request may bring, all together; 0: none."""
