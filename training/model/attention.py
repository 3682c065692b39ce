"""Body-ID attention: cross-attention with separate keys and values for text, identity and image prompt.

The decoupled cross-attention of IP-Adapter (arXiv:2308.06721), with two image branches:

    Z = Attn(Q, K_text, V_text) + s_identity[l] Attn(Q, K_identity, V_identity) + s_image[l] Attn(Q, K_image, V_image)

The scales are tensors of one value a layer, so that a traced graph takes them as inputs. PuLID adds less of the
identity's part (`bolid_training.model.orthogonal`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_training.model.orthogonal import first_tokens_share, orthogonal_part

# Up to so many keys, on CPUs in bfloat16, two matrix products and a softmax are faster than fused attention in float32:
# forward and backward of 64 x 2 heads and 256 queries on 77 keys take 22 against 38 ms, on 256 keys 126 against 64.
FEW_KEYS = 128

BRANCHES = ("identity", "image")


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of [B, Q, heads * d] over [B, T, heads * d] keys and values.

    Inside bfloat16 autocast on a CPU the fused attention runs in float32: its backward is several times slower else.
    """
    dtype = query.dtype
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    in_bfloat16 = dtype == torch.bfloat16 and query.device.type == "cpu"
    if in_bfloat16 and key.shape[2] <= FEW_KEYS:
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), dim=-1)
        return (weights.to(dtype) @ value).transpose(1, 2).flatten(2)
    with _without_autocast(query.device.type):
        if in_bfloat16:
            query, key, value = query.float(), key.float(), value.float()
        out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).flatten(2).to(dtype)


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """Nothing outside of autocast: torch.export makes a subgraph of every such block, at a cost that is quadratic."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class DecoupledKeyValue(nn.Module):
    """Keys and values of one conditioning branch in one layer, named as in IP-Adapter's files."""

    def __init__(self, cross_attention_dim: int, hidden_size: int):
        super().__init__()
        self.to_k_ip = nn.Linear(cross_attention_dim, hidden_size, bias=False)
        self.to_v_ip = nn.Linear(cross_attention_dim, hidden_size, bias=False)

    def forward(self, query: Tensor, tokens: Tensor, heads: int) -> Tensor:
        return attend(query, self.to_k_ip(tokens), self.to_v_ip(tokens), heads)


class PlainAttnProcessor:
    """Attention without branches: self-attention, and cross-attention to text while the base is trained.

    It names the body-ID arguments only because diffusers hands them to every processor.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        identity_tokens: Tensor | None = None,
        image_tokens: Tensor | None = None,
        identity_scale: Tensor | None = None,
        image_scale: Tensor | None = None,
        orthogonality: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return attn.to_out[0](attend(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads))


class BodyIDAttnProcessor(nn.Module):
    """Cross-attention of layer `index`; the branches whose tokens are None are left out.

    `branches`: those that it has weights for, of "identity" and "image".
    """

    def __init__(self, index: int, cross_attention_dim: int, hidden_size: int, branches: Sequence[str] = BRANCHES):
        super().__init__()
        self.index = index
        for branch in branches:
            self.add_module(branch, DecoupledKeyValue(cross_attention_dim, hidden_size))

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        identity_tokens: Tensor | None = None,
        image_tokens: Tensor | None = None,
        identity_scale: Tensor | None = None,
        image_scale: Tensor | None = None,
        orthogonality: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        out = attend(query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states), attn.heads)
        if identity_tokens is not None:
            identity = self.identity(query, identity_tokens, attn.heads)
            if orthogonality is not None:
                first = first_tokens_share(query, self.identity.to_k_ip(identity_tokens), attn.heads)
                identity = orthogonal_part(identity, out, first, orthogonality)
            out = out + identity_scale[self.index] * identity
        if image_tokens is not None:
            out = out + image_scale[self.index] * self.image(query, image_tokens, attn.heads)
        return attn.to_out[0](out)

    # diffusers reads the signature of `__call__` to decide which arguments a processor takes
    __call__ = forward


def install_body_id_attention(unet: UNet2DConditionModel, branches: Sequence[str] = BRANCHES) -> nn.ModuleList:
    """Puts body-ID attention into every cross-attention layer and returns the L new processors, in order.

    The order is IP-Adapter's: down, up, then mid. Keys and values of the branches start as copies of the text's.
    """
    processors: dict[str, nn.Module | PlainAttnProcessor] = {}
    layers = nn.ModuleList()
    for name in unet.attn_processors:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        if not name.endswith("attn2.processor"):
            processors[name] = PlainAttnProcessor()
            continue
        processors[name] = BodyIDAttnProcessor(len(layers), attn.to_k.in_features, attn.to_k.out_features, branches)
        layers.append(processors[name])
    unet.set_attn_processor(processors)
    read_as_text(unet)
    return layers


def read_as_text(unet: UNet2DConditionModel) -> None:
    """Keys and values of the branches become copies of the text's."""
    for name, processor in unet.attn_processors.items():
        if isinstance(processor, BodyIDAttnProcessor):
            attn = unet.get_submodule(name.removesuffix(".processor"))
            for branch in processor.children():
                branch.to_k_ip.load_state_dict(attn.to_k.state_dict())
                branch.to_v_ip.load_state_dict(attn.to_v.state_dict())


def share_body_id_attention(unet: UNet2DConditionModel, layers: nn.ModuleList) -> None:
    """Puts the processors of another UNet of the same make into this one: one adapter, two UNets."""
    remaining = iter(layers)
    unet.set_attn_processor(
        {
            name: next(remaining) if name.endswith("attn2.processor") else PlainAttnProcessor()
            for name in unet.attn_processors
        }
    )
