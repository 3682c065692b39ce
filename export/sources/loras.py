"""LoRAs fused into a base: W + weight * alpha / rank * B A, in float32, before anything is traced.

How files name layers and scales is the runtime's knowledge as well: `bolid_sdk.lora_names`, `bolid_sdk.lora_format`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from bolid_export.sources.files import PICKLES, read_tensors
from bolid_export.sources.model import Base
from bolid_sdk import lora_format
from bolid_sdk.errors import InputError
from bolid_sdk.lora_names import OUTER, TEXT_ENCODER, TEXT_ENCODER_2, UNET, names_in_files


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file and how much of it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """ "style.safetensors" or "style.safetensors:0.7". Raises InputError."""
        path, weight = lora_format.parse_lora(text)
        return cls(path=path, weight=weight)


class LowRank(lora_format.LowRank[Tensor]):
    """A change that can be added. Convolutions: `down` has the kernel, `up` is 1 x 1."""

    def add_to(self, module: nn.Module, weight: float) -> None:
        """Raises RuntimeError when the shapes do not fit."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        module.weight.data += weight * self.scale * product.view_as(module.weight)


def fuse_loras(base: Base, loras: Sequence[Lora]) -> None:
    """Adds each LoRA to the weights of `base`, in place. Raises InputError that lists keys without a place."""
    modules = changeable_modules(base)
    if loras:
        # sums of float16 weights would lose what a small weight adds
        for network in networks(base).values():
            network.float()
    for lora in loras:
        for name, change in read_lora(lora.path, modules).items():
            try:
                change.add_to(modules[name], lora.weight)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"{lora.path} does not fit this model at {name}: {reason}") from error


def read_lora(path: Path, modules: Mapping[str, nn.Module]) -> dict[str, LowRank]:
    """The file's changes by module. Raises InputError that lists keys without a place."""
    state = read_tensors(path)
    beside = lora_format.settings_beside(path, state)
    settings = lora_format.parse_settings(beside or _header(path), str(path))
    changes = lora_format.read_changes(state, settings, names_in_files(modules), str(path))
    return {name: LowRank(**vars(change)) for name, change in changes.items()}


def changeable_modules(base: Base) -> dict[str, nn.Module]:
    """Every layer that a LoRA may change, by its path in the pipeline: the UNet's first."""
    return {
        f"{network}.{name.removeprefix(OUTER)}": module
        for network, root in networks(base).items()
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def networks(base: Base) -> dict[str, nn.Module]:
    """What LoRAs are trained on, by its name in the pipeline."""
    found = {UNET: base.unet, TEXT_ENCODER: base.text_encoder, TEXT_ENCODER_2: base.text_encoder_2}
    return {name: network for name, network in found.items() if network is not None}


def _header(path: Path) -> str | None:
    if path.suffix in PICKLES:
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(lora_format.HEADER)
