"""One `.safetensors` file of a Stable Diffusion 1.x in the original layout, through diffusers' own conversion.

Nothing is downloaded. The file holds weights only: configuration and tokenizer are those of SD1.5, which come with
BoLID, or of a diffusers folder that is named.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

from bolid_export.sources.families import exportable_family
from bolid_export.sources.files import listed, read_shapes
from bolid_export.sources.model import Base
from bolid_sdk.errors import InputError

SD15 = Path(__file__).parent / "sd15"
"""Configuration of SD1.5 as a diffusers folder without weights, and the merges of CLIP's tokenizer."""

MERGES = SD15 / "tokenizer" / "merges.txt.gz"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")

UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


def load_single_file(path: Path, config: Path | None = None) -> Base:
    """Raises InputError for another family, for parts that the file lacks, or a `config` that is no such folder."""
    shapes = read_shapes(path)
    family = exportable_family(shapes, path)
    for part, prefix in (("UNet", UNET), ("VAE", VAE), ("text encoder", TEXT_ENCODER)):
        if not any(name.startswith(prefix) for name in shapes):
            raise InputError(
                f"{path} has no {part} (no key {prefix}*); expected a whole SD1.5 model, found {listed(shapes)}"
            )
    if config is not None and not (config / "model_index.json").is_file():
        raise InputError(f"{config} is not a diffusers folder: it has no model_index.json")
    given = {"tokenizer": clip_tokenizer()} if config is None else {}
    pipe = StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(config or SD15),
        local_files_only=True,
        torch_dtype=torch.float32,
        safety_checker=None,
        **given,
    )
    networks = {
        name: getattr(pipe, name).float().eval().requires_grad_(False) for name in ("unet", "vae", "text_encoder")
    }
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return Base(family=family, tokenizer=pipe.tokenizer, scheduler=scheduler, **networks)


def load_ldm_vae(state: Mapping[str, Tensor], own: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL:
    """A full autoencoder in the original layout (without prefix)."""
    config = full_config(own)
    vae = AutoencoderKL.from_config(config)
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(state), config))
    return vae


def full_config(own: AutoencoderKL | AutoencoderTiny) -> dict[str, Any]:
    """Configuration of the model's own autoencoder, or SD1.5's when that is a tiny one."""
    return dict(own.config) if isinstance(own, AutoencoderKL) else AutoencoderKL.load_config(SD15 / "vae")


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE from its published list of merges."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), *SPECIALS]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=merges, model_max_length=77)
