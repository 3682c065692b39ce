"""Sizes of the judges: each is less than 6 MB in float16."""

from dataclasses import dataclass, field

from bolid_training.model.config import AvatarConfig

SEED = 1000  # of the judges' random weights; the networks that they judge begin with 0


def clip_sizes() -> AvatarConfig:
    """Narrower and deeper than the CLIP that conditions, on larger pictures in larger patches, with fewer words."""
    return AvatarConfig(
        vocabulary=768, text_width=128, text_layers=3, vision_layers=6, vision_size=96, vision_patch=12,
        clip_projection=128,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Sizes are pixels of a square input's side; `widths` and `depths` are a ResNet's stages."""

    identity_size: int = 96
    identity_widths: tuple[int, ...] = (48, 96, 160, 224)
    identity_depths: tuple[int, ...] = (2, 2, 2, 2)
    identity_embedding: int = 128
    pose_size: int = 128
    pose_widths: tuple[int, ...] = (48, 80, 128, 192)
    pose_depths: tuple[int, ...] = (1, 2, 2, 2)
    pose_head: int = 64
    clip: AvatarConfig = field(default_factory=clip_sizes)
