"""Kinds of adapters, told by the keys of a file and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bolid_export.sources.files import Shapes
from bolid_export.sources.model import Features

Role = Literal["identity", "image_prompt", "pose_guider"]

PART_EMBEDDING = "body.part_embedding"
DEPTH = 4  # of every published Resampler, and the only one that diffusers reads


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """`mark` starts a key of this kind, and no key of the kinds that are asked before it.

    `first` and `last` of its weights are as wide as what it `reads` and as the text. `loras`: it also has low-rank
    changes of every attention layer. `needs`: what the runtime would have to have, for kinds that are recognised and
    refused.
    """

    name: str
    mark: str
    image_proj: Callable[[], Iterable[str]]
    first: str = "proj_in.weight"
    last: str = "norm_out.weight"
    reads: Features = "patches"
    loras: bool = False
    needs: str | None = None

    def keys(self, layers: int) -> set[str]:
        """Every key of a file for a UNet with so many cross-attention layers."""
        attention = {f"ip_adapter.{2 * i + 1}.to_{kv}_ip.weight" for i in range(layers) for kv in "kv"}
        own = {PART_EMBEDDING} if self is BOLID else set()
        if self.loras:
            own |= {key for index in range(2 * layers) for key in lora_keys(index)}
        return attention | own | {f"image_proj.{name}" for name in self.image_proj()}


def lora_keys(index: int) -> dict[str, str]:
    """Names of the low-rank changes of attention layer `index`, cross and self, and the layers they change."""
    return {
        f"ip_adapter.{index}.{layer}_lora.{slot}.weight": {"to_out": "to_out.0"}.get(layer, layer)
        for layer in ("to_q", "to_k", "to_v", "to_out")
        for slot in ("down", "up")
    }


def _with_bias(*names: str) -> list[str]:
    return [f"{name}.{end}" for name in names for end in ("weight", "bias")]


def _resampler() -> list[str]:
    keys = ["latents", *_with_bias("proj_in", "proj_out", "norm_out")]
    for layer in (f"layers.{index}" for index in range(DEPTH)):
        keys += _with_bias(f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0")
        keys += [f"{layer}.{name}.weight" for name in ("0.to_q", "0.to_kv", "0.to_out", "1.1", "1.3")]
    return keys


def _nothing() -> list[str]:
    return []


FACE = "a face embedding and CLIP's patches of the face at once; take FaceID, Plus-face or full-face"

BOLID = AdapterKind(name="BoLID", mark=PART_EMBEDDING, image_proj=_resampler)
FACE_ID_PLUS = AdapterKind(
    name="IP-Adapter FaceID Plus", mark="image_proj.perceiver_resampler.proj_in.weight", image_proj=_nothing, needs=FACE
)
PLUS = AdapterKind(name="IP-Adapter Plus", mark="image_proj.latents", image_proj=_resampler)
BASE = AdapterKind(
    name="IP-Adapter",
    mark="image_proj.proj.weight",
    image_proj=lambda: _with_bias("proj", "norm"),
    first="proj.weight",
    last="norm.weight",
    reads="pooled",
)
FULL = AdapterKind(
    name="IP-Adapter full",
    mark="image_proj.proj.3.weight",
    image_proj=lambda: _with_bias("proj.0", "proj.2", "proj.3"),
    first="proj.0.weight",
    last="proj.3.weight",
)
FACE_ID = AdapterKind(
    name="IP-Adapter FaceID",
    mark="image_proj.norm.weight",
    image_proj=lambda: _with_bias("proj.0", "proj.2", "norm"),
    first="proj.0.weight",
    last="norm.weight",
    reads="embedding",
    loras=True,
)
PULID = AdapterKind(
    name="PuLID",
    mark="id_adapter.",
    image_proj=_nothing,
    needs="SDXL, a face network and its own attention",
)

KINDS = (BOLID, FACE_ID_PLUS, PLUS, BASE, FULL, FACE_ID, PULID)


def kind_of(shapes: Shapes) -> AdapterKind | None:
    """The first kind whose mark some key starts with."""
    return next((kind for kind in KINDS if any(name.startswith(kind.mark) for name in shapes)), None)


def context_width(shapes: Shapes) -> int | None:
    """Width of the tokens that an adapter's keys and values read: the cross-attention width of its model."""
    widths = [shape[1] for name, shape in shapes.items() if name.endswith(".to_k_ip.weight") and len(shape) == 2]
    return widths[0] if widths else None
