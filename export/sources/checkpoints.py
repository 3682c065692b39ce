"""Opening a checkpoint folder, with an error that says what the folder is when it is not one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

import bolid_training
from bolid_export.sources.adapters import replace_adapters
from bolid_export.sources.stored import memory_dtype
from bolid_sdk.errors import InputError
from bolid_training.model.checkpoint import Checkpoint, load_checkpoint

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "image_encoder", "scheduler", "pose_estimator", "adapter")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open checkpoint and where it came from; `hashes`: sha256 of every file, by path relative to its folder."""

    name: str
    checkpoint: Checkpoint
    hashes: dict[str, str]


def default_checkpoint() -> Path:
    """The avatar model that comes with BoLID."""
    return Path(bolid_training.__file__).parent / "weights" / "avatar"


def open_source(folder: Path, adapters: Sequence[Path] = ()) -> Source:
    """Reads a checkpoint and puts `adapters` in place of its own. Raises InputError.

    Networks are float32, or float16 where that is what a large checkpoint has on disk (`bolid_export.residency`).
    """
    check_folder(folder)
    try:
        checkpoint = load_checkpoint(folder, memory_dtype(folder))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"cannot read the checkpoint {folder}: {_one_line(error)}") from error
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in _files(folder)}
    if adapters:
        hashes |= replace_adapters(checkpoint.adapter, folder / "adapter", adapters)
    return Source(name=folder.resolve().name, checkpoint=checkpoint, hashes=hashes)


def check_folder(folder: Path) -> None:
    """Raises InputError unless `folder` looks like a checkpoint with weights in safetensors."""
    expected = "expected a diffusers folder with model_index.json, as bolid-train writes it"
    if not folder.exists():
        raise InputError(f"no such checkpoint: {folder}; {expected}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; {expected}")
    if (folder / "manifest.json").is_file():
        raise InputError(f"{folder} is a bundle, which is an export's result; {expected}")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no model_index.json; {expected}")
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise InputError(f"the checkpoint {folder} lacks {', '.join(missing)}; BoLID needs {', '.join(PARTS)}")
    if pickles := [file for file in _files(folder) if file.suffix in PICKLES]:
        raise InputError(f"{pickles[0]} is a pickle, which can run code when it is read; convert it to safetensors")


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
