"""A diffusers folder of any Stable Diffusion: what it must have, and its networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from bolid_export.sources.families import STABLE_DIFFUSION_XL, exportable_family
from bolid_export.sources.files import PICKLES, read_shapes
from bolid_export.sources.model import Base, Defaults
from bolid_export.sources.stored import memory_dtype, read_whole
from bolid_sdk.errors import InputError
from bolid_training.model.checkpoint import ZERO_UNCONDITIONAL
from bolid_training.model.lightning import LIGHTNING, LORA_FILE, fuse_lora
from bolid_training.model.schedulers import load_scheduler

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = ("unet", "vae", "text_encoder")
SECOND_TOWER = ("text_encoder_2", "tokenizer_2")
BOLID_CONFIG = "avatar.json"

# What is read of a folder: published ones also hold safety checkers and the weights in other formats.
PARTS_READ = (
    LIGHTNING,
    *PARTS,
    *SECOND_TOWER,
    "image_encoder",
    "feature_extractor",
    "pose_estimator",
    "adapter",
    BOLID_CONFIG,
    "model_index.json",
)

AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def check_folder(folder: Path) -> None:
    """Raises InputError unless `folder` looks like a checkpoint with weights in safetensors."""
    expected = "expected a diffusers folder with model_index.json, or one .safetensors file"
    if not folder.exists():
        raise InputError(f"no such checkpoint: {folder}; {expected}")
    if (folder / "manifest.json").is_file():
        raise InputError(f"{folder} is a bundle, which is an export's result; {expected}")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no model_index.json; {expected}")
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise InputError(f"the checkpoint {folder} lacks {', '.join(missing)}; expected {', '.join(PARTS)}")
    for part in NETWORKS:
        require_safetensors(folder / part)


def require_safetensors(folder: Path) -> None:
    """Raises InputError for a network whose weights are pickles only, or missing."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise InputError(f"{pickles[0]} is a pickle, which can run code when it is read; convert it to safetensors")
    raise InputError(f"{folder} has no weights; expected a .safetensors file")


def load_folder(folder: Path) -> Base:
    """The folder's own base in float32, with the few-step LoRA of a BoLID checkpoint fused.

    Raises InputError for another family; whatever its libraries raise.
    """
    family = exportable_family(network_shapes(folder / "unet"), folder)
    unet = from_pretrained(UNet2DConditionModel, folder / "unet")
    if (lora := folder / LIGHTNING / LORA_FILE).is_file():
        fuse_lora(unet, lora)
    return Base(
        family=family,
        unet=unet,
        vae=load_autoencoder(folder / "vae"),
        text_encoder=from_pretrained(CLIPTextModel, folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=load_scheduler(folder / "scheduler"),
        **(_second_tower(folder) if family == STABLE_DIFFUSION_XL else {}),
        config=_defaults(folder),
    )


def _second_tower(folder: Path) -> dict[str, Any]:
    """SDXL's, and what its unconditional text is. Raises InputError for a folder without one, as the refiner's."""
    if missing := [part for part in SECOND_TOWER if not (folder / part).is_dir()]:
        raise InputError(f"the SDXL checkpoint {folder} lacks {', '.join(missing)}")
    return {
        "text_encoder_2": from_pretrained(CLIPTextModelWithProjection, folder / "text_encoder_2"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "zero_unconditional": zero_unconditional(folder),
    }


def zero_unconditional(folder: Path) -> bool:
    """Whether no text is zeros: what StableDiffusionXLPipeline does when its index does not say."""
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get(ZERO_UNCONDITIONAL, True)


def from_pretrained(network: Any, folder: Path) -> Any:
    """A network in eval mode, from safetensors of whatever variant the folder has.

    In float32, or in float16 where that is what a large network has on disk (`bolid_export.residency`).
    """
    require_safetensors(folder)
    # transformers renamed diffusers' `torch_dtype`
    dtype = {"torch_dtype" if network.__module__.startswith("diffusers") else "dtype": memory_dtype(folder)}
    model = network.from_pretrained(
        folder, variant=_variant(folder), use_safetensors=True, local_files_only=True, **dtype
    )
    read_whole(model)
    return model.eval().requires_grad_(False)


def load_autoencoder(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    """The class that the folder's configuration names. Raises InputError for one that is not exported."""
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} is not a VAE: it has no config.json")
    name = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if name not in AUTOENCODERS:
        raise InputError(f"{folder} is a VAE of class {name}; expected {' or '.join(AUTOENCODERS)}")
    return from_pretrained(AUTOENCODERS[name], folder)


def load_image_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """A CLIP vision folder: config.json and its weights. Raises InputError."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not an image encoder: expected a folder of CLIP's vision model with config.json")
    return from_pretrained(CLIPVisionModelWithProjection, folder)


def load_feature_extractor(folder: Path) -> CLIPImageProcessor:
    """Mean and standard deviation from the folder, or CLIP's."""
    known = (folder / "preprocessor_config.json").is_file()
    return CLIPImageProcessor.from_pretrained(folder) if known else CLIPImageProcessor()


def network_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a network's folder has in safetensors, of all its shards."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= read_shapes(file)
    return shapes


def _variant(folder: Path) -> str | None:
    """ "fp16" of `diffusion_pytorch_model.fp16.safetensors`, if there is no file without one."""
    names = [file.name.removesuffix(".safetensors").split("-00001-of")[0] for file in folder.glob("*.safetensors")]
    variants = {name.partition(".")[2] for name in names}
    return None if "" in variants else min(variants)


def _defaults(folder: Path) -> Defaults:
    file = folder / BOLID_CONFIG
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Defaults(**{name: values[name] for name in ("steps", "guidance", "pose_threshold") if name in values})
