"""Kinds of adapters, told by the keys of a file and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from bolid_export.sources.files import Shapes
from bolid_export.sources.model import Features
from bolid_export.sources.pulid import id_encoder_keys, id_former_keys
from bolid_training.model.adapter import PART_EMBEDDING, ZERO_TOKENS

Role = Literal["identity", "image_prompt", "pose_guider", "identity_net"]

DEPTH = 4  # of every published Resampler, and the only one that diffusers reads
FACE_WIDTH = 512
"""Of ArcFace's embeddings, and of no published CLIP's tokens."""


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """`mark` starts a key of this kind, and no key of the kinds that are asked before it.

    `projection` starts the keys of what makes the tokens; `first` and `last` of its weights are as wide as what it
    `reads` and as the text. `width`: of `first`, where names alone do not tell the kind. `key_value`: names of an
    attention layer's own weights, by its number and "k" or "v". `loras`: it also has low-rank changes of every
    attention layer. `needs`: what the runtime would have to have, for kinds that are recognised and refused.
    """

    name: str
    mark: str
    image_proj: Callable[[], Iterable[str]]
    projection: str = "image_proj."
    first: str = "proj_in.weight"
    last: str = "norm_out.weight"
    width: int | None = None
    key_value: str = "ip_adapter.{}.to_{}_ip.weight"
    reads: Features = "patches"
    loras: bool = False
    needs: str | None = None

    def keys(self, layers: int) -> set[str]:
        """Every key of a file for a UNet with so many cross-attention layers."""
        attention = {self.layer_key(i, kv) for i in range(layers) for kv in "kv"}
        own = {PART_EMBEDDING} if self is BOLID else set()
        if self.loras:
            own |= {key for index in range(2 * layers) for key in lora_keys(index)}
        return attention | own | {self.projection + name for name in self.image_proj()}

    @property
    def optional(self) -> set[str]:
        """Keys that a file may also have."""
        return {ZERO_TOKENS} if self is BOLID else set()

    def layer_key(self, layer: int, kv: str) -> str:
        """Name of the keys' or values' weight of a cross-attention layer: files count self-attention too."""
        return self.key_value.format(2 * layer + 1, kv)

    def is_kind_of(self, shapes: Shapes) -> bool:
        """Whether a file with these tensors is of this kind, if it is of none that is asked before."""
        marked = any(name.startswith(self.mark) for name in shapes)
        return marked and self.width in (None, *shapes.get(self.projection + self.first, ())[1:])


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
INSTANT_ID = AdapterKind(
    name="InstantID", mark="image_proj.latents", image_proj=_resampler, width=FACE_WIDTH, reads="embedding"
)
PULID = AdapterKind(
    name="PuLID v1",
    mark="id_adapter.body.",
    image_proj=id_encoder_keys,
    projection="id_adapter.",
    first="body.0.weight",
    last="mapping_0.6.bias",
    key_value="id_adapter_attn_layers.{}.id_to_{}.weight",
    reads="face",
)
PULID_1_1 = replace(
    PULID,
    name="PuLID v1.1",
    mark="id_adapter.latents",
    image_proj=id_former_keys,
    first="id_embedding_mapping.0.weight",
    last="proj_out",
)

KINDS = (BOLID, FACE_ID_PLUS, INSTANT_ID, PLUS, BASE, FULL, FACE_ID, PULID, PULID_1_1)


def kind_of(shapes: Shapes) -> AdapterKind | None:
    """The first kind that a file with these tensors can be."""
    return next((kind for kind in KINDS if kind.is_kind_of(shapes)), None)


def context_width(shapes: Shapes) -> int | None:
    """Width of the tokens that an adapter's keys and values read: the cross-attention width of its model."""
    ends = (".to_k_ip.weight", ".id_to_k.weight")
    widths = [shape[1] for name, shape in shapes.items() if name.endswith(ends) and len(shape) == 2]
    return widths[0] if widths else None
