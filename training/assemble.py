"""The checkpoint folder from the networks that the stages wrote, and back."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from bolid_training.model.adapter import Adapter, scale_features
from bolid_training.model.attention import read_as_text
from bolid_training.model.checkpoint import (
    Checkpoint,
    build_scheduler,
    cast_weights,
    clip_parts,
    joined_clip,
    load_checkpoint,
)
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LIGHTNING, LORA_FILE, STEPS, newest_student
from bolid_training.model.pose_estimator import load_pose_estimator
from bolid_training.recipes.methods import RECIPES, Recipe, recipe_config
from bolid_training.stages.vae import autoencoder_folder


def assemble_checkpoint(
    runs: Path,
    out: Path,
    config: AvatarConfig | None = None,
    recipe: Recipe | None = None,
    *,
    few_steps: bool = False,
    guided: bool = False,
    pose_scale: float = 1.0,
) -> int:
    """Writes `out` from `runs/{clip,vae,pose,unet,adapter}/model` and returns its size in bytes.

    A `runs/decoder/model` goes in instead of `vae`. With a `runs/lightning/model`, or that of a later stage
    (`refine`, `contrast`, `energy`, `guider`, `clothes`), its LoRA and its adapter go in, and the checkpoint
    samples as they were trained to. With a `recipe`, the adapter is that of `runs/RECIPE/model`, the sizes are the
    recipe's, and the LoRA goes in only if `few_steps` says so. `guided`: the adapter's tokens are read with the
    base's own keys and values, as its words were taught, and the checkpoint samples with guidance; no LoRA.
    `pose_scale`: the pose guider's features become so many times as large. Raises FileNotFoundError for what has
    not been trained.
    """
    config, model = config or AvatarConfig(), _models(runs)
    lightning = newest_student(runs)
    if few_steps := few_steps if recipe else lightning.is_dir() and not guided:
        config = replace(config, steps=STEPS, guidance=1.0)
        model["adapter"] = lightning / "adapter"
    if recipe is not None:
        config, model["adapter"] = recipe_config(config, recipe), runs / recipe.name / "model"
    missing = [folder for folder in (model["adapter"], *([lightning] if few_steps else [])) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: train it with `bolid-train stage` first")
    unet = UNet2DConditionModel.from_pretrained(model["unet"])
    adapter = Adapter(unet, config)
    # a method that was trained without the base's guider may be assembled with it
    own_guider = model["adapter"] / "pose_guider"
    adapter.load(model["adapter"], own_guider if own_guider.is_dir() else model["unet"] / "pose_guider")
    if guided:
        read_as_text(unet)
    if adapter.pose_guider is not None:
        scale_features(adapter.pose_guider, pose_scale)
    clip = clip_parts(CLIPModel.from_pretrained(model["clip"]))
    Checkpoint(
        config=config,
        unet=unet,
        vae=AutoencoderTiny.from_pretrained(autoencoder_folder(runs)),
        text_encoder=CLIPTextModel.from_pretrained(model["unet"] / "text_encoder"),
        text_projection=clip["text_projection"],
        image_encoder=clip["image_encoder"],
        tokenizer=CLIPTokenizer.from_pretrained(model["clip"]),
        feature_extractor=CLIPImageProcessor.from_pretrained(model["clip"]),
        pose_estimator=load_pose_estimator(model["pose"]),
        scheduler=build_scheduler(config),
        adapter=adapter,
    ).save(out)
    if few_steps:
        _keep_lora(lightning, out / LIGHTNING)
    return _size(out)


def _keep_lora(model: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    shutil.copy(model / LORA_FILE, out / LORA_FILE)
    cast_weights(out, torch.float16)


def unpack_checkpoint(folder: Path, runs: Path) -> None:
    """Writes `runs/{clip,vae,pose,unet,adapter}/model` from a checkpoint folder, so that stages can go on from it.

    The adapter's pose guider becomes the base's, too, and the base's text encoder CLIP's. Raises FileNotFoundError for
    a folder that is not a checkpoint.
    """
    checkpoint, model = load_checkpoint(folder), _models(runs)
    joined_clip(checkpoint).save_pretrained(model["clip"])
    checkpoint.tokenizer.save_pretrained(model["clip"])
    checkpoint.feature_extractor.save_pretrained(model["clip"])
    checkpoint.vae.save_pretrained(model["vae"])
    checkpoint.pose_estimator.save(model["pose"])
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(model["unet"])
    checkpoint.text_encoder.save_pretrained(model["unet"] / "text_encoder")
    if checkpoint.adapter.pose_guider is not None:
        checkpoint.adapter.pose_guider.save_pretrained(model["unet"] / "pose_guider")
    checkpoint.adapter.save(model["adapter"])
    if (lora := folder / LIGHTNING / LORA_FILE).is_file():
        lightning = runs / LIGHTNING / "model"
        checkpoint.adapter.save(lightning / "adapter")
        shutil.copy(lora, lightning / LORA_FILE)


def keep_stages(names: Sequence[str], runs: Path, out: Path) -> int:
    """Copies `runs/NAME/model` to `out/NAME/model`, weights as float16, and returns the copies' size in bytes.

    Raises FileNotFoundError for a stage without a model.
    """
    for name in names:
        if not (runs / name / "model").is_dir():
            stage = f"adapter --recipe {name}" if name in RECIPES else name
            raise FileNotFoundError(f"{runs / name} has no model yet: run `bolid-train stage {stage}` first")
    for name in names:
        shutil.copytree(runs / name / "model", out / name / "model", dirs_exist_ok=True)
        cast_weights(out / name / "model", torch.float16)
    return _size(out)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _models(runs: Path) -> dict[str, Path]:
    return {name: runs / name / "model" for name in ("clip", "vae", "pose", "unet", "adapter")}
