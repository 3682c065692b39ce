"""Stage `refine`: the few-step student and its adapter, taught by what is seen in finished pictures.

The lightning branch draws pictures from pure noise, and the gradient goes back through the last two of its four steps.
The sum, with `WEIGHTS`, of L_anchor, L_id and L_colour is minimised.

L_id (eq. 3 of the brief) asks the model's own pose estimator for the 12 keypoints. L_colour asks no network: it
compares the mean colour of each part of the body with that of the true picture of the person in that pose. L_anchor
keeps the rest as it was: v stays near to what the student, as it began, says of the same latents. L_CLIP is left out:
an unpacked checkpoint has no CLIP any more that would know pictures and sentences alike. So is L_embedding: it brought
nothing that could be measured (docs/architecture.md).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_training.data import People, pixels, resize
from bolid_training.lightning import lightning_sample
from bolid_training.losses import kept_mean, keypoint_loss
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LIGHTNING, STEPS
from bolid_training.model.pose_estimator import decode_heatmaps, load_pose_estimator
from bolid_training.precision import autocast
from bolid_training.stages.adapter import COLOURED
from bolid_training.stages.lightning import LightningUNet
from bolid_training.stages.student import StudentTask, one_for_each

GRADIENT_STEPS = 2
WEIGHTS = {"anchor": 2.0, "keypoints": 0.5, "colours": 1.0}
SEEN = 40  # pixels of a part below which its mean colour says little

Step = tuple[Tensor, Tensor, Tensor]
"""Latents [B, c, h, w], timestep [B], v [B, c, h, w]."""


class FewStepUNet(LightningUNet):
    """The student with its steps: conditions and noise in, finished latents and the differentiated steps out.

    Those are the last ones, and for each picture one of the earlier ones, if there are any, which decide about the
    place.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: AvatarConfig,
        scheduler: DDIMScheduler,
        gradient_steps: int = GRADIENT_STEPS,
    ):
        super().__init__(unet, config)
        self.scheduler, self.gradient_steps = scheduler, gradient_steps

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Step]]:
        predict, steps, early = self.student(batch), [], []

        def remembered(sample: Tensor, timestep: Tensor) -> Tensor:
            output = predict(sample, timestep)
            (steps if torch.is_grad_enabled() else early).append((sample, timestep, output))
            return output

        sizes = {"steps": STEPS, "gradient_steps": self.gradient_steps}
        latents = lightning_sample(remembered, self.scheduler, batch["noise"], **sizes)
        if steps and early:
            sample, timestep, _ = one_for_each(early)
            steps.append((sample, timestep, predict(sample, timestep)))
        return latents, steps


class RefineTask(StudentTask):
    follows = LIGHTNING

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.pose_estimator = load_pose_estimator(runs / "pose" / "model").eval().requires_grad_(False)

    def build(self, unet: UNet2DConditionModel) -> FewStepUNet:
        return FewStepUNet(unet, self.config, self.scheduler)

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Noise to draw from, and what a true picture of the same conditions shows."""
        shape = (len(indices), *self.train_arrays["latents"].shape[1:])
        return {
            "noise": torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
            "truth": pixels(self.people.images[indices]).contiguous(),
            "masks": part_masks(self.people.parts[indices]),
            "keypoints": torch.from_numpy(self.people.keypoints[indices]),
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, steps = module(batch)
        with autocast():
            pictures = self.vae.decode(latents).sample.float()
        keypoints = keypoint_loss(self._keypoints(pictures), batch["keypoints"], batch["keep_pose"])
        shown = batch["keep_identity"] & batch["keep_pose"]
        colours = colour_loss(pictures, batch["truth"], batch["masks"], shown)
        anchor = self.anchor_loss(steps, batch)
        losses = {"anchor": anchor, "keypoints": keypoints, "colours": colours}
        return {"loss": sum(WEIGHTS[name] * loss for name, loss in losses.items())} | losses

    def anchor_loss(self, steps: list[Step], batch: dict[str, Tensor], weight: Tensor | float = 1.0) -> Tensor:
        """Mean squared distance of each step's v from what the student said before it was refined; `weight`
        [B, 1, h, w]: what a place counts."""
        with torch.no_grad(), autocast():
            predict = self.before.student(batch)
            before = [predict(sample, timestep).float() for sample, timestep, _ in steps]
        pairs = zip(steps, before, strict=True)
        return torch.stack([(weight * (output.float() - v).square()).mean() for (_, _, output), v in pairs]).mean()

    def _keypoints(self, pictures: Tensor) -> Tensor:
        """[B, 12, 3] of pictures [B, 3, H, W] in [-1, 1]."""
        side, _ = self.pose_estimator.image_size
        return decode_heatmaps(self.pose_estimator.heatmaps(resize(pictures, side)).float())


def part_masks(parts: np.ndarray) -> Tensor:
    """Labels [B, H, W] -> float32 [B, 5, H, W], a mask for each of `COLOURED`."""
    return torch.from_numpy(np.stack([np.isin(parts, group) for group in COLOURED], 1).astype(np.float32))


def colour_loss(found: Tensor, truth: Tensor, masks: Tensor, keep: Tensor) -> Tensor:
    """Mean squared distance of the parts' mean colours in pictures [B, 3, H, W] in [-1, 1]; `masks` [B, P, H, W].

    Parts of fewer than `SEEN` pixels do not count, nor samples that `keep` [B] leaves out.
    """
    size = masks.sum((2, 3))
    means = [torch.einsum("bchw,bphw->bpc", p, masks) / size.clamp(min=1)[..., None] for p in (found, truth)]
    seen = (size >= SEEN).float()
    distance = F.mse_loss(*means, reduction="none").sum(-1)
    return kept_mean((distance * seen).sum(1) / seen.sum(1).clamp(min=1), keep)
