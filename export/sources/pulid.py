"""PuLID's encoders of a face for SDXL (arXiv:2404.16022), built from the published weights.

Both read the face network's embedding [B, V, 1, 512] of V pictures, and of EVA02-CLIP-L-14-336, which sees the aligned
face in grey on white, the normalised embedding [B, V, 768] and the hidden states of five layers [B, V, 5, 577, 1024].
v1 is a set of perceptrons, v1.1 a Resampler that reads a coarser layer every two blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjectionBlock
from torch import Tensor, nn

from bolid_training.model.adapter import resampler_from_ip_adapter

LEVELS = 5
"""Layers of EVA-CLIP that are read."""
VISION_WIDTH = 768
VISION_TOKENS = 577
"""EVA02-CLIP-L-14-336's embedding, and its class token with 24 x 24 patches."""
BLOCKS = 10
HEAD_WIDTH = 64

_LINEARS, _NORMS = (0, 3, 6), (1, 4)


def id_encoder_keys() -> Iterator[str]:
    """Names of v1's weights, without the prefix."""
    yield from _perceptron_keys("body")
    for level in range(LEVELS):
        yield from _perceptron_keys(f"mapping_{level}")
        yield from _perceptron_keys(f"mapping_patch_{level}")


def id_former_keys() -> Iterator[str]:
    """Names of v1.1's weights, without the prefix."""
    yield from ("latents", "proj_out", *_perceptron_keys("id_embedding_mapping"))
    for level in range(LEVELS):
        yield from _perceptron_keys(f"mapping_{level}")
    for layer in (f"layers.{index}" for index in range(BLOCKS)):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            yield from (f"{layer}.{norm}.weight", f"{layer}.{norm}.bias")
        yield from (f"{layer}.{name}.weight" for name in ("0.to_q", "0.to_kv", "0.to_out", "1.1", "1.3"))


def _perceptron_keys(name: str) -> Iterator[str]:
    return (f"{name}.{index}.{end}" for index in sorted((*_LINEARS, *_NORMS)) for end in ("weight", "bias"))


def perceptron(state: Mapping[str, Tensor], name: str) -> nn.Sequential:
    """Three linear layers with norms and leaky rectifiers between, as wide as the weights `name`.* say."""
    widths = [state[f"{name}.0.weight"].shape[1], *(state[f"{name}.{index}.weight"].shape[0] for index in _LINEARS)]
    *hidden, last = pairwise(widths)
    layers = [layer for n, m in hidden for layer in (nn.Linear(n, m), nn.LayerNorm(m), nn.LeakyReLU())]
    return nn.Sequential(*layers, nn.Linear(*last))


class IDEncoder(nn.Module):
    """v1: five tokens of the embeddings and one of each layer, [B, 10, C]; the mean over several pictures."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.context_width = state["mapping_0.6.weight"].shape[0]
        self.tokens = state["body.6.weight"].shape[0] // self.context_width + LEVELS
        self.states_width = state["mapping_0.0.weight"].shape[1]
        self.body = perceptron(state, "body")
        for level in range(LEVELS):
            for name in (f"mapping_{level}", f"mapping_patch_{level}"):
                self.add_module(name, perceptron(state, name))
        self.load_state_dict(dict(state))

    def forward(self, patch_tokens: Tensor, vision_embedding: Tensor, vision_states: Tensor) -> Tensor:
        faces = self.body(torch.cat([patch_tokens[:, :, 0], vision_embedding], dim=-1))
        tokens = [faces.unflatten(-1, (-1, self.context_width))]
        tokens += [self._level_token(level, vision_states[:, :, level]) for level in range(LEVELS)]
        return torch.cat(tokens, dim=2).mean(dim=1)

    def _level_token(self, level: int, states: Tensor) -> Tensor:
        """[B, V, P, D] -> [B, V, 1, C]"""
        whole, patch = self.get_submodule(f"mapping_{level}"), self.get_submodule(f"mapping_patch_{level}")
        return whole(states[:, :, :1]) + patch(states[:, :, 1:]).mean(dim=2, keepdim=True)


class IDFormer(nn.Module):
    """v1.1: a Resampler whose queries are learned ones and five tokens of each face, which it also reads: [B, 32, C].

    Several pictures of a person are read side by side.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        _, self.tokens, width = state["latents"].shape
        self.states_width = state["mapping_0.0.weight"].shape[1]
        self.latents = nn.Parameter(torch.empty_like(state["latents"]))
        self.proj_out = nn.Parameter(torch.empty_like(state["proj_out"]))
        self.id_embedding_mapping = perceptron(state, "id_embedding_mapping")
        for level in range(LEVELS):
            self.add_module(f"mapping_{level}", perceptron(state, f"mapping_{level}"))
        heads = state["layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH
        ratio = state["layers.0.1.1.weight"].shape[0] / width
        self.layers = nn.ModuleList(
            IPAdapterPlusImageProjectionBlock(width, HEAD_WIDTH, heads, ratio) for _ in range(BLOCKS)
        )
        self.load_state_dict(resampler_from_ip_adapter(state, self.state_dict(), prefix=""))

    def forward(self, patch_tokens: Tensor, vision_embedding: Tensor, vision_states: Tensor) -> Tensor:
        faces = self.id_embedding_mapping(torch.cat([patch_tokens[:, :, 0], vision_embedding], dim=-1))
        faces = faces.unflatten(-1, (-1, self.latents.shape[-1])).flatten(1, 2)
        queries = torch.cat([self.latents.repeat(faces.shape[0], 1, 1), faces], dim=1)
        for level in range(LEVELS):
            states = self.get_submodule(f"mapping_{level}")(vision_states[:, :, level]).flatten(1, 2)
            context = torch.cat([faces, states], dim=1)
            for block in self.layers[2 * level : 2 * level + 2]:
                queries = block(context, queries, queries)
        return queries[:, : self.tokens] @ self.proj_out
