"""Reading weights that strangers have made: safetensors, or pickles of nothing but tensors."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from bolid_sdk.errors import InputError, listed

Shapes = Mapping[str, tuple[int, ...]]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its name, in float32; nested dictionaries become dotted names.

    Pickles are read by PyTorch's `weights_only`, which runs no code. Raises InputError.
    """
    try:
        state = load_file(path) if path.suffix not in PICKLES else _unpickle(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({_one_line(error)})") from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, from the header alone where there is one. Raises InputError."""
    if path.suffix in PICKLES:
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({_one_line(error)})") from error


def require_keys(path: Path, what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises InputError that lists the missing and the unknown keys of a file that is said to be a `what`."""
    found, expected = set(found), set(expected)
    require_no_differences(path, f"{what} for this model", expected - found, found - expected)


def require_no_differences(path: Path, what: str, missing: Collection[str], unknown: Collection[str]) -> None:
    """Raises InputError that counts both and lists the first few."""
    differences = [
        f"{len(keys)} {word}: {listed(keys)}" for word, keys in (("missing", missing), ("unknown", unknown)) if keys
    ]
    if differences:
        raise InputError(f"{path} has not the keys of {what}: {'; '.join(differences)}")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, or of the files of a folder one after the other."""
    digest = hashlib.sha256()
    for file in weight_files(path) if path.is_dir() else [path]:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Files that are read of a folder: pickles beside safetensors are not."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix not in PICKLES)


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        return _flatten(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = _one_line(error)
        raise InputError(f"{path} holds more than tensors, or is damaged, and is not read ({reason})") from error


def _flatten(values: object, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(values, Tensor):
        return {prefix: values}
    if not isinstance(values, Mapping):
        return {}  # optimizer steps and the like
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
