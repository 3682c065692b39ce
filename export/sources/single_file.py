"""One `.safetensors` file of a Stable Diffusion 1.x or XL in the original layout.

Nothing is downloaded. The file holds weights only: configuration and tokenizers are those of SD1.5 and of SDXL's base,
which come with BoLID, or of a diffusers folder that is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from bolid_export.sources.clip_merges import clip_tokenizer
from bolid_export.sources.diffusers_folder import zero_unconditional
from bolid_export.sources.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, exportable_family
from bolid_export.sources.files import listed, read_shapes
from bolid_export.sources.model import Base
from bolid_export.sources.original_layout import PARTS, V_PREDICTION, ZERO_SNR, read_networks
from bolid_sdk.errors import InputError
from bolid_training.model.schedulers import load_scheduler

SD15, SDXL = (Path(__file__).parent / name for name in ("sd15", "sdxl"))
"""Configurations as diffusers folders without weights and vocabularies."""

CONFIGS = {STABLE_DIFFUSION: SD15, STABLE_DIFFUSION_XL: SDXL}

PADDING = {
    STABLE_DIFFUSION: {"tokenizer": "<|endoftext|>"},
    STABLE_DIFFUSION_XL: {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
}
"""What each tokenizer of a family fills short texts with."""

MODEL_SPEC = "modelspec.prediction_type"
"""In a file's header, by Stability's specification of metadata."""


def load_single_file(path: Path, config: Path | None = None) -> Base:
    """Raises InputError for another family, for keys that the file lacks or that have no place, or a `config` that is
    no such folder."""
    shapes = read_shapes(path)
    family = exportable_family(shapes, path)
    for name, part in PARTS[family].items():
        if not any(key.startswith(part.prefix) for key in shapes):
            raise InputError(
                f"{path} has no {name} (no key {part.prefix}*); expected a whole {family} model, found {listed(shapes)}"
            )
    folder = CONFIGS[family] if config is None else _checked(config, family)
    tokenizers = {
        name: clip_tokenizer(pad) if config is None else CLIPTokenizer.from_pretrained(config / name)
        for name, pad in PADDING[family].items()
    }
    return Base(
        family=family,
        **read_networks(path, family, folder),
        **tokenizers,
        scheduler=_scheduler(path, folder),
        zero_unconditional=family == STABLE_DIFFUSION_XL and zero_unconditional(folder),
    )


def told_prediction(path: Path) -> str | None:
    """What in a file says that it predicts v, if anything does."""
    if V_PREDICTION in read_shapes(path):
        return f"key {V_PREDICTION}"
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    # the other way round it says nothing: trainers write "epsilon" where they were told nothing
    return f"header's {MODEL_SPEC}" if header.get(MODEL_SPEC) == "v" else None


def _checked(config: Path, family: str) -> Path:
    if not (config / "model_index.json").is_file():
        raise InputError(f"{config} is not a diffusers folder: it has no model_index.json")
    parts = ("scheduler", *PARTS[family], *PADDING[family])
    if missing := [part for part in parts if not (config / part).is_dir()]:
        raise InputError(f"{config} is not the configuration of a {family} model: it lacks {', '.join(missing)}")
    return config


def _scheduler(path: Path, config: Path) -> SchedulerMixin:
    """The configuration's, changed by what the file says of its training."""
    scheduler = load_scheduler(config / "scheduler")
    if told_prediction(path) is None:
        return scheduler
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    if ZERO_SNR in read_shapes(path):
        # of such a schedule the last timestep, which is pure noise, has to be the first step (arXiv:2305.08891)
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **changes)


def load_ldm_vae(state: Mapping[str, Tensor], own: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL:
    """A full autoencoder in the original layout (without prefix)."""
    config = full_config(own)
    vae = AutoencoderKL.from_config(config)
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(state), config))
    return vae


def full_config(own: AutoencoderKL | AutoencoderTiny) -> dict[str, Any]:
    """Configuration of the model's own autoencoder, or SD1.5's when that is a tiny one."""
    return dict(own.config) if isinstance(own, AutoencoderKL) else AutoencoderKL.load_config(SD15 / "vae")
