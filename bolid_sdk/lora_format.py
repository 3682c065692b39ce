"""What a LoRA file says of each layer, whoever wrote it: W + weight * scale * up @ down.

Written for tensors of any library: the export reads them with PyTorch, the runtime with NumPy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from bolid_sdk.errors import InputError, listed
from bolid_sdk.lora_names import OUTER

PEFT_PREFIX, PEFT_CONFIG, HEADER = "base_model.model.", "adapter_config.json", "lora_adapter_metadata"

KEY = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.(?P<slot>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.weight"
    r"|\.(?P<alpha>alpha)"
    r"|(?:\.lora_linear_layer|\.lora|_lora)\.(?P<older>down|up)\.weight)"
)
SLOTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}

# Settings of PEFT with which a change is more than alpha, rank and two matrices.
UNSUPPORTED = ("use_dora", "alpha_pattern", "lora_bias", "fan_in_fan_out")


class Sized(Protocol):
    """A tensor of NumPy or PyTorch."""

    @property
    def shape(self) -> Any: ...

    def __float__(self) -> float: ...


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True, kw_only=True)
class LowRank(Generic[T]):
    """Change of one layer's weight. `down` [rank, in], `up` [out, rank]; of a convolution with its kernel behind."""

    down: T
    up: T
    scale: float


def parse_lora(text: str) -> tuple[Path, float]:
    """ "style.safetensors", or with a weight "style.safetensors:0.7". Raises InputError."""
    file, colon, number = text.rpartition(":")
    try:
        path, weight = (Path(file), float(number)) if colon else (Path(text), 1.0)
    except ValueError:
        path, weight = Path(text), 1.0
    if not path.is_file():
        raise InputError(f"no such LoRA: {path}; expected FILE or FILE:WEIGHT such as style.safetensors:0.7")
    if not math.isfinite(weight):
        raise InputError(f"the LoRA {text} has no finite weight; expected FILE:WEIGHT such as {path}:0.7")
    return path, weight


def settings_beside(path: Path, keys: Iterable[str]) -> str | None:
    """PEFT keeps alpha and the like in a file of its own. Raises InputError when it cannot be read.

    `keys` are those of the file at `path`: one that others wrote may lie in a folder with PEFT's.
    """
    beside = path.with_name(PEFT_CONFIG)
    if not _named_by_peft(keys) or not beside.is_file():
        return None
    try:
        return beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{beside}, the settings of {path.name}, cannot be read ({error}); get that file again"
        ) from error


def parse_settings(text: str | None, file: str) -> dict[str, Any]:
    """PEFT's settings, from beside the file or from its header (`HEADER`). Raises InputError for variants of LoRA."""
    try:
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"the settings of {file} are not valid JSON ({error}); get the file again") from error
    if not isinstance(settings, dict):
        raise InputError(f"the settings of {file} are no JSON object; get the file again")
    for name, value in settings.items():
        if name.rpartition(".")[2] in UNSUPPORTED and value:
            raise InputError(f"{file} was trained with {name}={value}, which is not supported; take a plain LoRA")
    return settings


def read_changes(
    state: Mapping[str, T], settings: Mapping[str, Any], names: Mapping[str, str], file: str, hint: str = ""
) -> dict[str, LowRank[T]]:
    """A file's changes by layer; `names` as of `bolid_sdk.lora_names`.

    Raises InputError that lists the keys without a place, with `hint` about them, or says what is missing.
    """
    found: dict[str, dict[str, T]] = {}
    unknown = []
    for key, tensor in state.items():
        match = KEY.fullmatch(key.removeprefix(PEFT_PREFIX).replace(".processor.", "."))
        layer = names.get(match["module"].replace(OUTER, "")) if match else None
        if match is None or layer is None:
            unknown.append(key)
        else:
            found.setdefault(layer, {})[match["alpha"] or match["older"] or SLOTS[match["slot"]]] = tensor
    if unknown or not found:
        raise InputError(
            f"{file}: {len(unknown)} of {len(state)} keys have no place in this model: {listed(unknown)}; expected a "
            f"LoRA of this family, named as diffusers, PEFT or kohya do{hint}"
        )
    if _named_by_peft(state) and not settings:
        raise InputError(f"{file} is PEFT's, whose alpha is in {PEFT_CONFIG}; put that file beside it")
    return {layer: _low_rank(file, layer, parts, settings) for layer, parts in found.items()}


def _named_by_peft(keys: Iterable[str]) -> bool:
    return any(key.startswith(PEFT_PREFIX) for key in keys)


def _low_rank(file: str, layer: str, parts: Mapping[str, T], settings: Mapping[str, Any]) -> LowRank[T]:
    if missing := {"down", "up"} - parts.keys():
        raise InputError(f"{file} has no {' and no '.join(sorted(missing))} weight for {layer}; the file is incomplete")
    rank = parts["down"].shape[0]
    # "unet.lora_alpha" in diffusers' header, "lora_alpha" in PEFT's file; without either a change is what it is
    network = layer.partition(".")[0]
    alpha = settings.get(f"{network}.lora_alpha", settings.get("lora_alpha", rank))
    rank_stabilised = settings.get(f"{network}.use_rslora", settings.get("use_rslora", False))
    try:
        alpha = float(parts.get("alpha", alpha))
        return LowRank(down=parts["down"], up=parts["up"], scale=alpha / (math.sqrt(rank) if rank_stabilised else rank))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{file}: alpha {alpha!r} or rank {rank} of {layer} is unusable; get the file again"
        ) from error
