"""Any Stable Diffusion 1.5- or SDXL-shaped diffusers folder as the frozen base that the BoLID adapter is trained on.

Parts are read one at a time, when they are needed: what has been encoded once need not stay in memory.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from bolid_sdk.contracts import TIME_IDS
from bolid_sdk.errors import InputError
from bolid_training.model.checkpoint import ZERO_UNCONDITIONAL
from bolid_training.model.config import AvatarConfig
from bolid_training.model.families import SD15, SDXL, Family, family_of, text_sizes
from bolid_training.model.lightning import LIGHTNING, LORA_FILE

PREDICTIONS = ("epsilon", "v_prediction")
PIXELS_PER_LATENT = 8
HEAD_DIM = 64
TextTower: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection
TOWERS: dict[str, type[TextTower]] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
T = TypeVar("T", bound=nn.Module)
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A folder and what its configurations say. `adapter`: BoLID's own parts if the folder has them.

    A few-step LoRA beside it is left out (`few_step`): one step of a few is not what noise prediction teaches.
    `zero_unconditional`: no text is zeros, not the empty prompt (diffusers' `force_zeros_for_empty_prompt`).
    """

    folder: Path
    image_encoder_folder: Path
    config: AvatarConfig
    scheduler: DDIMScheduler
    adapter: Path | None
    family: Family = SD15
    zero_unconditional: bool = False
    few_step: bool = False

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

    def random_encoders(self) -> dict[str, nn.Module]:
        """Those that are asked before the training, by the names of their folders, with weights that are not read."""
        vae, vision = self._vae_class, CLIPVisionModelWithProjection
        encoders = {
            "vae": vae.from_config(vae.load_config(self.folder / "vae", local_files_only=True)),
            **{part: _random(TOWERS[part], self.folder / part) for part in self.family.towers},
            "image_encoder": _random(vision, self.image_encoder_folder),
        }
        return {name: _frozen(encoder) for name, encoder in encoders.items()}

    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        return _frozen(self._vae_class.from_pretrained(self.folder / "vae", torch_dtype=torch.float32))

    @property
    def _vae_class(self) -> type[AutoencoderKL] | type[AutoencoderTiny]:
        return AutoencoderTiny if _is_tiny(self.folder) else AutoencoderKL

    def text_encoders(self) -> list[TextTower]:
        """One, or SDXL's two."""
        folders = {part: self.folder / part for part in self.family.towers}
        return [_frozen(TOWERS[part].from_pretrained(where, dtype=torch.float32)) for part, where in folders.items()]

    def tokenizers(self) -> list[CLIPTokenizer]:
        """One for each text encoder."""
        return [CLIPTokenizer.from_pretrained(self.folder / part) for part in self.family.tokenizers]

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
        family = _family(folder, unet)
        towers = [_json(folder / part / "config.json") for part in family.towers]
        _check_unet(folder, family, unet, towers)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False, thresholding=False)
        config = _config(folder, family, unet, towers, vision.get("vision_config", vision))
        zero_unconditional = _zero_unconditional(folder, family)
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
        family=family,
        zero_unconditional=zero_unconditional,
        few_step=_few_step(folder),
    )


def _check_folder(folder: Path) -> None:
    expected = "expected a diffusers folder of Stable Diffusion 1.5's or SDXL's shape with model_index.json"
    if not folder.exists():
        raise InputError(f"no such model: {folder}; {expected}")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a diffusers folder: it has no model_index.json; {expected}")
    if missing := [part for part in SD15.parts if not (folder / part).is_dir()]:
        raise InputError(f"{folder} lacks {', '.join(missing)}; {expected} and {', '.join(SD15.parts)}")


def _family(folder: Path, unet: dict) -> Family:
    """Raises InputError for a UNet of neither, and for a folder with one text encoder too few or too many."""
    family = family_of(unet)
    if family is None:
        raise InputError(
            f"{folder}: the UNet adds {unet['addition_embed_type']!r} to its timestep; BoLID trains on {SD15.name}'s, "
            f"which adds nothing, and {SDXL.name}'s, which adds pooled text and sizes"
        )
    if missing := [part for part in family.parts if not (folder / part).is_dir()]:
        raise InputError(f"{folder} is {family.name} and lacks {', '.join(missing)}; give the whole model's folder")
    if family is SD15 and (folder / SDXL.towers[1]).is_dir():
        raise InputError(
            f"{folder} has {SDXL.towers[1]}, as SDXL, but a UNet that is not told of pooled text and sizes; expected "
            f"{SD15.name}'s one text encoder or all of SDXL"
        )
    return family


def _check_unet(folder: Path, family: Family, unet: dict, towers: list[dict]) -> None:
    found = tuple(unet["down_block_types"])
    expected = family.down_blocks(len(found))
    if found != expected:
        raise InputError(
            f"{folder}: the UNet's down blocks are {', '.join(found)}; the pose guider's features fit {family.name}'s "
            f"order: {', '.join(expected)}"
        )
    if unet["in_channels"] != unet["out_channels"]:
        raise InputError(
            f"{folder} is an inpainting model ({unet['in_channels']} channels in); give a text-to-image one"
        )
    width = sum(tower["hidden_size"] for tower in towers)
    if width != unet["cross_attention_dim"]:
        raise InputError(
            f"{folder}: the text encoders' states are {width} wide, the UNet reads {unet['cross_attention_dim']}; "
            "give the text encoders that it was trained with"
        )
    if family.added:
        _check_sizes(folder, unet, towers[-1])


def _check_sizes(folder: Path, unet: dict, tower: dict) -> None:
    numbers = unet["projection_class_embeddings_input_dim"] - tower["projection_dim"]
    if numbers != TIME_IDS * unet["addition_time_embed_dim"]:
        raise InputError(
            f"{folder}: the UNet adds {unet['projection_class_embeddings_input_dim']} numbers to its timestep; "
            f"expected {tower['projection_dim']} of a pooled text and those of {TIME_IDS} sizes (the refiner has five)"
        )


def _zero_unconditional(folder: Path, family: Family) -> bool:
    """What StableDiffusionXLPipeline does when its index does not say; Stable Diffusion 1.5 reads the empty prompt."""
    return family is SDXL and _json(folder / "model_index.json").get(ZERO_UNCONDITIONAL, True)


def _config(folder: Path, family: Family, unet: dict, towers: list[dict], vision: dict) -> AvatarConfig:
    """The folder's own, or one with the sizes of its parts and IP-Adapter-Plus' for the adapter."""
    if (folder / "avatar.json").is_file():
        values = _json(folder / "avatar.json")
        _check_method(folder, values)
        own = AvatarConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
        return replace(own, steps=AvatarConfig.steps, guidance=AvatarConfig.guidance) if _few_step(folder) else own
    vae = _json(folder / "vae" / "config.json")
    levels = len(vae.get("encoder_block_out_channels") or vae["block_out_channels"])
    if 2 ** (levels - 1) != PIXELS_PER_LATENT:
        raise InputError(f"{folder}: a latent of its autoencoder is {2 ** (levels - 1)} pixels wide; the guider's is 8")
    return AvatarConfig(
        image_size=unet["sample_size"] * PIXELS_PER_LATENT,
        latent_channels=unet["in_channels"],
        **text_sizes(unet, towers),
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_size=vision["image_size"],
        vision_patch=vision["patch_size"],
        unet_channels=tuple(unet["block_out_channels"]),
        unet_layers_per_block=unet["layers_per_block"],
        resampler_width=_resampler_width(family, unet["cross_attention_dim"]),
        steps=25,
        guidance=family.guidance,
    )


def _resampler_width(family: Family, context: int) -> int:
    """Whole heads, no more than the text is wide."""
    return min(family.resampler_width, max(HEAD_DIM, context // HEAD_DIM * HEAD_DIM))


def _check_method(folder: Path, values: dict) -> None:
    """Methods that BoLID is compared with read people from whole pictures, or draw poses by other networks."""
    if values.get("parts", 5) == 1 or not values.get("pose_guider", True) or values.get("identity_net", False):
        raise InputError(
            f"the adapter in {folder} is of another method than BoLID (see its avatar.json); `fit` trains BoLID's: "
            "give a folder with such an adapter or with none"
        )


def _few_step(folder: Path) -> bool:
    return (folder / LIGHTNING / LORA_FILE).is_file()


def _is_tiny(folder: Path) -> bool:
    return _json(folder / "vae" / "config.json").get("_class_name") == "AutoencoderTiny"


def _random(kind: Any, folder: Path) -> nn.Module:
    return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def _json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _frozen(module: T) -> T:
    return module.eval().requires_grad_(False)
