"""The plain diffusers sampling loop, for validation sheets and as the reference of the exported engines."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor


def seeded_noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample_latents(*arguments: Any, **options: Any) -> Tensor:
    """The last of `sampling_states`, which takes the same arguments: finished latents [B, c, h, w]."""
    *_, latents = sampling_states(*arguments, **options)
    return latents


def sampling_states(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    encoder_hidden_states: Tensor,
    attention: dict[str, Tensor] | None = None,
    pose_features: Sequence[Tensor] | None = None,
) -> Iterator[Tensor]:
    """The latents [B, c, h, w] before the first step and after each, from standard normal `noise` of that shape.

    For guidance, `encoder_hidden_states`, the tokens in `attention` and `pose_features` hold the unconditional half
    first, [2B, ...]; without that half, [B, ...], `guidance` changes nothing.
    """
    scheduler.set_timesteps(steps)
    sample = noise * scheduler.init_noise_sigma
    branches = len(encoder_hidden_states) // len(noise)
    yield sample
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            model_input = scheduler.scale_model_input(torch.cat([sample] * branches), timestep)
            output = unet(
                model_input,
                timestep,
                encoder_hidden_states,
                cross_attention_kwargs=attention,
                # the UNet pops from the list it is given
                down_intrablock_additional_residuals=list(pose_features) if pose_features is not None else None,
            ).sample.float()
            first, last = output[: len(sample)], output[-len(sample) :]
            sample = scheduler.step(first + guidance * (last - first), timestep, sample).prev_sample
        yield sample
