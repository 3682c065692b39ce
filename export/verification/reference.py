"""The plain diffusers loop: none of our denoiser graph, sampler tables or runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from numpy.typing import NDArray

from bolid_export.hot_loras import HotLayer, loras_applied
from bolid_sdk.contracts import ADDED_CONDITIONS, LORA_DOWN, LORA_UP
from bolid_training.model.sampling import sample_latents


def diffusers_latents(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    conditioning: Mapping[str, NDArray[np.float32]],
    noise: NDArray[np.float32],
    *,
    steps: int,
    guidance: float,
    hot_layers: Sequence[HotLayer] = (),
) -> NDArray[np.float32]:
    """Latents [B, c, h, w] by classifier-free guidance; `conditioning` as the denoiser's inputs for two branches.

    `hot_layers`: those of `unet` that take the conditioning's LoRA, if there is one.
    """
    attention = {name: torch.from_numpy(array) for name, array in conditioning.items()}
    text = attention.pop("encoder_hidden_states")
    features = [attention.pop(name) for name in list(attention) if name.startswith("pose_features_")]
    added = {name: attention.pop(name) for name in ADDED_CONDITIONS if name in attention}
    loras = [attention.pop(name) for name in (LORA_DOWN, LORA_UP) if name in attention]
    with loras_applied(unet, hot_layers, *loras) if loras else nullcontext():
        return sample_latents(
            partial(unet, added_cond_kwargs=added) if added else unet,
            scheduler,
            torch.from_numpy(noise),
            steps=steps,
            guidance=guidance,
            encoder_hidden_states=text,
            attention=attention,
            pose_features=features or None,
        ).numpy()
