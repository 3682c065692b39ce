"""LoRAs fused into a base: W + weight * alpha / rank * B A, in float32, before anything is traced.

Three ways of naming are read: diffusers' (`unet.<module>.lora_A.weight`, and the older `lora.down`), PEFT's
(`base_model.model.<module>.lora_A.weight` beside an `adapter_config.json`) and kohya's (`lora_unet_<module, _ for .>`).
Kohya's names are looked up among the model's own modules: an underscore may have been a dot or an underscore.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from torch import Tensor, nn

from bolid_export.sources.files import PICKLES, listed, read_tensors
from bolid_export.sources.model import Base
from bolid_sdk.errors import InputError

PEFT_PREFIX, PEFT_CONFIG, HEADER = "base_model.model.", "adapter_config.json", "lora_adapter_metadata"
OUTER = "text_model."
"""Outer module of CLIP's text encoder, which newer versions of transformers no longer have."""

KEY = re.compile(r"(?P<module>.+?)\.(?:(?P<slot>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.weight|alpha)")
SLOTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", None: "alpha"}

# Settings of PEFT with which a change is more than alpha, rank and two matrices.
UNSUPPORTED = ("use_dora", "alpha_pattern", "lora_bias", "fan_in_fan_out")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file and how much of it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """ "style.safetensors" or "style.safetensors:0.7". Raises InputError."""
        path, colon, weight = text.rpartition(":")
        try:
            lora = cls(path=Path(path), weight=float(weight)) if colon else cls(path=Path(text))
        except ValueError:
            lora = cls(path=Path(text))
        if not lora.path.is_file():
            raise InputError(f"no such LoRA: {lora.path}; expected FILE or FILE:WEIGHT such as style.safetensors:0.7")
        if not math.isfinite(lora.weight):
            raise InputError(f"the LoRA {text} has no finite weight; expected FILE:WEIGHT such as {lora.path}:0.7")
        return lora


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Change of one module's weight: scale * up @ down. Convolutions: `down` has the kernel, `up` is 1 x 1."""

    down: Tensor
    up: Tensor
    scale: float

    def add_to(self, module: nn.Module, weight: float) -> None:
        """Raises RuntimeError when the shapes do not fit."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        module.weight.data += weight * self.scale * product.view_as(module.weight)


def fuse_loras(base: Base, loras: Sequence[Lora]) -> None:
    """Adds each LoRA to the weights of `base`, in place. Raises InputError that lists keys without a place."""
    if loras:
        # sums of float16 weights would lose what a small weight adds
        base.unet.float()
        base.text_encoder.float()
    modules = _modules(base)
    for lora in loras:
        for name, change in read_lora(lora.path, modules).items():
            try:
                change.add_to(modules[name], lora.weight)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"{lora.path} does not fit this model at {name}: {reason}") from error


def read_lora(path: Path, modules: Mapping[str, nn.Module]) -> dict[str, LowRank]:
    """The file's changes by module. Raises InputError that lists keys without a place."""
    state, settings = read_tensors(path), _settings(path)
    places = _places(modules)
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        match = KEY.fullmatch(_common_name(key))
        if match and (place := places.get(match["module"].replace(OUTER, ""))):
            found.setdefault(place, {})[SLOTS[match["slot"]]] = tensor
        else:
            unknown.append(key)
    if unknown or not found:
        raise InputError(
            f"{path}: {len(unknown)} of {len(state)} keys have no place in this model: {listed(unknown)}; expected a "
            "LoRA of this family, named as diffusers, PEFT or kohya do"
        )
    if any(key.startswith(PEFT_PREFIX) for key in state) and not settings:
        raise InputError(f"{path} is PEFT's, whose alpha is in {PEFT_CONFIG}; put that file beside it")
    return {place: _low_rank(path, place, parts, settings) for place, parts in found.items()}


def _low_rank(path: Path, place: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LowRank:
    if missing := {"down", "up"} - parts.keys():
        raise InputError(f"{path} has no {' and no '.join(sorted(missing))} weight for {place}; the file is incomplete")
    rank = parts["down"].shape[0]
    # "unet.lora_alpha" in diffusers' header, "lora_alpha" in PEFT's file; without either a change is what it is
    network = place.partition(".")[0]
    alpha = settings.get(f"{network}.lora_alpha", settings.get("lora_alpha", rank))
    rank_stabilised = settings.get(f"{network}.use_rslora", settings.get("use_rslora", False))
    alpha = float(parts.get("alpha", alpha))
    return LowRank(down=parts["down"], up=parts["up"], scale=alpha / (math.sqrt(rank) if rank_stabilised else rank))


def _settings(path: Path) -> dict[str, Any]:
    """What PEFT wrote beside the file, or diffusers into its header. Raises InputError for variants of LoRA."""
    beside = path.with_name(PEFT_CONFIG)
    text = beside.read_text(encoding="utf-8") if beside.is_file() else _header(path)
    try:
        settings = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"the settings of {path} are not valid JSON ({error}); get the file again") from error
    for name, value in settings.items():
        if name.rpartition(".")[2] in UNSUPPORTED and value:
            raise InputError(f"{path} was trained with {name}={value}, which is not supported; take a plain LoRA")
    return settings


def _header(path: Path) -> str | None:
    if path.suffix in PICKLES:
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(HEADER)


def _common_name(key: str) -> str:
    """`<module>.lora_A.weight` in place of diffusers' older names; kohya's stay as they are."""
    key = key.removeprefix(PEFT_PREFIX)
    if not key.startswith("text_encoder."):
        return next(iter(convert_unet_state_dict_to_peft({key: None})))
    style = StateDictType.DIFFUSERS_OLD if "_lora." in key else StateDictType.DIFFUSERS
    return next(iter(convert_state_dict_to_peft({key: None}, original_type=style)))


def _modules(base: Base) -> dict[str, nn.Module]:
    """Every layer that a LoRA may change, by its path in the pipeline."""
    return {
        f"{network}.{name.removeprefix(OUTER)}": module
        for network, root in (("unet", base.unet), ("text_encoder", base.text_encoder))
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _places(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Modules by every name that a file may have for them; bare names, as PEFT's, first mean the UNet."""
    places = {}
    for place in modules:
        network, _, name = place.partition(".")
        flat = name.replace(".", "_")
        kohya = [f"lora_unet_{flat}"] if network == "unet" else [f"lora_te{n}_text_model_{flat}" for n in ("", "1")]
        places |= dict.fromkeys((place, *kohya), place)
        places.setdefault(name, place)
    return places
