"""Which layers take LoRAs as inputs: the linear ones of the UNet's attention blocks and of the text encoder.

These are what diffusers', kohya's and PEFT's trainers change by default: projections of attention, feed-forward, and a
block's first and last projection, which in SD1.5 are 1 x 1 convolutions. Spatial convolutions and the time embedding,
which LoCon and the few-step LoRAs (LCM) change as well, are left to fusing: as inputs they would be convolutions with
weights that are not known when an engine is built.
"""

from __future__ import annotations

import re

from torch import nn

from bolid_export.sources.loras import changeable_modules
from bolid_export.sources.model import Base
from bolid_sdk.contracts import LoraLayer

# The adapter's keys and values live in attention layers too, as `processor`.
PLACES = re.compile(r"unet\.(?!.*\.processor\.).*\.?attentions\..+|text_encoder(_2)?\..*(self_attn|mlp)\..+")


def hot_layers(base: Base) -> list[LoraLayer]:
    """In the order of their rows."""
    return [LoraLayer(name, *_widths(module)) for name, module in hot_modules(base).items()]


def hot_modules(base: Base) -> dict[str, nn.Module]:
    """The same layers themselves, by their names."""
    modules = changeable_modules(base)
    return {name: module for name, module in modules.items() if PLACES.fullmatch(name) and _is_matrix(module)}


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or tuple(module.kernel_size) == (1, 1)


def _widths(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels, module.out_channels
