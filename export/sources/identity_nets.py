"""InstantID's IdentityNet as it is published: a diffusers ControlNet folder, told by its weights' names."""

from __future__ import annotations

from pathlib import Path

from diffusers import ControlNetModel, UNet2DConditionModel

from bolid_export.sources.diffusers_folder import from_pretrained, network_shapes
from bolid_export.sources.files import require_keys
from bolid_sdk.errors import InputError
from bolid_training.model.attention import PlainAttnProcessor

MARK = "controlnet_cond_embedding.conv_in.weight"

# Where it lies beside its adapter: as BoLID's training writes it, and as InstantID is published.
PLACES = ("identity_net", "ControlNetModel")

# What has to be as the UNet's for its residuals to fit and for it to be told what the UNet is told.
FITTING = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


def is_controlnet(folder: Path) -> bool:
    """Whether a network folder's weights are those of a ControlNet."""
    return MARK in network_shapes(folder)


def identity_net_beside(file: Path) -> Path | None:
    """The IdentityNet that lies beside an adapter's file, if there is one."""
    return next((file.parent / name for name in PLACES if (file.parent / name / "config.json").is_file()), None)


def load_identity_net(folder: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet with all of its weights that fits the UNet. Raises InputError."""
    try:
        net = from_pretrained(ControlNetModel, folder)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder} is no ControlNet: {' '.join(str(error).split())[:300]}") from error
    # diffusers leaves weights that it does not find as they are drawn, and only warns
    require_keys(folder, "a ControlNet", network_shapes(folder), net.state_dict())
    found, expected = ({name: _plain(network.config.get(name)) for name in FITTING} for network in (net, unet))
    if wrong := [name for name in FITTING if found[name] != expected[name]]:
        differences = ", ".join(f"{name} {found[name]} (the UNet's: {expected[name]})" for name in wrong)
        raise InputError(f"{folder} does not fit this model: it has {differences}; take one made for this family")
    net.set_attn_processor(PlainAttnProcessor())
    return net


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
