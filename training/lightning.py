"""The lightning branch: a few DDIM steps from pure noise to a finished picture, with gradient through the last of them.

L_id and L_CLIP need a finished image; an estimate of x0 from one noisy step is none (PuLID, arXiv:2404.16022, table 3).
The update is diffusers' DDIMScheduler, written out because `step` there is not meant to be differentiated.
"""

from collections.abc import Callable, Iterator

import torch
from diffusers import DDIMScheduler
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(sample [B, c, h, w], timestep [B]) -> the network's output [B, c, h, w]."""


def lightning_states(
    predict: Predict, scheduler: DDIMScheduler, noise: Tensor, *, steps: int, gradient_steps: int = 1
) -> Iterator[Tensor]:
    """The latents after each of `steps` steps, from standard normal `noise`; the last one is the picture.

    Only what the last `gradient_steps` compute is differentiated. Raises ValueError for more of them than steps.
    """
    if not 0 <= gradient_steps <= steps:
        raise ValueError(f"gradient through {gradient_steps} of {steps} steps was asked for; expected 0 to {steps}")
    sample = noise * scheduler.init_noise_sigma
    for index, (timestep, alpha, previous) in enumerate(ddim_table(scheduler, steps)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= steps - gradient_steps):
            output = predict(sample, timestep.expand(len(sample))).float()
            sample = ddim_step(sample, output, alpha, previous, scheduler.config.prediction_type)
        yield sample


def lightning_sample(
    predict: Predict, scheduler: DDIMScheduler, noise: Tensor, *, steps: int, gradient_steps: int = 1
) -> Tensor:
    """The last of `lightning_states`: finished latents [B, c, h, w]."""
    *_, sample = lightning_states(predict, scheduler, noise, steps=steps, gradient_steps=gradient_steps)
    return sample


def ddim_table(scheduler: DDIMScheduler, steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(timestep, alpha_t, alpha of the step after it) of each step; alphas are the cumulated products."""
    scheduler.set_timesteps(steps)
    stride, alphas = scheduler.config.num_train_timesteps // steps, scheduler.alphas_cumprod
    ends = [t - stride for t in scheduler.timesteps.tolist()]
    after = [alphas[t] if t >= 0 else scheduler.final_alpha_cumprod for t in ends]
    return list(zip(scheduler.timesteps, alphas[scheduler.timesteps], after, strict=True))


def ddim_step(sample: Tensor, output: Tensor, alpha: Tensor, previous: Tensor, prediction_type: str) -> Tensor:
    """One deterministic DDIM step (arXiv:2010.02502, eq. 12 with eta 0).

    x' = sqrt(a') x0 + sqrt(1 - a') eps, with x0 = sqrt(a) x - sqrt(1 - a) v and eps = sqrt(a) v + sqrt(1 - a) x of a v
    prediction, or x0 = (x - sqrt(1 - a) eps) / sqrt(a). Raises ValueError for other predictions.
    """
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "v_prediction":
        x0, epsilon = signal * sample - noise * output, signal * output + noise * sample
    elif prediction_type == "epsilon":
        x0, epsilon = (sample - noise * output) / signal, output
    else:
        raise ValueError(f"prediction type {prediction_type!r} is unknown; expected v_prediction or epsilon")
    return previous.sqrt() * x0 + (1 - previous).sqrt() * epsilon
