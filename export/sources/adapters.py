"""Adapters on a base: each file's kind and role, its keys, and the networks that are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterFullImageProjection
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from bolid_export.sources.adapter_kinds import (
    BOLID,
    PART_EMBEDDING,
    AdapterKind,
    Role,
    context_width,
    kind_of,
    lora_keys,
)
from bolid_export.sources.encoders import PooledProjection, ViewEncoder
from bolid_export.sources.families import width_name
from bolid_export.sources.files import listed, read_shapes, read_tensors, require_keys
from bolid_export.sources.loras import LowRank
from bolid_export.sources.model import Adapters, Features
from bolid_sdk.contracts import PARTS
from bolid_sdk.errors import InputError
from bolid_training.model.adapter import pose_guider_layout
from bolid_training.model.attention import install_body_id_attention
from bolid_training.model.body_encoder import BodyEncoder
from bolid_training.model.identity_net import load_identity_net

IDENTITY, IMAGE_PROMPT, POSE_GUIDER = "identity.safetensors", "image_prompt.safetensors", "pose_guider"
IDENTITY_NET = "identity_net"
BRANCHES: dict[Role, str] = {"identity": "identity", "image_prompt": "image"}
PLACES: dict[Role, str] = {"identity": IDENTITY, "image_prompt": IMAGE_PROMPT, "pose_guider": POSE_GUIDER}


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file or folder and what it is; a pose guider has no kind."""

    path: Path
    kind: AdapterKind | None

    @property
    def name(self) -> str:
        return self.kind.name if self.kind else "T2I-Adapter"


def own_adapters(folder: Path) -> dict[Role, AdapterFile]:
    """Those that a checkpoint brings: `adapter/identity.safetensors`, `image_prompt.safetensors`, `pose_guider/`."""
    places = {role: folder / "adapter" / name for role, name in PLACES.items()}
    return {role: open_adapter(path) for role, path in places.items() if path.exists()}


def open_adapter(path: Path) -> AdapterFile:
    """Recognises an adapter by its content. Raises InputError for what is none, or none that can be exported."""
    if not path.exists():
        raise InputError(f"no such adapter: {path}")
    if path.is_dir():
        if (path / "config.json").is_file():
            return AdapterFile(path=path, kind=None)
        raise InputError(f"{path} is not a pose guider: expected a diffusers T2IAdapter folder with config.json")
    shapes = read_shapes(path)
    kind = kind_of(shapes)
    if kind is None:
        raise InputError(
            f"{path} is not an adapter: expected the keys image_proj.* and ip_adapter.* of an IP-Adapter, found "
            f"{listed(shapes)}"
        )
    if kind.needs:
        raise InputError(f"{path} is {kind.name}, which needs {kind.needs}")
    return AdapterFile(path=path, kind=kind)


def assign_roles(own: Mapping[Role, AdapterFile], chosen: Sequence[AdapterFile]) -> dict[Role, AdapterFile]:
    """Who does what: `chosen` in place of `own`.

    BoLID's adapter is the identity. So is the first IP-Adapter, if nothing else is; another one is the image prompt.
    Raises InputError when two are left for one role, and when none is the identity.
    """
    roles: dict[Role, AdapterFile] = {}
    bolid = any(file.kind is BOLID for file in chosen) or "identity" in own
    for file in chosen:
        role = _role(file, has_identity=bolid or "identity" in roles)
        if role in roles:
            raise InputError(
                f"two adapters of one kind were given, both {role.replace('_', ' ')}: {roles[role].path} and "
                f"{file.path}; give one of each kind"
            )
        roles[role] = file
    roles = {**own, **roles}
    if "identity" not in roles:
        raise InputError(
            "the model has no identity adapter; name one with --adapter: an IP-Adapter (base, Plus, full) or BoLID's"
        )
    return roles


def _role(file: AdapterFile, *, has_identity: bool) -> Role:
    if file.kind is None:
        return "pose_guider"
    return "image_prompt" if file.kind is not BOLID and has_identity else "identity"


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
        _load_keys_and_values(layers, BRANCHES[role], state)
        if files[role].kind.loras:
            _fuse(attentions, state)
    patches = (image_encoder.config.image_size // image_encoder.config.patch_size) ** 2 + 1 if image_encoder else 1
    identity, prompt = files["identity"], files.get("image_prompt")
    projection = _projection(identity, unet, states["identity"])
    prompt_projection = _projection(prompt, unet, states["image_prompt"]) if prompt else None
    guider = roles.get("pose_guider")
    return Adapters(
        layers=layers,
        identity_encoder=_identity_encoder(identity, projection, states["identity"]),
        identity_tokens=_tokens(projection, patches),
        parts=PARTS if identity.kind is BOLID else 1,
        reads=identity.kind.reads,
        width=states["identity"][f"image_proj.{identity.kind.first}"].shape[1],
        image_projector=_pooled(prompt, prompt_projection) if prompt else None,
        image_tokens=_tokens(prompt_projection, patches) if prompt else 0,
        pose_guider=load_pose_guider(guider.path, unet) if guider else None,
        # it lies beside the identity that it was trained with
        identity_net=_identity_net(identity.path.parent / IDENTITY_NET),
    )


def _identity_net(folder: Path) -> ControlNetModel | None:
    if not folder.is_dir():
        return None
    try:
        return load_identity_net(folder)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder} is no ControlNet: {' '.join(str(error).split())[:300]}") from error


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
    require_keys(file.path, file.name, state, file.kind.keys(len(layers)))
    _require_image_encoder(file, shapes, image_encoder)
    _require_shape(file, f"image_proj.{file.kind.last}", shapes, (expected,))
    if file.kind is BOLID:
        _require_shape(file, PART_EMBEDDING, shapes, (PARTS, image_encoder.config.hidden_size))
    for index, layer in enumerate(layers):
        for name in ("to_k_ip.weight", "to_v_ip.weight"):
            _require_shape(file, f"ip_adapter.{2 * index + 1}.{name}", shapes, _layer_shape(layer, name))
    return state


def _require_image_encoder(file: AdapterFile, shapes: Mapping[str, tuple[int, ...]], encoder: nn.Module | None) -> None:
    if file.kind.reads == "embedding":
        return
    width = encoder.config.projection_dim if file.kind.reads == "pooled" else encoder.config.hidden_size
    if (found := shapes[f"image_proj.{file.kind.first}"][1]) != width:
        raise InputError(
            f"{file.path} does not fit the image encoder: it reads embeddings {found} wide, the encoder's are {width}; "
            "name the encoder that the adapter was trained with: --image-encoder DIR"
        )


def _require_shape(
    file: AdapterFile, name: str, shapes: Mapping[str, tuple[int, ...]], expected: tuple[int, ...]
) -> None:
    if shapes[name] != expected:
        raise InputError(f"{file.path} does not fit this model: {name} is {shapes[name]}, expected {expected}")


def _layer_shape(layer: nn.Module, name: str) -> tuple[int, ...]:
    (first, *_) = layer.children()
    return tuple(first.get_parameter(name).shape)


def _load_keys_and_values(layers: nn.ModuleList, branch: str, state: Mapping[str, Tensor]) -> None:
    for index, layer in enumerate(layers):
        prefix = f"ip_adapter.{2 * index + 1}."
        names = ("to_k_ip.weight", "to_v_ip.weight")
        getattr(layer, branch).load_state_dict({name: state[prefix + name] for name in names})


def _projection(file: AdapterFile, unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> nn.Module:
    """diffusers' own module for the published keys `image_proj.*`."""
    prefix = "image_proj."
    published = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        return unet._convert_ip_adapter_image_proj_to_diffusers(published, low_cpu_mem_usage=False)
    except RuntimeError as error:
        raise InputError(f"{file.path} is no {file.name}: {' '.join(str(error).split())[:300]}") from error


def _identity_encoder(file: AdapterFile, projection: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    if file.kind is not BOLID:
        return ViewEncoder(_pooled(file, projection)).eval().requires_grad_(False)
    parts, width = state[PART_EMBEDDING].shape
    tokens, hidden = projection.latents.shape[1:]
    output = projection.proj_out.out_features
    encoder = BodyEncoder(parts=parts, embed_dim=width, output_dim=output, width=hidden, tokens=tokens)
    encoder.part_embedding.data.copy_(state[PART_EMBEDDING])
    encoder.resampler = projection
    return encoder.eval().requires_grad_(False)


def _pooled(file: AdapterFile, projection: nn.Module) -> nn.Module:
    return (projection if file.kind.reads == "patches" else PooledProjection(projection)).eval().requires_grad_(False)


def _tokens(projection: nn.Module, patches: int) -> int:
    """Tokens of one picture: a Resampler's queries, a pooled projection's number, or a token for each patch."""
    if isinstance(projection, IPAdapterFullImageProjection):
        return patches
    known = getattr(projection, "num_image_text_embeds", None) or getattr(projection, "num_tokens", None)
    return known or projection.latents.shape[1]
