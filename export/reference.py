"""The plain diffusers loop: none of our denoiser graph, sampler tables or runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray


@torch.no_grad()
def diffusers_latents(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    conditioning: Mapping[str, NDArray[np.float32]],
    noise: NDArray[np.float32],
    *,
    steps: int,
    guidance: float,
) -> NDArray[np.float32]:
    """Latents [B, c, h, w] by classifier-free guidance; `conditioning` as the denoiser's inputs for two branches."""
    attention = {name: torch.from_numpy(array) for name, array in conditioning.items()}
    text = attention.pop("encoder_hidden_states")
    features = [attention.pop(name) for name in list(attention) if name.startswith("pose_features_")]
    scheduler.set_timesteps(steps)
    sample = torch.from_numpy(noise) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = unet(
            scheduler.scale_model_input(torch.cat([sample, sample]), timestep),
            timestep,
            text,
            cross_attention_kwargs=attention,
            # the UNet pops from the list it is given
            down_intrablock_additional_residuals=[torch.cat([feature, feature]) for feature in features] or None,
        ).sample
        unconditional, conditional = output.chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        sample = scheduler.step(guided, timestep, sample).prev_sample
    return sample.numpy()
