"""Any Stable Diffusion 1.5-shaped diffusers folder as the frozen base that the BoLID adapter is trained on.

Parts are read one at a time, when they are needed: what has been encoded once need not stay in memory.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from bolid_sdk.errors import InputError
from bolid_training.model.config import AvatarConfig

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PREDICTIONS = ("epsilon", "v_prediction")
GUIDER_STRIDE = 8  # pixels of a T2I-Adapter's first feature map's cell
HEAD_DIM = 64
IP_ADAPTER_PLUS_WIDTH = 768
T = TypeVar("T", bound=torch.nn.Module)
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A folder and what its configurations say. `adapter`: BoLID's own parts if the folder has them."""

    folder: Path
    image_encoder_folder: Path
    config: AvatarConfig
    scheduler: DDIMScheduler
    adapter: Path | None

    @property
    def size(self) -> int:
        """Side of the pictures it draws, in pixels."""
        return self.config.image_size

    def unet_config(self) -> dict:
        return UNet2DConditionModel.load_config(self.folder / "unet", local_files_only=True)

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        return _frozen(UNet2DConditionModel.from_pretrained(self.folder / "unet", torch_dtype=dtype))

    def random_unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """One of the same shape whose weights are not read."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return _frozen(UNet2DConditionModel.from_config(self.unet_config()))
        finally:
            torch.set_default_dtype(default)

    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        kind = AutoencoderTiny if _is_tiny(self.folder) else AutoencoderKL
        return _frozen(kind.from_pretrained(self.folder / "vae", torch_dtype=torch.float32))

    def text_encoder(self) -> CLIPTextModel:
        return _frozen(CLIPTextModel.from_pretrained(self.folder / "text_encoder", dtype=torch.float32))

    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    def image_encoder(self) -> CLIPVisionModelWithProjection:
        folder = self.image_encoder_folder
        return _frozen(CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32))

    def feature_extractor(self) -> CLIPImageProcessor:
        """What the image encoder expects; CLIP's mean and deviation unless files beside it say otherwise."""
        encoder = self.image_encoder_folder
        for folder in (encoder, encoder.parent / "feature_extractor"):
            if (folder / "preprocessor_config.json").is_file():
                return CLIPImageProcessor.from_pretrained(folder)
        size = self.config.vision_size
        return CLIPImageProcessor(size={"height": size, "width": size}, do_center_crop=False)


def open_base(folder: Path, image_encoder: Path | None = None) -> Base:
    """Reads and checks configurations, not yet weights. Raises InputError that says what does not fit."""
    _check_folder(folder)
    encoder = image_encoder or folder / "image_encoder"
    if not (encoder / "config.json").is_file():
        raise InputError(
            f"{encoder} holds no image encoder, by which a person is seen; name a folder of CLIP's vision model "
            "(config.json and weights in safetensors) with --image-encoder DIR"
        )
    try:
        unet, vision = _json(folder / "unet" / "config.json"), _json(encoder / "config.json")
        _check_unet(folder, unet)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False, thresholding=False)
        config = _config(folder, unet, vision.get("vision_config", vision))
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the configuration of {folder}: {' '.join(str(error).split())[:300]}") from error
    if scheduler.config.prediction_type not in PREDICTIONS:
        raise InputError(
            f"{folder} predicts {scheduler.config.prediction_type!r}; BoLID trains on {' and '.join(PREDICTIONS)}"
        )
    adapter = folder / "adapter"
    return Base(
        folder=folder,
        image_encoder_folder=encoder,
        config=config,
        scheduler=scheduler,
        adapter=adapter if (adapter / "identity.safetensors").is_file() else None,
    )


def _check_folder(folder: Path) -> None:
    expected = "expected a diffusers folder of Stable Diffusion 1.5's shape with model_index.json"
    if not folder.exists():
        raise InputError(f"no such model: {folder}; {expected}")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a diffusers folder: it has no model_index.json; {expected}")
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise InputError(f"{folder} lacks {', '.join(missing)}; {expected} and {', '.join(PARTS)}")


def _check_unet(folder: Path, unet: dict) -> None:
    if unet.get("addition_embed_type") == "text_time" or (folder / "text_encoder_2").is_dir():
        raise InputError(f"{folder} is SDXL; `fit` trains on Stable Diffusion 1.5's shape: one text encoder")
    *attending, last = unet["down_block_types"]
    if last != "DownBlock2D" or any(kind != "CrossAttnDownBlock2D" for kind in attending):
        raise InputError(
            f"{folder}: the UNet's down blocks are {', '.join(unet['down_block_types'])}; the pose guider's features "
            "fit Stable Diffusion 1.5's order, blocks with cross-attention and then one without"
        )
    if unet["in_channels"] != unet["out_channels"]:
        raise InputError(
            f"{folder} is an inpainting model ({unet['in_channels']} channels in); give a text-to-image one"
        )


def _config(folder: Path, unet: dict, vision: dict) -> AvatarConfig:
    """The folder's own, or one with the sizes of its parts and IP-Adapter-Plus' for the adapter."""
    if (folder / "avatar.json").is_file():
        values = _json(folder / "avatar.json")
        return AvatarConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    vae, text = _json(folder / "vae" / "config.json"), _json(folder / "text_encoder" / "config.json")
    levels = len(vae.get("encoder_block_out_channels") or vae["block_out_channels"])
    if 2 ** (levels - 1) != GUIDER_STRIDE:
        raise InputError(f"{folder}: a latent of its autoencoder is {2 ** (levels - 1)} pixels wide; the guider's is 8")
    context = unet["cross_attention_dim"]
    return AvatarConfig(
        image_size=unet["sample_size"] * GUIDER_STRIDE,
        latent_channels=unet["in_channels"],
        vocabulary=text["vocab_size"],
        text_width=context,
        text_layers=text["num_hidden_layers"],
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_size=vision["image_size"],
        vision_patch=vision["patch_size"],
        clip_projection=text.get("projection_dim", context),
        unet_channels=tuple(unet["block_out_channels"]),
        unet_layers_per_block=unet["layers_per_block"],
        resampler_width=min(IP_ADAPTER_PLUS_WIDTH, max(HEAD_DIM, context // HEAD_DIM * HEAD_DIM)),
        steps=25,
        guidance=7.5,
    )


def _is_tiny(folder: Path) -> bool:
    return _json(folder / "vae" / "config.json").get("_class_name") == "AutoencoderTiny"


def _json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _frozen(module: T) -> T:
    return module.eval().requires_grad_(False)
