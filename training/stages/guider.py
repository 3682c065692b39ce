"""Stage `guider`: the pose guider learns from where finished pictures show the keypoints.

Not points are compared, as by L_id, but the pose estimator's heatmaps with the true ones (KL divergence, as in
`stages.decoder`), close up, with gradient through all four steps. All but the guider is frozen, which keeps what people
and places look like; L_anchor, which counts little on the person, holds v to what the student said before, and L_colour
the clothes.
"""

from pathlib import Path

import numpy as np
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bolid_training.data import People
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import STEPS
from bolid_training.model.pose_estimator import HEATMAP_STRIDE
from bolid_training.precision import autocast
from bolid_training.stages.pose import draw_views, person_boxes, position_divergence, shares, visible_heatmaps
from bolid_training.stages.refine import FewStepUNet, RefineTask, colour_loss
from bolid_training.views import Views

WEIGHTS = {"anchor": 3.0, "positions": 0.3, "colours": 1.0}
ON_PERSON = 0.2  # what L_anchor counts there
LYING = 3.0  # how much more often people are drawn who lie: they come out least well


class GuiderTask(RefineTask):
    follows = "energy"

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.module.requires_grad_(False)
        self.module.adapter.pose_guider.requires_grad_(True)
        self.boxes = person_boxes(self.people)
        self.shares = shares([self.people.metadata[index] for index in self.people.with_photos], LYING)

    def build(self, unet: UNet2DConditionModel) -> FewStepUNet:
        return FewStepUNet(unet, self.config, self.scheduler, gradient_steps=STEPS)

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Also how the estimator looks at each picture."""
        close_up = draw_views(self.boxes[indices], np.zeros(len(indices), bool), rng)
        return super().extras(indices, chosen, captions, rng) | vars(close_up)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, steps = module(batch)
        with autocast():
            pictures = self.vae.decode(latents).sample.float()
        shown = batch["keep_identity"] & batch["keep_pose"]
        losses = {
            "anchor": self.anchor_loss(steps, batch, 1 - (1 - ON_PERSON) * batch["body"]),
            "positions": self.position_loss(pictures, batch),
            "colours": colour_loss(pictures, batch["truth"], batch["masks"], shown),
        }
        return {"loss": sum(WEIGHTS[name] * loss for name, loss in losses.items())} | losses

    def position_loss(self, pictures: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Divergence of where the estimator sees each keypoint, in pictures [B, 3, H, W] that were told the pose."""
        told, (side, _) = batch["keep_pose"], self.pose_estimator.image_size
        views = Views(**{name: batch[name][told] for name in ("centre", "side", "angle", "mirror")})
        target = visible_heatmaps(views.locate(batch["keypoints"][told][:, None]), side // HEATMAP_STRIDE)
        heatmaps = self.pose_estimator.heatmaps(views.cut(pictures[told], side, "border"))
        return position_divergence(heatmaps.float(), target)
