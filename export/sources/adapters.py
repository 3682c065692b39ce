"""Adapters on a base: each file's kind and role, its keys, and the networks that are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterFullImageProjection
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from bolid_export.sources.adapter_kinds import (
    BOLID,
    FACE_WIDTH,
    INSTANT_ID,
    PULID,
    AdapterKind,
    Role,
    context_width,
    kind_of,
    lora_keys,
)
from bolid_export.sources.encoders import AverageViewEncoder, PooledProjection, ViewEncoder
from bolid_export.sources.families import width_name
from bolid_export.sources.files import listed, read_shapes, read_tensors, require_keys
from bolid_export.sources.identity_nets import identity_net_beside, is_controlnet, load_identity_net
from bolid_export.sources.loras import LowRank
from bolid_export.sources.model import Adapters, Features
from bolid_export.sources.pulid import LEVELS, VISION_TOKENS, VISION_WIDTH, IDEncoder, IDFormer
from bolid_sdk.contracts import PARTS
from bolid_sdk.errors import InputError
from bolid_sdk.orthogonal import MAX_NUM_ZERO
from bolid_training.model.adapter import PART_EMBEDDING, ZERO_TOKENS, pose_guider_layout
from bolid_training.model.attention import install_body_id_attention
from bolid_training.model.body_encoder import BodyEncoder

IDENTITY, IMAGE_PROMPT, POSE_GUIDER = "identity.safetensors", "image_prompt.safetensors", "pose_guider"
IDENTITY_NET = "identity_net"
BRANCHES: dict[Role, str] = {"identity": "identity", "image_prompt": "image"}
PLACES: dict[Role, str] = {
    "identity": IDENTITY,
    "image_prompt": IMAGE_PROMPT,
    "pose_guider": POSE_GUIDER,
    "identity_net": IDENTITY_NET,
}


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file or folder and what it is; a folder has no kind: it is a pose guider, or an IdentityNet."""

    path: Path
    kind: AdapterKind | None
    controlnet: bool = False

    @property
    def name(self) -> str:
        if self.kind:
            return self.kind.name
        return "IdentityNet" if self.controlnet else "T2I-Adapter"


def own_adapters(folder: Path) -> dict[Role, AdapterFile]:
    """Those that a checkpoint brings in `adapter/`."""
    return _adapters_in(folder / "adapter")


def open_adapters(path: Path) -> list[AdapterFile]:
    """One adapter, or all of a folder of BoLID's, as `bolid-train fit` writes it. Raises InputError."""
    if (path / IDENTITY).is_file():
        return list(_adapters_in(path).values())
    return [open_adapter(path)]


def _adapters_in(folder: Path) -> dict[Role, AdapterFile]:
    """See `PLACES`."""
    places = {role: folder / name for role, name in PLACES.items()}
    return {role: open_adapter(path) for role, path in places.items() if path.exists()}


def open_adapter(path: Path) -> AdapterFile:
    """Recognises an adapter by its content. Raises InputError for what is none, or none that can be exported."""
    if not path.exists():
        raise InputError(f"no such adapter: {path}")
    if path.is_dir():
        if (path / "config.json").is_file():
            return AdapterFile(path=path, kind=None, controlnet=is_controlnet(path))
        raise InputError(
            f"{path} is neither a pose guider nor an IdentityNet: expected a diffusers folder of a T2IAdapter or a "
            f"ControlNet with config.json, or a folder of BoLID's adapters with {IDENTITY}"
        )
    shapes = read_shapes(path)
    kind = kind_of(shapes)
    if kind is None:
        raise InputError(
            f"{path} is not an adapter: expected the keys image_proj.* and ip_adapter.* of an IP-Adapter or InstantID, "
            f"or id_adapter.* and id_adapter_attn_layers.* of PuLID for SDXL, found {listed(shapes)}"
        )
    if kind.needs:
        raise InputError(f"{path} is {kind.name}, which needs {kind.needs}")
    return AdapterFile(path=path, kind=kind)


def assign_roles(own: Mapping[Role, AdapterFile], chosen: Sequence[AdapterFile]) -> dict[Role, AdapterFile]:
    """Who does what: `chosen` in place of `own`.

    BoLID's adapter is the identity, and so is one that reads faces' embeddings. So is the first IP-Adapter, if nothing
    else is; another one is the image prompt. An IdentityNet belongs to its identity, beside which it may lie.
    Raises InputError when two are left for one role, and when none is the identity.
    """
    roles: dict[Role, AdapterFile] = {}
    taken = any(_is_identity(file) for file in chosen) or "identity" in own
    for file in chosen:
        role = _role(file, has_identity=taken or "identity" in roles)
        if role in roles:
            raise InputError(
                f"two adapters of one kind were given, both {role.replace('_', ' ')}: {roles[role].path} and "
                f"{file.path}; give one of each kind"
            )
        roles[role] = file
    roles = {**own, **roles}
    if "identity" not in roles:
        raise InputError(
            "the model has no identity adapter; name one with --adapter: an IP-Adapter (base, Plus, full, FaceID), "
            "InstantID's, PuLID's or BoLID's"
        )
    return _with_identity_net(roles, own, chosen)


def _with_identity_net(
    roles: dict[Role, AdapterFile], own: Mapping[Role, AdapterFile], chosen: Sequence[AdapterFile]
) -> dict[Role, AdapterFile]:
    """The IdentityNet that was chosen, or else the one that its identity was trained with, which lies beside it."""
    identity, net = roles["identity"], roles.pop("identity_net", None)
    if net in chosen:
        if identity.kind is not INSTANT_ID and identity in chosen:
            raise InputError(f"{net.path} is a ControlNet, which goes with InstantID's adapter, not {identity.name}'s")
    elif identity is not own.get("identity"):
        beside = identity_net_beside(identity.path)
        net = open_adapter(beside) if beside else None
    return {**roles, "identity_net": net} if net else roles


def _role(file: AdapterFile, *, has_identity: bool) -> Role:
    if file.kind is None:
        return "identity_net" if file.controlnet else "pose_guider"
    return "image_prompt" if has_identity and not _is_identity(file) else "identity"


def _is_identity(file: AdapterFile) -> bool:
    """Whether it cannot be an image prompt: it reads parts of a body, or a face."""
    return file.kind is not None and (file.kind is BOLID or file.kind.reads in ("embedding", "face"))


def attach_adapters(
    unet: UNet2DConditionModel, image_encoder: CLIPVisionModelWithProjection | None, roles: Mapping[Role, AdapterFile]
) -> Adapters:
    """Installs decoupled attention in `unet` and loads every adapter, in float32. Raises InputError."""
    files = {role: roles[role] for role in BRANCHES if role in roles}
    features_read(roles)
    attentions = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]
    layers = install_body_id_attention(unet, [BRANCHES[role] for role in files])
    states = {role: _read(file, unet, layers, image_encoder) for role, file in files.items()}
    for role, state in states.items():
        _load_keys_and_values(layers, BRANCHES[role], files[role].kind, state)
        if files[role].kind.loras:
            _fuse(attentions, state)
    patches = (image_encoder.config.image_size // image_encoder.config.patch_size) ** 2 + 1 if image_encoder else 1
    identity, prompt = files["identity"], files.get("image_prompt")
    projection = _projection(identity, unet, states["identity"])
    prompt_projection = _projection(prompt, unet, states["image_prompt"]) if prompt else None
    guider, net = roles.get("pose_guider"), roles.get("identity_net")
    identity_encoder = _identity_encoder(identity, projection, states["identity"])
    zeros = identity_encoder.zero_tokens if isinstance(identity_encoder, BodyEncoder) else 0
    return Adapters(
        layers=layers,
        identity_encoder=identity_encoder,
        identity_tokens=_tokens(projection, patches) + zeros,
        parts=PARTS if identity.kind is BOLID else 1,
        reads=identity.kind.reads,
        width=_width_read(identity, states["identity"]),
        image_projector=_pooled(prompt, prompt_projection) if prompt else None,
        image_tokens=_tokens(prompt_projection, patches) if prompt else 0,
        pose_guider=load_pose_guider(guider.path, unet) if guider else None,
        identity_net=load_identity_net(net.path, unet) if net else None,
        face_map=net is not None and identity.kind is INSTANT_ID,
        **_vision(projection),
    )


def _width_read(file: AdapterFile, state: Mapping[str, Tensor]) -> int:
    """Of CLIP's tokens, or of a face's embedding, to which PuLID appends EVA-CLIP's."""
    width = state[file.kind.projection + file.kind.first].shape[1]
    return width - VISION_WIDTH if file.kind.reads == "face" else width


def _vision(projection: nn.Module) -> dict[str, Any]:
    """What PuLID reads beside a face's embedding."""
    if not isinstance(projection, IDEncoder | IDFormer):
        return {}
    return {"vision_width": VISION_WIDTH, "vision_states": (LEVELS, VISION_TOKENS, projection.states_width)}


def load_pose_guider(folder: Path, unet: UNet2DConditionModel) -> T2IAdapter:
    """A diffusers T2IAdapter that fits the UNet's down blocks. Raises InputError."""
    try:
        guider = T2IAdapter.from_pretrained(folder)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder} is not a T2IAdapter: {' '.join(str(error).split())[:300]}") from error
    layout = pose_guider_layout(unet)
    expected = {name: layout[name] for name in ("channels", "downscale_factor")}
    found = {name: guider.config[name] for name in expected} | {"channels": list(guider.config.channels)}
    if found != expected:
        raise InputError(f"{folder} does not fit this model: it is made for {found}, the UNet takes {expected}")
    return guider.float().eval().requires_grad_(False)


def features_read(roles: Mapping[Role, AdapterFile]) -> Features:
    """What the adapters read of a picture. A bundle has one image encoder with one output: else raises InputError."""
    files = [roles[role] for role in BRANCHES if role in roles]
    if len({file.kind.reads for file in files}) > 1:
        named = ", ".join(f"{file.name} ({file.kind.reads})" for file in files)
        raise InputError(f"identity and image prompt read different things of a picture: {named}; take two alike")
    return files[0].kind.reads


def _fuse(attentions: Sequence[nn.Module], state: Mapping[str, Tensor]) -> None:
    """FaceID's changes of the UNet's own layers, in diffusers' order of attention layers, with full weight."""
    for index, attention in enumerate(attentions):
        names = list(lora_keys(index).items())
        for (down, layer), (up, _) in zip(names[::2], names[1::2], strict=True):
            LowRank(down=state[down], up=state[up], scale=1.0).add_to(attention.get_submodule(layer), 1.0)


def _read(
    file: AdapterFile,
    unet: UNet2DConditionModel,
    layers: nn.ModuleList,
    image_encoder: CLIPVisionModelWithProjection | None,
) -> dict[str, Tensor]:
    """The file's tensors, after its keys and widths were found to fit the model."""
    state = read_tensors(file.path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    width, expected = context_width(shapes), unet.config.cross_attention_dim
    if width not in (None, expected):
        raise InputError(
            f"{file.path} does not fit this model: its text is {width_name(width)} wide, the model's "
            f"{width_name(expected)}; take an {file.name} made for this family"
        )
    require_keys(file.path, file.name, state.keys() - file.kind.optional, file.kind.keys(len(layers)))
    _require_image_encoder(file, shapes, image_encoder)
    _require_width(file, file.kind.projection + file.kind.last, shapes, expected)
    if file.kind.reads == "face":
        _require_width(file, file.kind.projection + file.kind.first, shapes, FACE_WIDTH + VISION_WIDTH)
    if file.kind is BOLID:
        _require_shape(file, PART_EMBEDDING, shapes, (PARTS, image_encoder.config.hidden_size))
    for index, layer in enumerate(layers):
        for kv in "kv":
            _require_shape(file, file.kind.layer_key(index, kv), shapes, _layer_shape(layer, f"to_{kv}_ip.weight"))
    return state


def _require_image_encoder(file: AdapterFile, shapes: Mapping[str, tuple[int, ...]], encoder: nn.Module | None) -> None:
    if file.kind.reads in ("embedding", "face"):
        return
    width = encoder.config.projection_dim if file.kind.reads == "pooled" else encoder.config.hidden_size
    if (found := shapes[file.kind.projection + file.kind.first][1]) != width:
        raise InputError(
            f"{file.path} does not fit the image encoder: it reads embeddings {found} wide, the encoder's are {width}; "
            "name the encoder that the adapter was trained with: --image-encoder DIR"
        )


def _require_width(file: AdapterFile, name: str, shapes: Mapping[str, tuple[int, ...]], expected: int) -> None:
    """A weight's last axis: what a linear layer reads, or all of a norm."""
    if shapes[name][-1:] != (expected,):
        raise InputError(
            f"{file.path} does not fit this model: {name} is {shapes[name]}, expected {expected} as its last size"
        )


def _require_shape(
    file: AdapterFile, name: str, shapes: Mapping[str, tuple[int, ...]], expected: tuple[int, ...]
) -> None:
    if shapes[name] != expected:
        raise InputError(f"{file.path} does not fit this model: {name} is {shapes[name]}, expected {expected}")


def _layer_shape(layer: nn.Module, name: str) -> tuple[int, ...]:
    (first, *_) = layer.children()
    return tuple(first.get_parameter(name).shape)


def _load_keys_and_values(layers: nn.ModuleList, branch: str, kind: AdapterKind, state: Mapping[str, Tensor]) -> None:
    for index, layer in enumerate(layers):
        weights = {f"to_{kv}_ip.weight": state[kind.layer_key(index, kv)] for kv in "kv"}
        getattr(layer, branch).load_state_dict(weights)


def _projection(file: AdapterFile, unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> nn.Module:
    """diffusers' own module for the published keys `image_proj.*`, or PuLID's."""
    prefix = file.kind.projection
    published = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        if file.kind.reads == "face":
            return (IDEncoder if file.kind is PULID else IDFormer)(published)
        return unet._convert_ip_adapter_image_proj_to_diffusers(published, low_cpu_mem_usage=False)
    except RuntimeError as error:
        raise InputError(f"{file.path} is no {file.name}: {' '.join(str(error).split())[:300]}") from error


def _identity_encoder(file: AdapterFile, projection: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    if file.kind is not BOLID:
        return _view_encoder(file, projection).eval().requires_grad_(False)
    parts, width = state[PART_EMBEDDING].shape
    tokens, hidden = projection.latents.shape[1:]
    output = projection.proj_out.out_features
    sizes = {"embed_dim": width, "output_dim": output, "width": hidden, "tokens": tokens}
    encoder = BodyEncoder(parts=parts, zero_tokens=_zero_tokens(file, state), **sizes)
    encoder.part_embedding.data.copy_(state[PART_EMBEDDING])
    encoder.resampler = projection
    return encoder.eval().requires_grad_(False)


def _zero_tokens(file: AdapterFile, state: Mapping[str, Tensor]) -> int:
    said = state.get(ZERO_TOKENS, torch.tensor([0]))
    if said.shape != (1,) or said.is_floating_point() or not 0 <= said.item() <= MAX_NUM_ZERO:
        raise InputError(
            f"{file.path}: {ZERO_TOKENS} is {said.flatten()[:4].tolist()}; "
            f"expected one whole number from 0 to {MAX_NUM_ZERO}"
        )
    return int(said.item())


def _view_encoder(file: AdapterFile, projection: nn.Module) -> nn.Module:
    """How several references of a person become tokens."""
    if file.kind.reads == "face":
        return projection
    # which reads an embedding as the sequence's only token, and so needs no pooling
    return AverageViewEncoder(projection) if file.kind is INSTANT_ID else ViewEncoder(_pooled(file, projection))


def _pooled(file: AdapterFile, projection: nn.Module) -> nn.Module:
    return (projection if file.kind.reads == "patches" else PooledProjection(projection)).eval().requires_grad_(False)


def _tokens(projection: nn.Module, patches: int) -> int:
    """Tokens of one picture: a Resampler's queries, a pooled projection's number, or a token for each patch."""
    if isinstance(projection, IPAdapterFullImageProjection):
        return patches
    for name in ("num_image_text_embeds", "num_tokens", "tokens"):
        if hasattr(projection, name):
            return getattr(projection, name)
    return projection.latents.shape[1]
