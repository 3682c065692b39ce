"""The losses of the methods, as functions of tensors: those of the brief (eq. 3 and 4) and PuLID's alignment.

L_rec (eq. 2), weighted by the person, is `stages.unet.diffusion_loss`. All are float32 whatever they are given, and
means over the samples that `keep` [B] (bool) leaves in: a sample whose text was dropped has nothing to follow.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def kept_mean(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Mean of `values` [B] over the samples in `keep`; 0 when there are none."""
    weight = torch.ones_like(values) if keep is None else keep.to(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def keypoint_loss(found: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
    """L_id (eq. 3): sum over k of ||p_gen,k - p_ref,k||^2, in [0, 1] image coordinates.

    `found` [B, 12, 2+] through the differentiable pose estimator; `target` [B, 12, 3], whose third column says how well
    each keypoint is seen (0: not at all): those that are not seen do not count.
    """
    seen = (target[..., 2] > 0).float()
    distance = (found[..., :2].float() - target[..., :2].float()).square().sum(-1)
    return kept_mean((distance * seen).sum(-1), keep)


def cosine_loss(found: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
    """1 - cos of rows [B, ..., D], averaged over what lies between.

    L_CLIP (eq. 4) with CLIP's embeddings of picture and prompt; the identity-embedding loss with embeddings of people.
    """
    distance = 1 - F.cosine_similarity(found.float(), target.float(), dim=-1)
    return kept_mean(distance.reshape(len(distance), -1).mean(1), keep)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Queries [B, Q, heads * d] and the text's keys [B, T, heads * d] of the cross-attention layers, in the order in
    which they were run, step after step; `heads` of each."""

    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)

    def last(self, count: int) -> "Recorded":
        """What the last `count` runs of a layer left."""
        return Recorded(queries=self.queries[-count:], keys=self.keys[-count:], heads=self.heads[-count:])


@contextmanager
def recorded_queries(unet: UNet2DConditionModel) -> Iterator[Recorded]:
    """Records every cross-attention layer inside the `with`."""
    recorded, handles = Recorded(), []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            handles += [
                module.to_q.register_forward_hook(_recorder(recorded.queries, recorded.heads, module.heads)),
                module.to_k.register_forward_hook(_recorder(recorded.keys)),
            ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _recorder(values: list[Tensor], heads: list[int] | None = None, count: int = 0) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values.append(output)
        if heads is not None:
            heads.append(count)

    return hook


def semantic_alignment(with_id: Recorded, text_only: Recorded, keep: Tensor | None = None) -> Tensor:
    """PuLID's semantic loss: ||softmax(K Q_tid^T / sqrt d) Q_tid - softmax(K Q_t^T / sqrt d) Q_t||_2.

    What the text's tokens find in the picture shall be the same with the identity as without. K is the text's; the norm
    is a head's and token's, averaged over these and the layers, so that a layer's size does not weight it.
    """
    pairs = zip(with_id.queries, text_only.queries, with_id.keys, with_id.heads, strict=True)
    return _mean([_norms(_answers(k, q, h) - _answers(k, t, h), keep) for q, t, k, h in pairs])


def layout_alignment(with_id: Recorded, text_only: Recorded, keep: Tensor | None = None) -> Tensor:
    """PuLID's layout loss: ||Q_tid - Q_t||_2 of each head's query at each place, averaged as in the semantic loss."""
    pairs = zip(with_id.queries, text_only.queries, with_id.heads, strict=True)
    return _mean([_norms(_by_head(q, h) - _by_head(t, h), keep) for q, t, h in pairs])


def _answers(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """[B, heads, T, d]: the queries, averaged with the weights that each of the text's keys gives them."""
    key, query = _by_head(keys, heads), _by_head(queries, heads)
    return torch.softmax(key @ query.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1) @ query


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """[B, T, heads * d] -> float32 [B, heads, T, d]."""
    return tokens.float().unflatten(-1, (heads, -1)).transpose(1, 2)


def _norms(difference: Tensor, keep: Tensor | None) -> Tensor:
    # vector_norm's gradient at zero is zero: both are alike where the identity has not yet said anything
    return kept_mean(torch.linalg.vector_norm(difference, dim=-1).mean((1, 2)), keep)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
