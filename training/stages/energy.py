"""Stage `energy`: the few-step student learns how different pictures of the same conditions are.

Who learned a teacher's means, and guidance with them, draws too much alike: places have the light and the colours that
most have. The energy score (Gneiting and Raftery, 2007, eq. 21)

    E ||x - y|| - 1/2 E ||x - x'||

of pictures x and x' of the same conditions, from different noise, and the true one y is least where x is distributed
as y is. So no discriminator is needed, and the student may leave its teacher behind. It draws every condition twice;
the gradient goes back through all four steps. Distances are those of `looks`. Of latents alone a wall of patches is
as good as a room, so the UNet of the student before says what it sees in them.

Beside it L_id, L_colour (`stages.refine`) and L_embedding with the network of `stage reid` keep the person. What is
written is a mean of the student before and after (arXiv:2109.01903), which has the spread of the one and hardly loses
the other's poses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_training.data import People
from bolid_training.lightning import lightning_sample
from bolid_training.losses import cosine_loss, keypoint_loss
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import STEPS
from bolid_training.precision import autocast
from bolid_training.stages.lightning import LightningUNet
from bolid_training.stages.refine import RefineTask, colour_loss
from bolid_training.stages.reid import Reid

LOOKS = {"features": 1.0, "means": 3.0, "latents": 0.24, "cells": 0.9, "whole": 1.2}
WEIGHTS = {"keypoints": 4.0, "colours": 2.0, "embedding": 1.0}
PLACES = ("features", "latents")  # where a place of the person's counts more than another,
BODY_WEIGHT = 4.0  # namely 1 + this
CELLS = 4  # on a side of a picture
TIMESTEPS = (60, 500)  # at which the UNet looks at latents
SHARE = 0.6  # of the student after in what is written: chosen on validation people, see docs/architecture.md
ROUND = 1e-4  # added to squared distances, whose root has no gradient at 0


class DrawingUNet(LightningUNet):
    """The student with its steps: conditions and noise in, finished latents out, with gradient from end to end."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig, scheduler: DDIMScheduler):
        super().__init__(unet, config)
        self.scheduler = scheduler

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        sizes = {"steps": STEPS, "gradient_steps": STEPS}
        return lightning_sample(self.student(batch), self.scheduler, batch["noise"], **sizes)


class EnergyTask(RefineTask):
    follows = "contrast"

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.reid = Reid(runs)
        self.persons = self.reid.of(self.people, runs)

    def build(self, unet: UNet2DConditionModel) -> DrawingUNet:
        return DrawingUNet(unet, self.config, self.scheduler)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """`size`, which is even, pictures: the second half has the first's conditions."""
        once = super().batch(rng, size // 2)
        return {name: value if name == "noise" else torch.cat([value, value]) for name, value in once.items()}

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Two noises to draw from for each picture, what it shows, and how the UNet looks at it."""
        truth = super().extras(indices, chosen, captions, rng)
        shape = truth["noise"].shape
        noise = rng.standard_normal((2 * shape[0], *shape[1:]), dtype=np.float32)
        return truth | {
            "noise": torch.from_numpy(noise),
            "latents": torch.from_numpy(self.train_arrays["latents"][indices].astype(np.float32)),
            "person": torch.from_numpy(self.persons[indices]),
            "seen_noise": torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
            "seen_at": torch.from_numpy(rng.integers(*TIMESTEPS, size=len(indices))),
        }

    def save(self, folder: Path) -> None:
        """The mean of the student before and after."""
        mean, after = deepcopy(self.before), self.module.state_dict()
        before = mean.state_dict().items()
        mean.load_state_dict({name: torch.lerp(value, after[name], SHARE) for name, value in before})
        mean.save(folder)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = module(batch).float()
        with autocast():
            pictures = self.vae.decode(latents).sample.float()
        shown = batch["keep_identity"] & batch["keep_pose"]
        person = self.reid(pictures, batch["keypoints"].numpy())
        losses = {
            "keypoints": keypoint_loss(self._keypoints(pictures), batch["keypoints"], batch["keep_pose"]),
            "colours": colour_loss(pictures, batch["truth"], batch["masks"], shown),
            "embedding": cosine_loss(person, batch["person"], shown),
        }
        energies = self.energies(latents, pictures, batch)
        total = sum(LOOKS[name] * energy for name, energy in energies.items())
        return {"loss": total + sum(WEIGHTS[name] * loss for name, loss in losses.items())} | losses | energies

    def energies(self, latents: Tensor, pictures: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The energy score of latents [2B, c, h, w] and pictures [2B, 3, H, W] in each of `looks`."""
        half = {name: value[: len(value) // 2] for name, value in batch.items()}
        with torch.no_grad():
            expected = self.features(half["latents"], half)
        # channels of a UNet differ by orders of magnitude
        scales = [(f.std((0, 2, 3), keepdim=True) + 1e-3) * f.shape[1] ** 0.5 for f in expected]
        drawn = looks(self.features(latents, batch), scales, latents, pictures)
        true = looks(expected, scales, half["latents"], half["truth"])
        body = 1 + BODY_WEIGHT * half["body"]

        def score(name: str, found: Tensor, truth: Tensor) -> Tensor:
            weight = F.adaptive_avg_pool2d(body, truth.shape[-2:]) if name in PLACES else None
            return energy_score(*found.chunk(2), truth, weight)

        return {
            name: torch.stack([score(name, *pair) for pair in zip(drawn[name], true[name], strict=True)]).mean()
            for name in LOOKS
        }

    def features(self, latents: Tensor, told: dict[str, Tensor]) -> list[Tensor]:
        """[B, d, h, w] of each block of the UNet of the student before, which is told the conditions."""
        sample = self.scheduler.add_noise(latents, told["seen_noise"], told["seen_at"])
        with block_features(self.before.frozen[0]) as found, autocast():
            self.before.student(told)(sample, told["seen_at"])
        return [features.float() for features in found]


def looks(features: list[Tensor], scales: list[Tensor], latents: Tensor, pictures: Tensor) -> dict[str, list[Tensor]]:
    """What is compared, [B, d, h, w] each: features of the UNet's blocks, place by place and on the whole; the latents;
    the colours of cells and of the whole picture."""
    scaled = [found / scale for found, scale in zip(features, scales, strict=True)]
    return {
        "features": scaled,
        "means": [found.mean((2, 3), keepdim=True) for found in scaled],
        "latents": [latents],
        "cells": [F.adaptive_avg_pool2d(pictures, CELLS)],
        "whole": [pictures.mean((2, 3), keepdim=True)],
    }


def energy_score(first: Tensor, second: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over places of ||x - y|| - 1/2 ||x - x'||, for both drawings [B, d, h, w] of each condition.

    `weight` [B, 1, h, w]: what a place counts beside the picture's others.
    """
    near = (_distance(first, truth, weight) + _distance(second, truth, weight)) / 2
    return (near - _distance(first, second, weight) / 2).mean()


def _distance(first: Tensor, second: Tensor, weight: Tensor | None) -> Tensor:
    distances = ((first - second).square().sum(1) + ROUND).sqrt()
    weight = torch.ones_like(distances) if weight is None else weight[:, 0]
    return (distances * weight).sum((1, 2)) / weight.sum((1, 2))


@contextmanager
def block_features(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Fills the list with the output of every block, in the order in which they run inside the `with`."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [b.register_forward_hook(keep) for b in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
