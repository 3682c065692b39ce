"""Files and manifest of a bundle."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from bolid_export.sources import Model, Source
from bolid_export.verification.torch_engine import Record
from bolid_sdk.built_engine import BuiltEngine
from bolid_sdk.clip_tokenizer import ClipTokenizer
from bolid_sdk.contracts import GraphSpec, Sizes
from bolid_sdk.manifest import GraphEntry, Manifest, TokenizerEntry
from bolid_sdk.sampling import ResolvedSampling
from bolid_sdk.schedule import NoiseSchedule
from bolid_training.model.schedulers import sampler_name, without_noise

TOOLS = ("bolid-sdk", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")
GOLDEN, TOKENIZER, TOKENIZER_2, REPORT = "golden.npz", "tokenizer.json", "tokenizer_2.json", "report.md"
BLANK = "blank_patch_tokens.npy"


def noise_schedule(checkpoint: Model) -> NoiseSchedule:
    """The forward process of the checkpoint's scheduler. Raises InputError for a schedule the runtime lacks."""
    config = checkpoint.scheduler.config
    trained = config.get("trained_betas")
    return NoiseSchedule(
        prediction_type=config.prediction_type,
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule="trained" if trained is not None else config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        trained_betas=None if trained is None else tuple(float(beta) for beta in trained),
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        set_alpha_to_one=config.get("set_alpha_to_one", True),
        steps_offset=config.get("steps_offset", 0),
        **{name: config[name] for name in ("original_inference_steps", "timestep_scaling") if name in config},
    )


def default_sampling(checkpoint: Model) -> ResolvedSampling:
    """The checkpoint's scheduler, spaced as it says."""
    config, spacing = checkpoint.config, checkpoint.scheduler.config.timestep_spacing
    sampler = sampler_name(checkpoint.scheduler)
    return ResolvedSampling(steps=config.steps, guidance=config.guidance, sampler=sampler, spacing=spacing)


def verified_sampling(checkpoint: Model) -> ResolvedSampling:
    """What the loop is verified with: the default, without noise that diffusers would draw differently."""
    return replace(default_sampling(checkpoint), sampler=sampler_name(without_noise(checkpoint.scheduler)))


def save_golden(records: Mapping[str, list[Record]], file: Path) -> Path:
    """The last recorded run of each graph, from PyTorch: bolid-doctor repeats it without."""
    arrays = {}
    for graph, runs in records.items():
        for kind, tensors in (("inputs", runs[-1].inputs), ("outputs", runs[-1].outputs)):
            arrays |= {f"{graph}/{kind}/{name}": array for name, array in tensors.items()}
    np.savez_compressed(file, **arrays)
    return file


def save_blank(records: Mapping[str, list[Record]], sizes: Sizes, folder: Path) -> None:
    """What the image encoder saw in a blank picture, from PyTorch, where guidance needs that."""
    if sizes.patch_tokens > 1:
        last = records["image_encoder"][-1]
        blank = [not pixels.any() for pixels in last.inputs["pixels"]].index(True)
        np.save(folder / BLANK, last.outputs["patch_tokens"][blank : blank + 1].astype(np.float32))


def save_tokenizers(checkpoint: Model, sizes: Sizes, folder: Path) -> None:
    """The second text tower's too, where it differs."""
    save_tokenizer(checkpoint.tokenizer, folder / TOKENIZER)
    if sizes.token_inputs == 2:
        save_tokenizer(checkpoint.tokenizer_2, folder / TOKENIZER_2)


def save_tokenizer(tokenizer: CLIPTokenizer, file: Path) -> Path:
    """Without padding and truncation: those are the runtime's. Raises BundleError for what the runtime cannot read."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    file.write_text(json.dumps({**content, "padding": None, "truncation": None}, ensure_ascii=False), encoding="utf-8")
    ClipTokenizer(file)
    return file


def build_manifest(
    source: Source,
    sizes: Sizes,
    specs: Mapping[str, GraphSpec],
    files: Mapping[str, Path],
    *,
    precision: str,
    licence: str,
    verification: Mapping[str, Any],
    engines: Mapping[str, Mapping[str, BuiltEngine]],
) -> Manifest:
    """Everything but the hashes, which `bolid_sdk.bundle.write_bundle` adds. `engines`: by graph, then by backend."""
    checkpoint = source.checkpoint
    extractor, vae = checkpoint.feature_extractor, checkpoint.vae.config
    return Manifest(
        name=source.name,
        family=checkpoint.family,
        precision=precision,
        licence=licence,
        sizes=sizes,
        noise_schedule=noise_schedule(checkpoint),
        sampling=default_sampling(checkpoint),
        graphs={name: _graph_entry(spec, files, engines.get(name, {})) for name, spec in specs.items()},
        tokenizer=TokenizerEntry(file=TOKENIZER, pad_id=checkpoint.tokenizer.pad_token_id),
        tokenizer_2=(
            TokenizerEntry(file=TOKENIZER_2, pad_id=checkpoint.tokenizer_2.pad_token_id)
            if sizes.token_inputs == 2
            else None
        ),
        zero_unconditional=checkpoint.zero_unconditional,
        image_mean=tuple(extractor.image_mean),
        image_std=tuple(extractor.image_std),
        pose_threshold=checkpoint.config.pose_threshold,
        latent={"scaling_factor": vae.scaling_factor, "shift_factor": vae.get("shift_factor") or 0.0},
        golden=GOLDEN,
        blank_patch_tokens=BLANK if BLANK in files else None,
        sources={
            "checkpoint": source.name,
            "files": source.hashes,
            **({"loras": source.loras} if source.loras else {}),
        },
        tools=tool_versions(),
        verification=verification,
    )


def bundle_files(folder: Path) -> dict[str, Path]:
    """Every file of a staging folder by its name in the bundle."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    return {name: _version(name) for name in TOOLS}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _graph_entry(spec: GraphSpec, files: Mapping[str, Path], engines: Mapping[str, BuiltEngine]) -> GraphEntry:
    data = tuple(name for name in files if name == f"{spec.name}.onnx.data")
    return GraphEntry(file=f"{spec.name}.onnx", data=data, spec=spec, engines=engines)
