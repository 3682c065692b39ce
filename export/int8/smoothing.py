"""SmoothQuant (arXiv:2211.10438): large input channels are made smaller before they are rounded, the weights larger.

    s_j = sqrt(max|X_j| / max|W_j|),  y = (X diag(1/s)) (diag(s) W)

The division is free where it can be folded into what made the input: the LayerNorm or GroupNorm in front of a
projection, and the value half of a GEGLU in front of the feed-forward's second layer. Factors are powers of two:
folding changes no bit of a result, and weights that float16 holds stay weights that float16 holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Fold:
    """`readers`, by name, are all that reads what `divide` divides, channel by channel."""

    readers: Mapping[str, nn.Module]
    divide: Callable[[Tensor], None]


@torch.no_grad()
def smooth(network: nn.Module, peaks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds factors into `network`'s own modules (new parameters, no parameter is written to); returns new `peaks`.

    `peaks`: largest magnitude [in] of each input channel, of the layers that will be quantised. A fold is left out
    when one of its readers is not among them.
    """
    smoothed = dict(peaks)
    for fold in _folds(network):
        if not all(name in peaks for name in fold.readers):
            continue
        factors = _factors(peaks[next(iter(fold.readers))], list(fold.readers.values()))
        fold.divide(factors)
        for name, reader in fold.readers.items():
            reader.weight = _frozen(reader.weight * factors.view(-1, *[1] * (reader.weight.dim() - 2)))
            smoothed[name] = peaks[name] / factors
    return smoothed


def _factors(peak: Tensor, readers: list[nn.Module]) -> Tensor:
    """Powers of two [in]; 1 for a channel that is always zero."""
    weights = torch.stack([reader.weight.abs().movedim(1, 0).flatten(1).amax(1) for reader in readers]).amax(0)
    ratio = peak / weights
    usable = torch.isfinite(ratio) & (ratio > 0)
    return torch.where(usable, ratio.clamp(2.0**-16, 2.0**16).sqrt().log2().round().exp2(), torch.ones_like(ratio))


def _folds(network: nn.Module) -> Iterator[Fold]:
    for name, module in network.named_modules():
        if isinstance(module, BasicTransformerBlock):
            for norm, readers in _normalised(module):
                yield _fold(name, module, readers, _divide_affine(getattr(module, norm)))
            if module.ff.net[0].__class__.__name__ == "GEGLU":
                yield _fold(name, module, ("ff.net.2",), _divide_values(module.ff.net[0].proj))
        elif isinstance(module, Transformer2DModel):
            yield _fold(name, module, ("proj_in",), _divide_affine(module.norm))


def _normalised(block: BasicTransformerBlock) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Norms of a block, and all that reads each of them."""
    yield "norm1", ("attn1.to_q", "attn1.to_k", "attn1.to_v")
    yield "norm2", ("attn2.to_q",)
    yield "norm3", ("ff.net.0.proj",)


def _fold(prefix: str, module: nn.Module, readers: tuple[str, ...], divide: Callable[[Tensor], None]) -> Fold:
    path = f"{prefix}." if prefix else ""
    return Fold({f"{path}{reader}": module.get_submodule(reader) for reader in readers}, divide)


def _divide_affine(norm: nn.Module) -> Callable[[Tensor], None]:
    def divide(factors: Tensor) -> None:
        norm.weight, norm.bias = _frozen(norm.weight / factors), _frozen(norm.bias / factors)

    return divide


def _divide_values(projection: nn.Linear) -> Callable[[Tensor], None]:
    """A GEGLU's outputs: the first half of its rows are values, the second are gates."""

    def divide(factors: Tensor) -> None:
        both = torch.cat([factors, torch.ones_like(factors)])
        projection.weight = _frozen(projection.weight / both[:, None])
        projection.bias = _frozen(projection.bias / both)

    return divide


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
