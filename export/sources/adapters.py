"""Adapters from files of their own, in place of the checkpoint's."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bolid_sdk.errors import InputError
from bolid_training.model.adapter import Adapter

IDENTITY, IMAGE_PROMPT, POSE_GUIDER = "identity.safetensors", "image_prompt.safetensors", "pose_guider"


def replace_adapters(adapter: Adapter, original: Path, chosen: Sequence[Path]) -> dict[str, str]:
    """Loads `chosen` into `adapter`, and what they leave out from the folder `original`.

    Returns the sha256 of the chosen files, by place in a checkpoint. Raises InputError for files that are no adapter,
    do not fit the model, or are of the same kind.
    """
    places = {name: original / name for name in (IDENTITY, IMAGE_PROMPT, POSE_GUIDER)}
    kinds = [adapter_kind(path) for path in chosen]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"two adapters of one kind were given ({', '.join(kinds)}); give one of each kind")
    places |= dict(zip(kinds, chosen, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        for name, path in places.items():
            (Path(folder) / name).symlink_to(path.resolve())
        try:
            adapter.load(Path(folder))
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            given = ", ".join(str(path) for path in chosen)
            raise InputError(f"{given} does not fit this model: {' '.join(str(error).split())[:300]}") from error
    return {f"adapter/{kind}": _digest(path) for kind, path in zip(kinds, chosen, strict=True)}


def adapter_kind(path: Path) -> str:
    """The adapter's place in a checkpoint, told by its content: a T2IAdapter folder, or keys of IP-Adapter-Plus."""
    if not path.exists():
        raise InputError(f"no such adapter: {path}")
    if path.is_dir():
        if (path / "config.json").is_file():
            return POSE_GUIDER
        raise InputError(f"{path} is not a pose guider: expected a diffusers T2IAdapter folder with config.json")
    keys = _keys(path)
    if not any(key.startswith("image_proj.") for key in keys):
        raise InputError(
            f"{path} is not an adapter: expected the keys image_proj.* and ip_adapter.* of IP-Adapter-Plus"
        )
    return IDENTITY if "body.part_embedding" in keys else IMAGE_PROMPT


def _keys(path: Path) -> Iterable[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}); pickles are not read, convert them") from error


def _digest(path: Path) -> str:
    files = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
