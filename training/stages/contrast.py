"""Stage `contrast`: the few-step student learns to make its first guesses as strong as what they stand for.

Of pure noise a denoiser says the mean of all pictures that may be in it, which is paler than each. Guidance makes up
for that by exaggeration. A student that learned its teacher's means has lost some of it, and what its first step leaves
out the other three do not bring back. So the LoRA learns to say what it said, with x0 `GAINS` times as large. The
student draws, with these gains, from pure noise, and each picture of a batch teaches one of the steps; the adapter
stays as it is.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bolid_training.data import People
from bolid_training.lightning import ddim_step, ddim_table
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import STEPS
from bolid_training.precision import autocast
from bolid_training.stages.lightning import LightningUNet
from bolid_training.stages.student import StudentTask, one_for_each

GAINS = (1.4, 1.1, 1.0, 1.0)  # of each of the four steps: chosen on validation people, see docs/architecture.md


class ContrastTask(StudentTask):
    follows = "refine"

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.module.adapter.requires_grad_(False)

    def build(self, unet: UNet2DConditionModel) -> LightningUNet:
        return LightningUNet(unet, self.config)

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Noise to draw from."""
        shape = (len(indices), *self.train_arrays["latents"].shape[1:])
        return {"noise": torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))}

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sample, timestep, target = self.one_step_each(batch)
        error = (module(batch | {"sample": sample, "timestep": timestep}).float() - target).square().mean((1, 2, 3))
        return {"loss": error.mean()} | {f"step_{i + 1}": error[i::STEPS].mean() for i in range(STEPS)}

    @torch.no_grad()
    def one_step_each(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, c, h, w], timestep [B] and v [B, c, h, w] of one step of each picture, in turn, as the student
        before would draw it with the gains."""
        sample, steps = batch["noise"] * self.scheduler.init_noise_sigma, []
        with autocast():
            predict = self.before.student(batch)
            for (timestep, alpha, previous), gain in zip(ddim_table(self.scheduler, STEPS), GAINS, strict=True):
                timesteps = timestep.expand(len(sample))
                v = louder(predict(sample, timesteps).float(), sample, alpha, gain)
                steps.append((sample, timesteps, v))
                sample = ddim_step(sample, v, alpha, previous, self.scheduler.config.prediction_type)
        return one_for_each(steps)


def louder(v: Tensor, sample: Tensor, alpha: Tensor, gain: float) -> Tensor:
    """The v prediction whose x0 = sqrt(alpha) x - sqrt(1 - alpha) v is `gain` times as large."""
    return gain * v + (1 - gain) * (alpha / (1 - alpha)).sqrt() * sample
