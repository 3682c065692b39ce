"""The two kinds of Stable Diffusion that the BoLID adapter is trained on, told by their configurations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bolid_sdk.contracts import ADDED_CONDITIONS

PLAIN, ATTENDING = "DownBlock2D", "CrossAttnDownBlock2D"
ADDED = {None: (), "text": (), "text_time": ADDED_CONDITIONS}
"""By `addition_embed_type`, what a UNet takes beside the text: "text" pools that itself, as the avatar's does."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """`towers`: folders of the text encoders, `tokenizers`: of theirs; `added`: what the UNet adds to its timestep;
    `plain_first`: the down block without attention is the first, not the last; `resampler_width`: of the
    IP-Adapter-Plus that is published for it; `guidance`: what its pipeline in diffusers does when nothing is said."""

    name: str
    towers: tuple[str, ...]
    tokenizers: tuple[str, ...]
    added: tuple[str, ...]
    plain_first: bool
    resampler_width: int
    guidance: float

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders that training reads."""
        return ("unet", "vae", *self.towers, *self.tokenizers, "scheduler")

    def down_blocks(self, levels: int) -> tuple[str, ...]:
        """Those that the pose guider's features fit (`pose_guider_layout`), in a UNet of so many levels."""
        return (PLAIN, ATTENDING, ATTENDING) if self.plain_first else (ATTENDING,) * (levels - 1) + (PLAIN,)


SD15 = Family(
    name="Stable Diffusion 1.5",
    towers=("text_encoder",),
    tokenizers=("tokenizer",),
    added=(),
    plain_first=False,
    resampler_width=768,
    guidance=7.5,
)
SDXL = Family(
    name="SDXL",
    towers=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    added=ADDED_CONDITIONS,
    plain_first=True,
    resampler_width=1280,
    guidance=5.0,
)


def family_of(unet: dict[str, Any]) -> Family | None:
    """By a UNet's configuration; None for one that is told other things than these two."""
    added = ADDED.get(unet.get("addition_embed_type"))
    return next((family for family in (SD15, SDXL) if family.added == added), None)


def text_sizes(unet: dict[str, Any], towers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the configurations of a UNet and of its text encoders say, by AvatarConfig's names."""
    (first, *others), context = towers, unet["cross_attention_dim"]
    sizes = {
        "vocabulary": first["vocab_size"],
        "text_width": context - sum(tower["hidden_size"] for tower in others),
        "text_layers": first["num_hidden_layers"],
        "clip_projection": towers[-1].get("projection_dim", context),
    }
    for second in others:
        sizes |= {"text_width_2": second["hidden_size"], "text_layers_2": second["num_hidden_layers"]}
        sizes["unet_transformer_layers"] = _transformer_layers(unet)
    return sizes


def _transformer_layers(unet: dict[str, Any]) -> tuple[int, ...]:
    """Of each down block, 0 for a plain one."""
    kinds, layers = unet["down_block_types"], unet["transformer_layers_per_block"]
    each = [layers] * len(kinds) if isinstance(layers, int) else layers
    return tuple(0 if kind == PLAIN else count for kind, count in zip(kinds, each, strict=True))
