"""The graphs of a bundle as small modules: each binds a network of the checkpoint to its GraphSpec.

A graph takes and gives float32 (the contract), whatever the precision of its network: the casts are here, so lowering a
network to float16 leaves what is written in this file, the sampler's update above all, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bolid_export.hot_loras import HotLayer, locate, loras_applied
from bolid_export.shallow import ShallowUNet, deep_features
from bolid_export.sources import Model
from bolid_export.sources.hot_layers import hot_modules
from bolid_sdk.contracts import ADDED_CONDITIONS, DEEP_FEATURE, LORA_DOWN, LORA_UP, GraphSpec, Sizes, graph_specs
from bolid_training.model.identity_net import IdentityGuidedUNet
from bolid_training.model.pose_estimator import decode_heatmaps


class Graph(nn.Module):
    """A network behind a GraphSpec: positional inputs in the spec's order, outputs in the spec's order."""

    def __init__(self, spec: GraphSpec, network: nn.Module):
        super().__init__()
        self.spec = spec
        self.network = network
        self.hot_layers: Sequence[HotLayer] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's weights, islands apart."""
        return next(self.network.parameters()).dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.spec.input_names, inputs, strict=True))
        with self._loras(given):
            outputs = self.run(**given)
        return tuple(output.float() for output in outputs)

    def _loras(self, given: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Takes them out of `given`, if there are any."""
        if not self.hot_layers:
            return nullcontext()
        down, up = given.pop(LORA_DOWN).to(self.dtype), given.pop(LORA_UP).to(self.dtype)
        return loras_applied(self.network, self.hot_layers, down, up)

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} is a binding without a body")


class TextEncoder(Graph):
    def run(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.network(input_ids=input_ids).last_hidden_state,)


class TextTowers(Graph):
    """SDXL: both towers' last hidden states but one, side by side, and the second one's projected text.

    The towers read the same ids unless their tokenizers differ.
    """

    def run(self, input_ids: Tensor, input_ids_2: Tensor | None = None) -> tuple[Tensor, ...]:
        ids = (input_ids, input_ids if input_ids_2 is None else input_ids_2)
        towers = zip(self.network, ids, strict=True)
        first, second = (tower(input_ids=tokens, output_hidden_states=True) for tower, tokens in towers)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


class PoseEstimator(Graph):
    """Coordinates are decoded in float32: float16 resolves no better than a pixel in a thousand."""

    def run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        heatmaps = self.network.heatmaps(pixels.to(self.dtype)).float()
        return decode_heatmaps(heatmaps), heatmaps


class ImageEncoder(Graph):
    """Patch tokens are the last hidden state but one, as in IP-Adapter-Plus."""

    def run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self.network(pixels.to(self.dtype), output_hidden_states=True).hidden_states[-2],)


class PooledImageEncoder(Graph):
    """The projected embedding as the picture's only token, as IP-Adapter (base) reads it."""

    def run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self.network(pixels.to(self.dtype)).image_embeds[:, None],)


class IdentityEncoder(Graph):
    """With `parts` only where pictures are cut into some, with EVA-CLIP's features only for PuLID."""

    def run(self, patch_tokens: Tensor, **beside: Tensor) -> tuple[Tensor, ...]:
        cast = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in beside.items()}
        return (self.network(patch_tokens.to(self.dtype), **cast),)


class ImageProjector(Graph):
    def run(self, patch_tokens: Tensor) -> tuple[Tensor, ...]:
        return (self.network(patch_tokens.to(self.dtype)),)


class PoseGuider(Graph):
    def run(self, skeleton: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(skeleton.to(self.dtype)))


class VaeDecoder(Graph):
    """Latents of unit scale to pixels: undoes diffusers' `scaling_factor` and `shift_factor`."""

    def run(self, latents: Tensor) -> tuple[Tensor, ...]:
        unscaled = latents / self.network.config.scaling_factor + (self.network.config.get("shift_factor") or 0.0)
        return (self.network.decode(unscaled.to(self.dtype), return_dict=False)[0],)


class VaeEncoder(Graph):
    """Pixels to latents of unit scale; a variational encoder gives its mode."""

    def run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        encoded = self.network.encode(pixels.to(self.dtype), return_dict=False)[0]
        latents = encoded.float() if isinstance(encoded, Tensor) else encoded.mode().float()
        shift = self.network.config.get("shift_factor") or 0.0
        return ((latents - shift) * self.network.config.scaling_factor,)


class Denoiser(Graph):
    """One sampling step: the guided network and the sampler's linear update (docs/architecture.md, "Graphs").

    e = unet(k0 * sample), e = e_first + guidance * (e_last - e_first), x0 = k1 * sample + k2 * e,
    next_sample = k3 * sample + k4 * e + k5 * previous_x0 + k6 * noise

    Where the spec asks for it, the deep feature that the shallow half goes on from is an output too.
    """

    def run(
        self,
        sample: Tensor,
        previous_x0: Tensor,
        noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
        encoder_hidden_states: Tensor,
        **conditioning: Tensor,
    ) -> tuple[Tensor, ...]:
        # sizes by `shape`: `len` would make them constants of the trace
        k = coefficients
        branches = branch_index(encoder_hidden_states.shape[0], sample.shape[0])
        output, *deep = self.predict((k[0] * sample)[branches], timestep, encoder_hidden_states, **conditioning)
        e = guide(output.float(), guidance, sample.shape[0])
        x0 = k[1] * sample + k[2] * e
        return k[3] * sample + k[4] * e + k[5] * previous_x0 + k[6] * noise, x0, *deep

    def predict(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **conditioning: Tensor
    ) -> tuple[Tensor, ...]:
        """The UNet's output [G*B, c, h, w] for samples that are already repeated for the guidance branches.

        After it, where the spec asks for it, the deep feature.
        """
        if DEEP_FEATURE not in self.spec.output_names:
            return (self.unet(sample, timestep, encoder_hidden_states, **conditioning),)
        with deep_features(self.network) as seen:
            output = self.unet(sample, timestep, encoder_hidden_states, **conditioning)
        return output, seen[0]

    def unet(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **conditioning: Tensor) -> Tensor:
        """diffusers' own forward of the whole UNet."""
        added = {name: conditioning.pop(name) for name in ADDED_CONDITIONS if name in conditioning}
        cast = {name: value.to(self.dtype) for name, value in conditioning.items()}
        features = [cast.pop(name) for name in list(cast) if name.startswith("pose_features_")]
        return self.network(
            sample.to(self.dtype),
            timestep,
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            cross_attention_kwargs=cast,
            # in float32: float16 has no odd numbers of pixels above 2048, and the UNet casts their sinusoids itself
            added_cond_kwargs=added or None,
            # the UNet pops from the list it is given
            down_intrablock_additional_residuals=features or None,
        ).sample


class DenoiserShallow(Denoiser):
    """A sampling step by the shallow half of the UNet, from the deep features of two earlier steps."""

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        deep_feature: Tensor,
        earlier_deep_feature: Tensor,
        extrapolation: Tensor,
        **conditioning: Tensor,
    ) -> tuple[Tensor, ...]:
        deep = deep_feature + extrapolation * (deep_feature - earlier_deep_feature)
        added = {name: conditioning.pop(name) for name in ADDED_CONDITIONS if name in conditioning}
        output = self.network(
            sample.to(self.dtype),
            timestep,
            deep.to(self.dtype),
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            cross_attention_kwargs={name: value.to(self.dtype) for name, value in conditioning.items()},
            added_cond_kwargs=added or None,
        )
        return (output,)


def branch_index(guided_batch: int, batch: int) -> Tensor:
    """Index that repeats [B] for G branches; computed, since a traced `repeat` would tie G*B to B by a guard."""
    return torch.arange(guided_batch) % torch.full((1,), batch)


def guide(output: Tensor, guidance: Tensor, batch: int) -> Tensor:
    """First branch + guidance * (last branch - first branch), [B, ...]; the identity when there is one branch."""
    index = torch.arange(batch)
    first, last = output[index], output[index + (output.shape[0] - batch)]
    return first + guidance * (last - first)


def denoiser_network(checkpoint: Model) -> nn.Module:
    """The UNet, with InstantID's IdentityNet around it if the adapter has one."""
    net = checkpoint.adapter.identity_net
    return checkpoint.unet if net is None else IdentityGuidedUNet(checkpoint.unet, net)


def _text_encoder(checkpoint: Model) -> tuple[type[Graph], nn.Module]:
    if checkpoint.text_encoder_2 is None:
        return TextEncoder, checkpoint.text_encoder
    return TextTowers, nn.ModuleList([checkpoint.text_encoder, checkpoint.text_encoder_2])


def bind_graphs(checkpoint: Model, sizes: Sizes) -> dict[str, Graph]:
    """Every graph of the checkpoint by name, in eval mode, sharing the checkpoint's weights."""
    adapter = checkpoint.adapter
    networks: dict[str, tuple[type[Graph], nn.Module | None]] = {
        "text_encoder": _text_encoder(checkpoint),
        "pose_estimator": (PoseEstimator, checkpoint.pose_estimator),
        "image_encoder": (
            PooledImageEncoder if checkpoint.adapter.reads == "pooled" else ImageEncoder,
            checkpoint.image_encoder,
        ),
        "identity_encoder": (IdentityEncoder, adapter.identity_encoder),
        "image_projector": (ImageProjector, adapter.image_projector),
        "pose_guider": (PoseGuider, adapter.pose_guider),
        "denoiser": (Denoiser, denoiser_network(checkpoint)),
        "denoiser_shallow": (DenoiserShallow, ShallowUNet(checkpoint.unet)),
        "vae_decoder": (VaeDecoder, checkpoint.vae),
        "vae_encoder": (VaeEncoder, checkpoint.vae),
    }
    graphs = {}
    modules = hot_modules(checkpoint) if sizes.lora_rank else {}
    for name, spec in graph_specs(sizes).items():
        binding, network = networks[name]
        graphs[name] = binding(spec, network).eval().requires_grad_(False)
        graphs[name].hot_layers = locate(network, modules, sizes.layers_of(name))
    return graphs
