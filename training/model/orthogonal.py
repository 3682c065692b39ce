"""PuLID's orthogonal identity (arXiv:2404.16022's code): what of the identity's attention the text's has not said yet.

With h the text's attention and z the identity's, both [B, Q, C], and the projection of z on h channel by channel,

    p = h sum_q(h z) / sum_q(h h),    z' = z - a p + b w p

where w [B, Q, 1] is the attention that goes to the first tokens. (a, b) = (0, 0) is plain decoupled attention, (1, 0)
the published ORTHO and (1, 1) ORTHO_v2. They are a tensor, so that one traced graph has all three.
"""

import torch
from torch import Tensor

FIRST_TOKENS = 5
"""Those that come from the face network in v1."""

# Where the text says nothing, as an unconditional text of zeros does, there is nothing to project on.
SMALLEST = 1e-20


def orthogonal_part(identity: Tensor, text: Tensor, first: Tensor, orthogonality: Tensor) -> Tensor:
    """z' of z `identity`, h `text` and w `first`, in float32 inside. `orthogonality` [2] is (a, b)."""
    z, h = identity.float(), text.float()
    a, b = orthogonality.float()
    projection = h * ((h * z).sum(dim=-2, keepdim=True) / (h * h).sum(dim=-2, keepdim=True).clamp_min(SMALLEST))
    return (z + (b * first - a) * projection).to(identity.dtype)


def first_tokens_share(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """w [B, Q, 1]: mean over the heads of softmax(Q K^T), which is not divided by sqrt(d) in what is published."""
    query, key = (t.float().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key))
    attention = torch.softmax(query @ key.transpose(-1, -2), dim=-1).mean(dim=1)
    return attention[:, :, :FIRST_TOKENS].sum(dim=-1, keepdim=True)
