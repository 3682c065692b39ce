"""The BoLID adapter on a frozen UNet: body encoder, image projector, decoupled keys and values, pose guider.

On disk the two token branches are IP-Adapter-Plus files, the guider is a diffusers T2IAdapter folder, and InstantID's
IdentityNet, if there is one, a diffusers ControlNet folder.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bolid_training.model.attention import install_body_id_attention
from bolid_training.model.body_encoder import BodyEncoder, build_identity_encoder, resampler
from bolid_training.model.config import AvatarConfig
from bolid_training.model.identity_net import build_identity_net

PART_EMBEDDING = "body.part_embedding"
ZERO_TOKENS = "body.zero_tokens"
"""How many tokens of zeros there are, int64 [1], in files of adapters that have some."""

# a part of a Resampler weight's name in diffusers, and in IP-Adapter's files
_RESAMPLER_NAMES = (
    ("ln0", "0.norm1"),
    ("ln1", "0.norm2"),
    ("attn.to_q", "0.to_q"),
    ("attn.to_k", "0.to_kv"),
    ("attn.to_v", "0.to_kv"),
    ("attn.to_out.0", "0.to_out"),
    ("ff.0", "1.0"),
    ("ff.1.net.0.proj", "1.1"),
    ("ff.1.net.2", "1.3"),
)


def build_pose_guider(unet: UNet2DConditionModel) -> T2IAdapter:
    """T2I-Adapter (arXiv:2302.08453): a drawn skeleton [B, 3, H, W] in [0, 1] -> a feature map for each down block."""
    return T2IAdapter(in_channels=3, num_res_blocks=1, **pose_guider_layout(unet))


def pose_guider_layout(unet: UNet2DConditionModel) -> dict[str, Any]:
    """Settings of a T2IAdapter whose feature maps fit the UNet.

    diffusers adds a feature map inside a down block with attention, but behind a plain one. A UNet whose first block is
    plain, as SDXL's, needs maps of half the latent's size, and has one for the middle besides.
    """
    channels = list(unet.config.block_out_channels)
    if unet.config.down_block_types[0] != "DownBlock2D":
        return {"channels": channels, "downscale_factor": 8, "adapter_type": "full_adapter"}
    return {"channels": [*channels, *channels[2:]], "downscale_factor": 16, "adapter_type": "full_adapter_xl"}


@torch.no_grad()
def scale_features(guider: T2IAdapter, scale: float) -> None:
    """Makes every feature map `scale` > 0 times as large, whatever the skeleton.

    All of the network is linear but for ReLUs: with the first layer and all later biases scaled, so is what follows.
    """
    for name, parameter in guider.named_parameters():
        if name.startswith("adapter.conv_in.") or name.endswith(".bias"):
            parameter.mul_(scale)


class Adapter(nn.Module):
    """What BoLID trains. `layers` are the UNet's own body-ID processors: to hold them here shares them."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig):
        super().__init__()
        # from the UNet as it is, before it gets attention that a ControlNet has not
        self.identity_net = build_identity_net(unet) if config.identity_net else None
        self.layers = install_body_id_attention(unet)
        embed_dim, output_dim, width = config.patch_width, unet.config.cross_attention_dim, config.resampler_width
        self.identity_encoder = build_identity_encoder(
            parts=config.parts,
            embed_dim=embed_dim,
            output_dim=output_dim,
            width=width,
            tokens=config.identity_tokens,
            zero_tokens=config.zero_tokens,
        )
        self.image_projector = resampler(embed_dim, output_dim, width, config.image_tokens)
        self.pose_guider = build_pose_guider(unet) if config.pose_guider else None

    def save(self, folder: Path) -> None:
        """Writes `identity.safetensors`, `image_prompt.safetensors`, and, if there are such, `pose_guider/` and
        `identity_net/` into `folder`. An identity that is read from whole pictures is plain IP-Adapter-Plus."""
        folder.mkdir(parents=True, exist_ok=True)
        identity = self._branch_state("identity", self.identity_encoder.resampler)
        if isinstance(self.identity_encoder, BodyEncoder):
            identity[PART_EMBEDDING] = self.identity_encoder.part_embedding
            if zeros := self.identity_encoder.zero_tokens:
                identity[ZERO_TOKENS] = torch.tensor([zeros])
        save_file(on_disk(identity), folder / "identity.safetensors")
        save_file(on_disk(self._branch_state("image", self.image_projector)), folder / "image_prompt.safetensors")
        if self.pose_guider is not None:
            self.pose_guider.save_pretrained(folder / "pose_guider")
        if self.identity_net is not None:
            self.identity_net.save_pretrained(folder / "identity_net")

    def load(self, folder: Path, guider: Path | None = None) -> None:
        """Reads what `save` wrote, or the pose guider from another folder `guider`.

        Raises RuntimeError that lists missing or unknown keys.
        """
        identity = load_file(folder / "identity.safetensors")
        identity.pop(ZERO_TOKENS, None)  # for who has the file alone; here the configuration says it
        self._load_part_embedding(identity.pop(PART_EMBEDDING, None))
        self._load_branch("identity", self.identity_encoder.resampler, identity)
        self._load_branch("image", self.image_projector, load_file(folder / "image_prompt.safetensors"))
        if self.pose_guider is not None:
            self.pose_guider.load_state_dict(T2IAdapter.from_pretrained(guider or folder / "pose_guider").state_dict())
        if self.identity_net is not None:
            net = ControlNetModel.from_pretrained(folder / "identity_net", torch_dtype=torch.float32)
            self.identity_net.load_state_dict(net.state_dict())

    def _load_part_embedding(self, embedding: Tensor | None) -> None:
        if isinstance(self.identity_encoder, BodyEncoder) != (embedding is not None):
            found, expected = ("parts", "whole pictures") if embedding is not None else ("whole pictures", "parts")
            raise RuntimeError(f"the adapter file reads people from {found}, the model from {expected}")
        if embedding is not None:
            self.identity_encoder.part_embedding.data.copy_(embedding)

    def _branch_state(self, branch: str, projection: nn.Module) -> dict[str, Tensor]:
        resampler_state = _resampler_to_ip_adapter(projection.state_dict())
        state = {f"image_proj.{name}": tensor for name, tensor in resampler_state.items()}
        for index, layer in enumerate(self.layers):
            for name, tensor in getattr(layer, branch).state_dict().items():
                state[f"ip_adapter.{2 * index + 1}.{name}"] = tensor
        return state

    def _load_branch(self, branch: str, projection: nn.Module, state: dict[str, Tensor]) -> None:
        expected = self._branch_state(branch, projection)
        if missing_or_unknown := expected.keys() ^ state.keys():
            raise RuntimeError(f"adapter file and model differ in: {', '.join(sorted(missing_or_unknown))}")
        for name, tensor in expected.items():
            if tensor.shape != state[name].shape:
                raise RuntimeError(f"{name}: expected shape {tuple(tensor.shape)}, found {tuple(state[name].shape)}")
        projection.load_state_dict(resampler_from_ip_adapter(state, projection.state_dict()))
        for index, layer in enumerate(self.layers):
            names = ("to_k_ip.weight", "to_v_ip.weight")
            getattr(layer, branch).load_state_dict({n: state[f"ip_adapter.{2 * index + 1}.{n}"] for n in names})


def on_disk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes it: convolutions may be channels last in memory, which no file can be."""
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _ip_adapter_name(name: str) -> str:
    """IP-Adapter's name of a weight of diffusers' Resampler; keys and values are one matrix `to_kv` there."""
    for ours, theirs in _RESAMPLER_NAMES:
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _resampler_to_ip_adapter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        out.setdefault(_ip_adapter_name(name), []).append(tensor)
    return {name: torch.cat(tensors) for name, tensors in out.items()}


def resampler_from_ip_adapter(
    state: Mapping[str, Tensor], names: Iterable[str], prefix: str = "image_proj."
) -> dict[str, Tensor]:
    """Weights of diffusers' Resampler by its own `names`, from those that IP-Adapter's files name."""
    out = {}
    for name in names:
        tensor = state[prefix + _ip_adapter_name(name)]
        if ".attn.to_k." in name:
            tensor = tensor.chunk(2)[0]
        elif ".attn.to_v." in name:
            tensor = tensor.chunk(2)[1]
        out[name] = tensor
    return out
