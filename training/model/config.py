"""Sizes of the avatar model. Other scales are other numbers; nothing else differs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AvatarConfig:
    """Everything that `build_checkpoint` needs. Pixels, latents and channels are counts; see docs/architecture.md.

    Set on validation people after training: `pose_threshold`, the pose estimator's mean confidence below which a
    picture shows nobody, and `steps` and `guidance`, with which a bundle samples when nothing is said.

    `parts` 1: the person is read from the whole picture, not from crops. `pose_guider`: whether skeletons guide the
    UNet through the T2I-Adapter; `identity_net`: whether they do so through InstantID's IdentityNet.
    `zero_tokens`: so many tokens of zeros come after the identity tokens that are read from crops.
    A `vision_width` of None is the text's.

    `text_width_2` > 0 makes it an SDXL: a second text tower, whose states are put beside the first one's and whose
    projection is the pooled text. `unet_transformer_layers`: of each down block's attention, 0 for a block without; the
    avatar's are SD1.5's in small, SDXL's are (0, 2, 10).
    """

    image_size: int = 128
    latent_channels: int = 8
    vae_width: int = 32
    vocabulary: int = 1024
    text_width: int = 192
    text_layers: int = 4
    text_width_2: int = 0
    text_layers_2: int = 0
    vision_width: int | None = None
    vision_layers: int = 6
    vision_size: int = 64
    vision_patch: int = 8
    clip_projection: int = 192
    unet_channels: tuple[int, ...] = (64, 128, 256)
    unet_layers_per_block: int = 1
    unet_transformer_layers: tuple[int, ...] = (1, 1, 0)
    attention_head_dim: int = 32
    pose_size: int = 96
    pose_width: int = 128
    pose_layers: int = 4
    pose_threshold: float = 0.42
    identity_tokens: int = 16
    zero_tokens: int = 0
    image_tokens: int = 16
    resampler_width: int = 192
    parts: int = 5
    pose_guider: bool = True
    identity_net: bool = False
    steps: int = 12
    guidance: float = 3.0
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def context_width(self) -> int:
        """Width of the text that cross-attention reads."""
        return self.text_width + self.text_width_2

    @property
    def pooled_width(self) -> int:
        """Width of the second text tower's projection; 0 if there is no such tower."""
        return self.clip_projection if self.text_width_2 else 0

    @property
    def patch_width(self) -> int:
        """D: width of the image encoder's tokens."""
        return self.vision_width or self.text_width
