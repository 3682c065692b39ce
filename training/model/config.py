"""Sizes of the avatar model. Other scales are other numbers; nothing else differs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AvatarConfig:
    """Everything that `build_checkpoint` needs. Pixels, latents and channels are counts; see docs/architecture.md.

    Set on validation people after training: `pose_threshold`, the pose estimator's mean confidence below which a
    picture shows nobody, and `guidance`, with which a bundle samples when nothing is said. A `vision_width` of None is
    the text's.
    """

    image_size: int = 128
    latent_channels: int = 8
    vae_width: int = 32
    vocabulary: int = 1024
    text_width: int = 192
    text_layers: int = 4
    vision_width: int | None = None
    vision_layers: int = 6
    vision_size: int = 64
    vision_patch: int = 8
    clip_projection: int = 192
    unet_channels: tuple[int, ...] = (64, 128, 256)
    unet_layers_per_block: int = 1
    attention_head_dim: int = 32
    pose_size: int = 96
    pose_width: int = 128
    pose_layers: int = 4
    pose_threshold: float = 0.39
    identity_tokens: int = 16
    image_tokens: int = 16
    resampler_width: int = 192
    parts: int = 5
    guidance: float = 3.0
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def patch_width(self) -> int:
        """D: width of the image encoder's tokens."""
        return self.vision_width or self.text_width
