"""Opening a model: a diffusers folder or a single file, with adapters, LoRAs and parts from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from diffusers import SchedulerMixin
from safetensors import SafetensorError
from transformers import CLIPVisionModelWithProjection

import bolid_training
from bolid_export.sources.adapter_kinds import INSTANT_ID, Role
from bolid_export.sources.adapters import (
    PLACES,
    AdapterFile,
    assign_roles,
    attach_adapters,
    features_read,
    open_adapters,
    own_adapters,
)
from bolid_export.sources.diffusers_folder import (
    PARTS_READ,
    check_folder,
    load_feature_extractor,
    load_folder,
    load_image_encoder,
)
from bolid_export.sources.files import PICKLES, sha256, weight_files
from bolid_export.sources.hot_layers import hot_layers
from bolid_export.sources.loras import Lora, fuse_loras
from bolid_export.sources.model import Base, Model
from bolid_export.sources.single_file import load_single_file, told_prediction
from bolid_export.sources.vaes import load_vae
from bolid_sdk.errors import InputError
from bolid_training.model.lightning import LIGHTNING
from bolid_training.model.pose_estimator import PoseEstimator, load_pose_estimator

T = TypeVar("T")

PREDICTION_TYPES = ("epsilon", "v_prediction")
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What differs from the model's own: files, and what its weights cannot tell.

    `config`: a diffusers folder whose configuration and tokenizers a single file takes, by default SD1.5's or SDXL's;
    `hot_lora_rank`: the largest rank of LoRAs that requests bring, 0 for none.
    """

    vae: Path | None = None
    image_encoder: Path | None = None
    loras: tuple[Lora, ...] = ()
    prediction_type: str | None = None
    config: Path | None = None
    hot_lora_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open model and where it came from.

    `hashes`: sha256 of every file that was read, by its path in the model's folder or by its role; `loras`: file name,
    sha256 and weight of each that was fused; `decisions`: what was recognised and what was chosen, for people.
    """

    name: str
    checkpoint: Model
    hashes: dict[str, str]
    loras: tuple[dict[str, Any], ...] = ()
    decisions: dict[str, str] = field(default_factory=dict)


def default_checkpoint() -> Path:
    """The avatar model that comes with BoLID."""
    return Path(bolid_training.__file__).parent / "weights" / "avatar"


def open_source(model: Path, adapters: Sequence[Path] = (), choices: Choices | None = None) -> Source:
    """Reads a model in float32 and puts what was chosen in place of its own. Raises InputError."""
    choices = choices or Choices()
    base = _open_base(model, choices)
    own = _own_adapters(model)
    roles = assign_roles(own, [file for path in adapters for file in open_adapters(path)])
    if choices.vae:
        base = replace(base, vae=_reading(choices.vae, load_vae, choices.vae, base.vae))
    base = replace(base, scheduler=_scheduler(base, choices.prediction_type))
    fuse_loras(base, choices.loras)
    checkpoint = _complete(model, base, roles, choices)
    return Source(
        name=model.resolve().name.removesuffix(".safetensors"),
        checkpoint=checkpoint,
        hashes=_model_hashes(model, choices) | _adapter_hashes(roles, own),
        loras=tuple(
            {"file": lora.path.name, "sha256": sha256(lora.path), "weight": lora.weight} for lora in choices.loras
        ),
        decisions=_decisions(model, checkpoint, roles, choices),
    )


def _open_base(model: Path, choices: Choices) -> Base:
    if model.is_file():
        if model.suffix in PICKLES:
            raise InputError(f"{model} is a pickle, which can run code when it is read; convert it to safetensors")
        return _reading(model, load_single_file, model, choices.config)
    check_folder(model)
    if choices.config:
        raise InputError(f"--config {choices.config} is for single files; {model} has a configuration of its own")
    return _reading(model, load_folder, model)


def _own_adapters(model: Path) -> dict[Role, AdapterFile]:
    try:
        return own_adapters(model)
    except InputError as error:
        raise InputError(f"cannot read the checkpoint {model}: {error}") from error


def _complete(model: Path, base: Base, roles: Mapping[Role, AdapterFile], choices: Choices) -> Model:
    """The base with the encoders and adapters that make a person of it."""
    faces = features_read(roles) in ("embedding", "face")
    image_encoder = None if faces else _image_encoder(model, choices)
    poses = model / "pose_estimator"
    return Model(
        **vars(base),
        image_encoder=image_encoder,
        feature_extractor=_reading(model, load_feature_extractor, choices.image_encoder or model / "feature_extractor"),
        pose_estimator=_reading(model, _pose_estimator, poses) if poses.is_dir() else None,
        adapter=attach_adapters(base.unet, image_encoder, roles),
        lora_rank=choices.hot_lora_rank,
    )


def _image_encoder(model: Path, choices: Choices) -> CLIPVisionModelWithProjection:
    folder = choices.image_encoder or model / "image_encoder"
    if choices.image_encoder is None and not folder.is_dir():
        raise InputError(
            f"{model} has no image encoder, which its adapters need; name the one that they were trained with: "
            "--image-encoder DIR, a folder of CLIP's vision model"
        )
    return _reading(folder, load_image_encoder, folder)


def _pose_estimator(folder: Path) -> PoseEstimator:
    return load_pose_estimator(folder).eval().requires_grad_(False)


def _scheduler(base: Base, prediction_type: str | None) -> SchedulerMixin:
    """The runtime's samplers are linear: x0 is neither clipped nor thresholded, whatever a scheduler's default is."""
    known = {"prediction_type": prediction_type} if prediction_type else {}
    return type(base.scheduler).from_config(base.scheduler.config, clip_sample=False, thresholding=False, **known)


def _model_hashes(model: Path, choices: Choices) -> dict[str, str]:
    """Of the model's own files that were read, and of the parts in place of them."""
    replaced = {name: path for name, path in (("vae", choices.vae), ("image_encoder", choices.image_encoder)) if path}
    if model.is_file():
        hashes = {model.name: sha256(model)}
    else:
        files = [file.relative_to(model) for file in weight_files(model)]
        read = [file for file in files if file.parts[0] in PARTS_READ and file.parts[0] not in replaced]
        with ThreadPoolExecutor() as threads:
            hashes = dict(zip(map(Path.as_posix, read), threads.map(sha256, map(model.joinpath, read)), strict=True))
    return hashes | {name: sha256(path) for name, path in replaced.items()}


def _adapter_hashes(roles: Mapping[Role, AdapterFile], own: Mapping[Role, AdapterFile]) -> dict[str, str]:
    return {f"adapter/{PLACES[role]}": sha256(file.path) for role, file in roles.items() if own.get(role) is not file}


def _decisions(model: Path, checkpoint: Model, roles: Mapping[Role, AdapterFile], choices: Choices) -> dict[str, str]:
    """What a user should know before the export starts."""
    scheduler = checkpoint.scheduler.config
    given = "as was said" if choices.prediction_type else f"by the {_prediction_source(model)}"
    decisions = {
        "family": checkpoint.family,
        "layout": "single file" if model.is_file() else "diffusers folder",
        "prediction type": f"{scheduler.prediction_type}, {given}",
        "VAE": f"{type(checkpoint.vae).__name__} of {choices.vae or 'the model'}",
        "image encoder": _encoder_decision(checkpoint, choices),
    }
    for role, file in roles.items():
        decisions[role.replace("_", " ")] = f"{file.name}, {file.path.name}"
    if roles["identity"].kind is INSTANT_ID and "identity_net" not in roles:
        decisions["identity net"] = "none; InstantID is published with one: --adapter ControlNetModel"
    if checkpoint.pose_estimator is None and checkpoint.adapter.parts > 1:
        decisions["pose estimator"] = (
            "none: the whole reference is read in place of each part; a pose_estimator/ like the avatar's in "
            "the model's folder finds them"
        )
    if (model / LIGHTNING).is_dir():
        decisions["few-step LoRA"] = f"fused; {checkpoint.config.steps} steps"
    for lora in choices.loras:
        decisions[f"LoRA {lora.path.name}"] = f"fused with weight {lora.weight:g}"
    if checkpoint.lora_rank:
        layers = len(hot_layers(checkpoint))
        decisions["LoRAs of requests"] = f"up to rank {checkpoint.lora_rank} together, in {layers} layers"
    return decisions


def _prediction_source(model: Path) -> str:
    return told_prediction(model) or "default" if model.is_file() else "scheduler"


def _encoder_decision(checkpoint: Model, choices: Choices) -> str:
    if checkpoint.image_encoder is None:
        beside = " and what EVA-CLIP sees of the face" if checkpoint.adapter.vision_states else ""
        return f"none: people are given as face embeddings, {checkpoint.adapter.width} wide{beside}"
    output = {"patches": "patch tokens", "pooled": "pooled embedding"}[checkpoint.adapter.reads]
    return f"{output} of {choices.image_encoder or 'the model'}'s"


def _reading(path: Path, read: Callable[..., T], *arguments: Any) -> T:
    """What libraries say about a file that they cannot read, as the user's mistake."""
    try:
        return read(*arguments)
    except InputError:
        raise
    except UNREADABLE as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"cannot read the checkpoint {path}: {message}") from error
