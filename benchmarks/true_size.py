"""Checkpoints of Stable Diffusion 1.5's true sizes, with random weights: for speed, memory and parity, not for looks.

    python benchmarks/true_size.py --out runs/sd15       runs/sd15, runs/sd15-taesd with a small autoencoder, and
                                                         runs/sd15-ip-adapter-plus

UNet, text encoder (CLIP-L), image encoder (CLIP-H) and autoencoder have the published sizes, the adapter those of
IP-Adapter-Plus with a T2I-Adapter. The pose estimator and the tokenizer are the avatar's, which are trained: so a
reference is really found and a prompt really read. About 3.7 GB in float16; one part at a time is in memory. The last
one is what most people have: a plain SD1.5 with one IP-Adapter-Plus, and nothing of BoLID.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shutil import copytree

import click
import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from bolid_export.sources import default_checkpoint
from bolid_training.model.adapter import Adapter
from bolid_training.model.checkpoint import build_feature_extractor
from bolid_training.model.config import AvatarConfig

CONFIG = AvatarConfig(
    image_size=512,
    latent_channels=4,
    vae_width=64,
    vocabulary=49408,
    text_width=768,
    text_layers=12,
    vision_width=1280,
    vision_layers=32,
    vision_size=224,
    vision_patch=14,
    clip_projection=768,
    unet_channels=(320, 640, 1280, 1280),
    unet_layers_per_block=2,
    attention_head_dim=8,
    resampler_width=768,
    guidance=7.5,
)
BORROWED = ("pose_estimator", "tokenizer")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    """Write OUT, OUT-taesd and OUT-ip-adapter-plus. They share files by hard links where they are equal."""
    write_checkpoint(out)
    with_tiny_autoencoder(out, out.with_name(f"{out.name}-taesd"))
    with_ip_adapter_plus(out, out.with_name(f"{out.name}-ip-adapter-plus"))


def write_checkpoint(folder: Path, seed: int = 0) -> None:
    """A whole checkpoint with a full autoencoder, weights in float16."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    for name, write in _PARTS.items():
        click.echo(f"writing {folder / name}")
        write(folder / name)
    for name in BORROWED:
        copytree(default_checkpoint() / name, folder / name)
    with_published_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(_index(), indent=2) + "\n")
    (folder / "avatar.json").write_text(json.dumps(asdict(CONFIG), indent=2) + "\n")


def with_published_tokenizer(folder: Path) -> None:
    """Beside `tokenizer.json` the two files of published folders, which are all that older libraries read."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n")


def with_published_names(file: Path) -> None:
    """transformers 5 leaves the prefix out that published text encoders have, and other programs look for."""
    state = load_file(file)
    save_file({f"text_model.{name.removeprefix('text_model.')}": state[name] for name in state}, file, {"format": "pt"})


def with_tiny_autoencoder(original: Path, folder: Path) -> None:
    """The same checkpoint with an autoencoder of TAESD's shape; everything else is hard links."""
    copytree(original, folder, copy_function=os.link, ignore=lambda path, names: {"vae"} & set(names))
    _save(in_half(tiny_autoencoder), folder / "vae")
    index = folder / "model_index.json"
    index.unlink()
    index.write_text(json.dumps(_index() | {"vae": ["diffusers", "AutoencoderTiny"]}, indent=2) + "\n")


def with_ip_adapter_plus(original: Path, folder: Path) -> None:
    """The same base with one adapter: BoLID's image prompt is an IP-Adapter-Plus, and alone it is the identity."""
    ours = {"adapter", "pose_estimator", "avatar.json"}
    copytree(original, folder, copy_function=os.link, ignore=lambda path, names: ours & set(names))
    (folder / "adapter").mkdir()
    os.link(original / "adapter" / "image_prompt.safetensors", folder / "adapter" / "identity.safetensors")


def unet() -> UNet2DConditionModel:
    """diffusers' defaults are SD1.5's numbers, the text's width apart."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=CONFIG.text_width)


def text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=CONFIG.vocabulary,
            hidden_size=CONFIG.text_width,
            intermediate_size=4 * CONFIG.text_width,
            num_hidden_layers=CONFIG.text_layers,
            num_attention_heads=12,
            projection_dim=CONFIG.clip_projection,
        )
    )


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP ViT-H/14."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=CONFIG.vision_width,
            intermediate_size=4 * CONFIG.vision_width,
            num_hidden_layers=CONFIG.vision_layers,
            num_attention_heads=16,
            image_size=CONFIG.vision_size,
            patch_size=CONFIG.vision_patch,
            hidden_act="gelu",
            projection_dim=1024,
        )
    )


def autoencoder(sample_size: int = CONFIG.image_size, scaling_factor: float = 0.18215) -> AutoencoderKL:
    levels = (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        layers_per_block=2,
        latent_channels=CONFIG.latent_channels,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
    )


def tiny_autoencoder() -> AutoencoderTiny:
    """diffusers' defaults are TAESD's numbers."""
    return AutoencoderTiny(scaling_factor=1.0)


def scheduler() -> DDIMScheduler:
    """SD1.5's own."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=CONFIG.beta_start,
        beta_end=CONFIG.beta_end,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def in_half(build: Callable[[], nn.Module]) -> nn.Module:
    """Built in float16, so that there never is a float32 copy."""
    torch.set_default_dtype(torch.float16)
    try:
        return build().eval()
    finally:
        torch.set_default_dtype(torch.float32)


def _save(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)


def _save_text_encoder(folder: Path) -> None:
    _save(in_half(text_encoder), folder)
    with_published_names(folder / "model.safetensors")
    width = CONFIG.text_width
    projection = torch.randn(width, width).half() * width**-0.5
    save_file({"weight": projection}, folder / "projection.safetensors")


def _save_adapter(folder: Path) -> None:
    """Keys and values start as the text's, so they are disturbed: only different ones tell the branches apart."""
    network = UNet2DConditionModel.from_pretrained(folder.with_name("unet"), torch_dtype=torch.float16)
    adapter = in_half(lambda: Adapter(network, CONFIG))
    with torch.no_grad():
        for parameter in adapter.layers.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    adapter.save(folder)


_PARTS: dict[str, Callable[[Path], None]] = {
    "unet": lambda folder: _save(in_half(unet), folder),
    "vae": lambda folder: _save(in_half(autoencoder), folder),
    "text_encoder": _save_text_encoder,
    "image_encoder": lambda folder: _save(in_half(image_encoder), folder),
    "adapter": _save_adapter,
    "scheduler": lambda folder: scheduler().save_pretrained(folder),
    "feature_extractor": lambda folder: build_feature_extractor(CONFIG).save_pretrained(folder),
}


def _index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }


if __name__ == "__main__":
    main()
