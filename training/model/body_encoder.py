"""From patch tokens of a person's body parts to identity tokens; from those of a picture to image-prompt tokens.

Both are IP-Adapter-Plus Resamplers (depth 4, head width 64), so that diffusers' `load_ip_adapter` reads them.
"""

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 64
DEPTH = 4


def resampler(embed_dim: int, output_dim: int, width: int, tokens: int) -> IPAdapterPlusImageProjection:
    """A Resampler from [B, any, embed_dim] to [B, tokens, output_dim]; `width` is a multiple of 64."""
    return IPAdapterPlusImageProjection(
        embed_dims=embed_dim,
        output_dims=output_dim,
        hidden_dims=width,
        depth=DEPTH,
        dim_head=HEAD_DIM,
        heads=width // HEAD_DIM,
        num_queries=tokens,
    )


class BodyEncoder(nn.Module):
    """Identity tokens [B, N + Z, C] from the patch tokens [B, V, P, D] of V part crops; the last Z are zeros.

    `parts` int64 [B, V] says which part each crop shows; its embedding tells the Resampler a sleeve from a trouser leg.
    One or several references, all parts or some: only V differs.

    Attention always adds up to 1. To tokens of zeros (PuLID's NUM_ZERO) it goes where there is nobody, in the
    background, and brings nothing.
    """

    def __init__(self, *, parts: int, embed_dim: int, output_dim: int, width: int, tokens: int, zero_tokens: int = 0):
        super().__init__()
        self.part_embedding = nn.Parameter(torch.randn(parts, embed_dim))
        self.resampler = resampler(embed_dim, output_dim, width, tokens)
        self.zero_tokens = zero_tokens

    def forward(self, patch_tokens: Tensor, parts: Tensor) -> Tensor:
        tokens = self.learned_tokens(patch_tokens, parts)
        return F.pad(tokens, (0, 0, 0, self.zero_tokens)) if self.zero_tokens else tokens

    def learned_tokens(self, patch_tokens: Tensor, parts: Tensor) -> Tensor:
        """[B, N, C]: without the zeros."""
        return self.resampler(self.embed_parts(patch_tokens, parts))

    def embed_parts(self, patch_tokens: Tensor, parts: Tensor) -> Tensor:
        """The Resampler's input [B, V * P, D]; with plain diffusers this is `ip_adapter_image_embeds`."""
        return (patch_tokens + self.part_embedding[parts][:, :, None]).flatten(1, 2)


class WholeEncoder(nn.Module):
    """Identity tokens [B, V * N, C] from the patch tokens [B, V, P, D] of V whole pictures: IP-Adapter-Plus.

    Each picture by itself, their tokens one after another, as diffusers does with several pictures for one IP-Adapter.
    """

    def __init__(self, *, embed_dim: int, output_dim: int, width: int, tokens: int):
        super().__init__()
        self.resampler = resampler(embed_dim, output_dim, width, tokens)

    def forward(self, patch_tokens: Tensor, parts: Tensor | None = None) -> Tensor:
        """`parts` is taken for the sake of `BodyEncoder`'s signature."""
        return self.resampler(patch_tokens.flatten(0, 1)).unflatten(0, patch_tokens.shape[:2]).flatten(1, 2)


def build_identity_encoder(
    *, parts: int, embed_dim: int, output_dim: int, width: int, tokens: int, zero_tokens: int = 0
) -> BodyEncoder | WholeEncoder:
    """For one part the whole picture is seen, for more the crops, and only then are there tokens of zeros."""
    sizes = {"embed_dim": embed_dim, "output_dim": output_dim, "width": width, "tokens": tokens}
    return WholeEncoder(**sizes) if parts == 1 else BodyEncoder(parts=parts, zero_tokens=zero_tokens, **sizes)
