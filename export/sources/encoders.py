"""Published image projections behind the two signatures that a bundle's encoders have."""

from __future__ import annotations

from torch import Tensor, nn


class PooledProjection(nn.Module):
    """IP-Adapter's projection of CLIP's pooled embedding, which comes as one token: [B, 1, D] -> [B, M, C]."""

    def __init__(self, projection: nn.Module):
        super().__init__()
        self.projection = projection

    def forward(self, patch_tokens: Tensor) -> Tensor:
        return self.projection(patch_tokens[:, 0])


class ViewEncoder(nn.Module):
    """Identity tokens of several references, each projected by itself: [B, V, P, D] -> [B, V * N, C].

    As diffusers does with several pictures for one IP-Adapter: their tokens follow one another.
    """

    def __init__(self, projection: nn.Module):
        super().__init__()
        self.projection = projection

    def forward(self, patch_tokens: Tensor) -> Tensor:
        tokens = self.projection(patch_tokens.flatten(0, 1))
        return tokens.unflatten(0, (patch_tokens.shape[0], patch_tokens.shape[1])).flatten(1, 2)


class AverageViewEncoder(nn.Module):
    """Identity tokens of the mean of all references, as InstantID has them: [B, V, 1, D] -> [B, N, C]."""

    def __init__(self, projection: nn.Module):
        super().__init__()
        self.projection = projection

    def forward(self, patch_tokens: Tensor) -> Tensor:
        return self.projection(patch_tokens.mean(dim=1))
