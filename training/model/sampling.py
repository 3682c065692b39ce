"""The plain diffusers sampling loop, for validation sheets and as the reference of the exported engines."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor


def seeded_noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    encoder_hidden_states: Tensor,
    attention: dict[str, Tensor] | None = None,
    pose_features: Sequence[Tensor] | None = None,
) -> Tensor:
    """Latents [B, c, h, w] by classifier-free guidance, from standard normal `noise` of that shape.

    `encoder_hidden_states`, the tokens in `attention` and `pose_features` hold the unconditional half first, [2B, ...].
    """
    scheduler.set_timesteps(steps)
    sample = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(torch.cat([sample, sample]), timestep)
        output = unet(
            model_input,
            timestep,
            encoder_hidden_states,
            cross_attention_kwargs=attention,
            # the UNet pops from the list it is given
            down_intrablock_additional_residuals=list(pose_features) if pose_features is not None else None,
        ).sample
        unconditional, conditional = output.chunk(2)
        sample = scheduler.step(unconditional + guidance * (conditional - unconditional), timestep, sample).prev_sample
    return sample
