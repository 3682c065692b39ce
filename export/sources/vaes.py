"""Another autoencoder in place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from bolid_export.sources.diffusers_folder import load_autoencoder
from bolid_export.sources.files import listed, read_tensors
from bolid_export.sources.single_file import full_config, load_ldm_vae
from bolid_sdk.errors import InputError

LDM_PREFIX = "first_stage_model."


def load_vae(path: Path, own: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL | AutoencoderTiny:
    """A diffusers folder, or one file: TAESD's or the full autoencoder's, in diffusers' or the original layout.

    A file without a `config.json` beside it is as wide as its tensors say and otherwise as its class's default. Raises
    InputError.
    """
    if not path.exists():
        raise InputError(f"no such VAE: {path}; expected a diffusers folder or a .safetensors file")
    vae = load_autoencoder(path) if path.is_dir() else _from_file(path, own)
    channels, expected = vae.config.latent_channels, own.config.latent_channels
    if channels != expected:
        raise InputError(
            f"{path} has latents of {channels} channels, this model's have {expected}; take a VAE made for it"
        )
    return vae.float().eval().requires_grad_(False)


def _from_file(path: Path, own: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL | AutoencoderTiny:
    if (path.parent / "config.json").is_file() and path.stem.startswith("diffusion_pytorch_model"):
        return load_autoencoder(path.parent)
    state = {name.removeprefix(LDM_PREFIX): tensor for name, tensor in read_tensors(path).items()}
    try:
        if "decoder.layers.0.weight" in state:
            return _tiny(state)
        if "encoder.down_blocks.0.resnets.0.conv1.weight" in state:
            return _full(state, own)
        if "encoder.down.0.block.0.conv1.weight" in state:
            return load_ldm_vae(state, own)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not fit its kind of VAE: {' '.join(str(error).split())[:300]}") from error
    raise InputError(
        f"{path} is not a VAE: expected TAESD's (encoder and decoder in one file) or AutoencoderKL's keys, found "
        f"{listed(state)}"
    )


def _tiny(state: Mapping[str, Tensor]) -> AutoencoderTiny:
    """TAESD: its width and latent channels are those of the decoder's first convolution."""
    width, channels = state["decoder.layers.0.weight"].shape[:2]
    widths = (width,) * 4
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=channels
    )
    vae.load_state_dict(state)
    return vae


def _full(state: Mapping[str, Tensor], own: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL:
    vae = AutoencoderKL.from_config(full_config(own))
    vae.load_state_dict(state)
    return vae
