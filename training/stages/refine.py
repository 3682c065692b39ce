"""Stage `refine`: the few-step student and its adapter, taught by what is seen in finished pictures.

The lightning branch draws pictures from pure noise, and the gradient goes back through the last two of its four steps:

    L = L_distill + ID L_id + COLOUR L_colour

L_id (eq. 3 of the brief) asks the model's own pose estimator for the 12 keypoints. L_colour asks no network: it
compares the mean colour of each part of the body with that of the true picture of the person in that pose. L_distill,
the teacher's trajectories, keeps the rest as it was. L_CLIP is left out: the text encoder has been trained on with the
base, so this checkpoint has no CLIP any more that would know pictures and sentences alike.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_training.conditions import masked_features
from bolid_training.data import People, pixels, resize
from bolid_training.lightning import lightning_sample
from bolid_training.losses import kept_mean, keypoint_loss
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import STEPS
from bolid_training.model.pose_estimator import decode_heatmaps, load_pose_estimator
from bolid_training.stages.adapter import COLOURED
from bolid_training.stages.lightning import LightningTask, LightningUNet

GRADIENT_STEPS = 2
ID_WEIGHT, COLOUR_WEIGHT = 0.5, 1.0
SEEN = 40  # pixels of a part below which its mean colour says little


class FewSteps(nn.Module):
    """The student with its steps: conditions and noise in, v of `L_distill` and finished latents out."""

    def __init__(self, student: LightningUNet, scheduler: object):
        super().__init__()
        self.student, self.scheduler = student, scheduler

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        student = self.student
        attention = student.attention(batch)
        features = masked_features(student.adapter.pose_guider(batch["skeleton"]), batch["keep_pose"])

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            return student.frozen[0](
                sample,
                timestep,
                batch["encoder_hidden_states"],
                cross_attention_kwargs=attention,
                down_intrablock_additional_residuals=list(features),
            ).sample

        latents = lightning_sample(predict, self.scheduler, batch["noise"], steps=STEPS, gradient_steps=GRADIENT_STEPS)
        return predict(batch["sample"], batch["timestep"]), latents


class RefineTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        self.lightning = LightningTask(config, people, validation, runs)
        self.lightning.load(runs / "lightning" / "model")
        self.people = self.lightning.pairs.people
        self.vae = self.lightning.pairs.vae
        self.pose_estimator = load_pose_estimator(runs / "pose" / "model").eval().requires_grad_(False)
        self.module = FewSteps(self.lightning.module, self.lightning.scheduler)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """A batch of `lightning`, noise to draw the same conditions from, and what a true picture of them shows."""
        batch = self.lightning.batch(rng, size)
        index = batch["index"].numpy()
        noise = rng.standard_normal(batch["sample"].shape, dtype=np.float32)
        return batch | {
            "noise": torch.from_numpy(noise),
            "truth": pixels(self.people.images[index]).contiguous(),
            "masks": part_masks(self.people.parts[index]),
            "keypoints": torch.from_numpy(self.people.keypoints[index]),
            # the reference's colours are zeros where nobody was shown
            "with_person": batch["colours"][..., 3].any(1),
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output, latents = module(batch)
        decoded = self.vae.decode(latents).sample.float()
        distilled = self.lightning.compared(output, batch)
        keypoints = keypoint_loss(self._keypoints(decoded), batch["keypoints"], batch["keep_pose"])
        colours = colour_loss(decoded, batch["truth"], batch["masks"], batch["with_person"] & batch["keep_pose"])
        total = distilled["loss"] + ID_WEIGHT * keypoints + COLOUR_WEIGHT * colours
        return {"loss": total, "mse": distilled["mse"], "keypoints": keypoints, "colours": colours}

    def _keypoints(self, pictures: Tensor) -> Tensor:
        """[B, 12, 3] of pictures [B, 3, H, W] in [-1, 1]."""
        side, _ = self.pose_estimator.image_size
        return decode_heatmaps(self.pose_estimator.heatmaps(resize(pictures, side)).float())

    def validate(self, sheet: Path) -> dict[str, float]:
        return self.lightning.validate(sheet)

    def save(self, folder: Path) -> None:
        self.lightning.save(folder)

    def load(self, folder: Path) -> None:
        self.lightning.load(folder)


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
