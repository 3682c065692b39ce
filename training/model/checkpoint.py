"""A checkpoint: a diffusers folder with a pose estimator and the BoLID adapter beside the usual parts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from bolid_sdk.contracts import TIME_IDS
from bolid_training.model.adapter import Adapter
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LIGHTNING, LORA_FILE, fuse_lora
from bolid_training.model.pose_estimator import PoseEstimator, build_pose_estimator, load_pose_estimator
from bolid_training.model.schedulers import load_scheduler

MAX_TOKENS = 77
PARTS = (
    *("unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    *("image_encoder", "feature_extractor", "scheduler"),
)
"""Folders of diffusers' pipelines; the second text tower is SDXL's."""
TIME_ID_WIDTH = 256
PROJECTION = "projection.safetensors"
ZERO_UNCONDITIONAL = "force_zeros_for_empty_prompt"
AUTOENCODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


@dataclass(kw_only=True)
class Checkpoint:
    """All networks of one model, in eval mode. `unet` already carries the adapter's attention.

    `text_projection` belongs to a text encoder that was trained as CLIP's; a second tower has its own inside.
    `zero_unconditional`: no text is zeros, not the empty prompt (diffusers' `force_zeros_for_empty_prompt`).
    """

    config: AvatarConfig
    unet: UNet2DConditionModel
    vae: AutoencoderTiny | AutoencoderKL
    text_encoder: CLIPTextModel
    text_projection: nn.Linear | None
    tokenizer: CLIPTokenizer
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    zero_unconditional: bool = False
    image_encoder: CLIPVisionModelWithProjection
    feature_extractor: CLIPImageProcessor
    pose_estimator: PoseEstimator
    scheduler: SchedulerMixin
    adapter: Adapter

    @property
    def family(self) -> str:
        """What other tools call models of this architecture."""
        return "stable-diffusion" if self.text_encoder_2 is None else "stable-diffusion-xl"

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Writes the whole folder, weights as `dtype`."""
        folder.mkdir(parents=True, exist_ok=True)
        index = self._pipeline()
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.save_pretrained(folder / name)
                library = "diffusers" if type(part).__module__.startswith("diffusers") else "transformers"
                index[name] = [library, type(part).__name__]
        self.pose_estimator.save(folder / "pose_estimator")
        self.adapter.save(folder / "adapter")
        if self.text_projection is not None:
            save_file({"weight": self.text_projection.weight.detach()}, folder / "text_encoder" / PROJECTION)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / "avatar.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        cast_weights(folder, dtype)

    def _pipeline(self) -> dict[str, Any]:
        """What `model_index.json` says beside the parts."""
        index: dict[str, Any] = {"_diffusers_version": diffusers.__version__}
        if self.text_encoder_2 is None:
            return {"_class_name": "StableDiffusionPipeline", **index, "safety_checker": [None, None]}
        return {"_class_name": "StableDiffusionXLPipeline", **index, ZERO_UNCONDITIONAL: self.zero_unconditional}


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads what `Checkpoint.save` wrote, in float32; a few-step LoRA in `lightning/` is fused into the UNet.

    Raises FileNotFoundError for a folder that is not a checkpoint and RuntimeError that lists differing adapter keys.
    """
    folder = Path(folder)
    if not (folder / "avatar.json").is_file():
        raise FileNotFoundError(f"{folder} is not a BoLID checkpoint: it has no avatar.json")
    values = json.loads((folder / "avatar.json").read_text())
    config = AvatarConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    if (lora := folder / LIGHTNING / LORA_FILE).is_file():
        fuse_lora(unet, lora)
    adapter = Adapter(unet, config)
    adapter.load(folder / "adapter")
    checkpoint = Checkpoint(
        config=config,
        unet=unet,
        vae=load_autoencoder(folder / "vae"),
        **load_text_parts(folder),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32),
        feature_extractor=CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        pose_estimator=load_pose_estimator(folder / "pose_estimator"),
        scheduler=load_scheduler(folder / "scheduler"),
        adapter=adapter,
    )
    return _eval(checkpoint)


def load_autoencoder(folder: Path) -> AutoencoderTiny | AutoencoderKL:
    """The class that the folder's configuration names. Raises KeyError for one that is not known here."""
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return AUTOENCODERS[name].from_pretrained(folder, torch_dtype=torch.float32)


def load_text_parts(folder: Path) -> dict[str, Any]:
    """The text towers and tokenizers of a diffusers folder, as a Checkpoint holds them: two where it has two."""
    one = {
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        "text_projection": _load_projection(folder / "text_encoder" / PROJECTION),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    }
    if not (folder / "text_encoder_2").is_dir():
        return one
    index = json.loads((folder / "model_index.json").read_text())
    return one | {
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        # what StableDiffusionXLPipeline does when its index does not say
        "zero_unconditional": index.get(ZERO_UNCONDITIONAL, True),
    }


def _load_projection(file: Path) -> nn.Linear | None:
    if not file.is_file():
        return None
    weight = load_file(file)["weight"].float()
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    projection.load_state_dict({"weight": weight})
    return projection


def build_checkpoint(config: AvatarConfig, tokenizer: CLIPTokenizer | None = None) -> Checkpoint:
    """A checkpoint with random weights. Without a tokenizer it gets one of bytes only, enough for tests."""
    tokenizer = tokenizer or byte_tokenizer()
    clip = build_clip(config, tokenizer)
    unet = build_unet(config)
    return _eval(
        Checkpoint(
            config=config,
            unet=unet,
            vae=build_vae(config),
            **clip_parts(clip),
            tokenizer=tokenizer,
            **build_second_tower(config, tokenizer),
            feature_extractor=build_feature_extractor(config),
            pose_estimator=build_pose_estimator(config.pose_size, config.pose_width, config.pose_layers),
            scheduler=build_scheduler(config),
            adapter=Adapter(unet, config),
        )
    )


def build_unet(config: AvatarConfig) -> UNet2DConditionModel:
    """SD1.5's UNet in small, or SDXL's. A plain block, without attention, comes last or first: T2I-Adapter features fit
    nowhere else.

    Beside cross-attention a pooled text is added to the time embedding, for what a whole picture has in common, light,
    place and style: pooled here, as in DeepFloyd IF, or by the second text tower, with the picture's size (SDXL).
    """
    plain = [layers == 0 for layers in config.unet_transformer_layers]
    return UNet2DConditionModel(
        sample_size=config.image_size // 8,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers_per_block,
        down_block_types=tuple("DownBlock2D" if p else "CrossAttnDownBlock2D" for p in plain),
        up_block_types=tuple("UpBlock2D" if p else "CrossAttnUpBlock2D" for p in reversed(plain)),
        # diffusers wants a number for plain blocks too, and the last one is the middle's
        transformer_layers_per_block=tuple(max(1, layers) for layers in config.unet_transformer_layers),
        cross_attention_dim=config.context_width,
        **_pooled_text(config),
        attention_head_dim=tuple(channels // config.attention_head_dim for channels in config.unet_channels),
    )


def _pooled_text(config: AvatarConfig) -> dict[str, Any]:
    if config.text_width_2 == 0:
        return {"addition_embed_type": "text", "addition_embed_type_num_heads": config.text_width // 64}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID_WIDTH,
        "projection_class_embeddings_input_dim": config.clip_projection + TIME_IDS * TIME_ID_WIDTH,
        "use_linear_projection": True,
    }


def build_vae(config: AvatarConfig) -> AutoencoderTiny:
    """AutoencoderTiny with f = 8; its latents are trained to have unit variance, so nothing scales them."""
    widths = (config.vae_width,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        latent_channels=config.latent_channels,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_scheduler(config: AvatarConfig) -> DDIMScheduler:
    """SD1.5's noise schedule, rescaled to end in pure noise, with v prediction (arXiv:2305.08891).

    Small latents keep their mean colour through much noise: a model that reads it there does not learn to decide it.
    And where a schedule ends in noise, an epsilon says nothing of the picture: x0 = (x - sigma e) / alpha.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def build_clip(config: AvatarConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP; its text width is, with that of a second tower, the UNet's cross-attention width."""
    text = _text_config(config.text_width, config.text_layers, config, tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=config.patch_width,
        intermediate_size=4 * config.patch_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.patch_width // 64,
        image_size=config.vision_size,
        patch_size=config.vision_patch,
        projection_dim=config.clip_projection,
    )
    clip_config = CLIPModel.config_class(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.clip_projection
    )
    return CLIPModel(clip_config)


def _text_config(width: int, layers: int, config: AvatarConfig, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=config.clip_projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_second_tower(config: AvatarConfig, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """SDXL's second text tower and its tokenizer, which pads with "!"; nothing for a model with one tower."""
    if config.text_width_2 == 0:
        return {}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in backend["merges"]]
    second = CLIPTokenizer(vocab=backend["vocab"], merges=merges, model_max_length=MAX_TOKENS, pad_token="!")
    return {
        "text_encoder_2": CLIPTextModelWithProjection(
            _text_config(config.text_width_2, config.text_layers_2, config, second)
        ),
        "tokenizer_2": second,
        "zero_unconditional": True,
    }


def clip_parts(clip: CLIPModel) -> dict[str, nn.Module]:
    """The text encoder, text projection and image encoder of a CLIP, as a checkpoint holds them."""
    image_encoder = CLIPVisionModelWithProjection(clip.config.vision_config)
    image_encoder.vision_model.load_state_dict(clip.vision_model.state_dict())
    image_encoder.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    return {"text_encoder": text_encoder, "text_projection": clip.text_projection, "image_encoder": image_encoder}


def joined_clip(checkpoint: Checkpoint) -> CLIPModel:
    """A CLIP of a checkpoint's parts: its temperature, which no checkpoint holds, is CLIP's initial one, and its text
    encoder the one that was trained with the base."""
    clip = build_clip(checkpoint.config, checkpoint.tokenizer)
    clip.text_model.load_state_dict(checkpoint.text_encoder.state_dict())
    clip.text_projection.load_state_dict(checkpoint.text_projection.state_dict())
    clip.vision_model.load_state_dict(checkpoint.image_encoder.vision_model.state_dict())
    clip.visual_projection.load_state_dict(checkpoint.image_encoder.visual_projection.state_dict())
    return clip


def build_feature_extractor(config: AvatarConfig) -> CLIPImageProcessor:
    """What the image encoder expects: S x S pixels with CLIP's mean and standard deviation."""
    size = config.vision_size
    return CLIPImageProcessor(size={"height": size, "width": size}, do_center_crop=False)


def byte_tokenizer() -> CLIPTokenizer:
    """A tokenizer that knows single bytes only."""
    return train_tokenizer([], vocabulary=0)


def train_tokenizer(texts: list[str], vocabulary: int) -> CLIPTokenizer:
    """CLIP's byte-level BPE, with up to `vocabulary` entries learned from `texts`."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(ByteLevel.alphabet())
    backend: Tokenizer = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=max(vocabulary, 2 * len(alphabet) + len(specials)),
        special_tokens=specials + alphabet + [f"{letter}</w>" for letter in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=MAX_TOKENS
    )


def _eval(checkpoint: Checkpoint) -> Checkpoint:
    for part in vars(checkpoint).values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return checkpoint


def cast_weights(folder: Path, dtype: torch.dtype) -> None:
    """Rewrites every weight below `folder` as `dtype`; the adapter's processors have files apart from the UNet's."""
    for file in folder.rglob("*.safetensors"):
        _rewrite(file, dtype)


def _rewrite(file: Path, dtype: torch.dtype) -> None:
    state = {name: tensor for name, tensor in load_file(file).items() if ".processor." not in name}
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(state, file, metadata={"format": "pt"})
