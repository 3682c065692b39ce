"""Stage `pose`: ViTPose on the pictures' exact keypoints.

Twelve points a picture are a sparse signal: beside the heatmaps the backbone learns to segment the body, through a
layer that is not kept.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import VitPoseForPoseEstimation

from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.parts import Part
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import FLIP, People, pixels, resize
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import (
    HEATMAP_STRIDE,
    KEYPOINTS,
    SHARPNESS,
    PoseEstimator,
    build_vitpose,
    draw_heatmaps,
)
from bolid_training.precision import fastest_precision
from bolid_training.stages.vae import to_bytes

CROWD = 0.1  # share of batches with a second person pasted in: the runtime counts people by their peaks
EMPTY = 0.06  # share of pictures of places without people: nobody must look like nobody
PEAK_WEIGHT = 10.0
HEATMAP_WEIGHT = 20.0
SEGMENTATION_WEIGHT = 10.0
BODY = ((Part.FACE, Part.HAIR, Part.HAT), (Part.UPPER,), (Part.LOWER,), (Part.SHOES,), (Part.ARMS,), (Part.LEGS,))


class SegmentingPose(nn.Module):
    """ViTPose with a segmentation layer: pixels -> heatmaps [B, 12, h, w], logits of `BODY` [B, 6, h, w]."""

    def __init__(self, vitpose: VitPoseForPoseEstimation):
        super().__init__()
        self.vitpose = vitpose
        self.segmentation = nn.Conv2d(vitpose.config.backbone_config.hidden_size, len(BODY), 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vitpose.backbone(pixels).feature_maps[-1]
        side = round(tokens.shape[1] ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        heatmaps = self.vitpose.head(grid)
        return heatmaps, F.interpolate(self.segmentation(grid), heatmaps.shape[-2:], mode="bilinear")


class PoseTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, empty: People):
        self.size, self.people, self.validation, self.empty = config.pose_size, people, validation, empty
        self.module = SegmentingPose(build_vitpose(config.pose_size, config.pose_width, config.pose_layers))
        self.estimator = PoseEstimator(self.module.vitpose)
        if fastest_precision() == "bf16":
            # on CPUs the backward of bfloat16 scaled_dot_product_attention is slower than that of its parts
            self.module.vitpose.backbone.set_attn_implementation("eager")

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        images, keypoints = pixels(self.people.images[indices]), torch.from_numpy(self.people.keypoints[indices])
        parts, side = self.people.parts[indices], self.size // HEATMAP_STRIDE
        targets = torch.cat([visible_heatmaps(keypoints, side), body_coverage(parts, side)], 1)
        if rng.random() < CROWD:
            person = torch.from_numpy(parts != Part.BACKGROUND)[:, None]
            images, targets = paste_second_person(images, targets, person, rng)
        nobody = rng.random(size) < EMPTY
        images[nobody] = pixels(self.empty.images[rng.integers(len(self.empty), size=nobody.sum())])
        targets[nobody] = 0
        images, targets = augment(images, targets, rng)
        heatmaps, coverage = targets.split([KEYPOINTS, len(BODY)], 1)
        return {"pixels": resize(images, self.size), "heatmaps": heatmaps, "coverage": coverage}

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        heatmaps, logits = (output.float() for output in module(batch["pixels"]))
        weight = 1 + PEAK_WEIGHT * batch["heatmaps"]
        error = (weight * (heatmaps - batch["heatmaps"]).square()).mean()
        divergence = position_divergence(heatmaps, batch["heatmaps"])
        segmentation = F.binary_cross_entropy_with_logits(logits, batch["coverage"])
        loss = divergence + HEATMAP_WEIGHT * error + SEGMENTATION_WEIGHT * segmentation
        return {"loss": loss, "divergence": divergence, "error": error, "segmentation": segmentation}

    def validate(self, sheet: Path) -> dict[str, float]:
        images, truth = pixels(self.validation.images[:200]), torch.from_numpy(self.validation.keypoints[:200])
        found = self.estimate(images)
        drawn = [draw_skeleton(points.numpy(), *images.shape[-2:]) for points in found[:18]]
        overlay = np.maximum(to_bytes(images[:18]) // 2, np.stack(drawn))
        contact_sheet(overlay, columns=6).save(sheet)
        nobody = self.estimate(pixels(self.empty.images[-200:]))
        error = (found[..., :2] - truth[..., :2]).norm(dim=-1)
        seen = truth[..., 2] == 2
        return {
            "error_visible": float(error[seen].mean()),
            "within_5_percent": float((error[truth[..., 2] > 0] < 0.05).float().mean()),
            "confidence": float(found[..., 2].mean()),
            "confidence_empty": float(nobody[..., 2].mean()),
        }

    def estimate(self, images: Tensor) -> Tensor:
        """Keypoints [B, 12, 3] of pictures [B, 3, H, W] of any size."""
        return self.estimator(resize(images, self.size))[0]

    def save(self, folder: Path) -> None:
        self.module.vitpose.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.module.vitpose.load_state_dict(VitPoseForPoseEstimation.from_pretrained(folder).state_dict())


def visible_heatmaps(keypoints: Tensor, side: int) -> Tensor:
    """Heatmaps [B, 12, side, side] with a peak for each keypoint inside the picture, occluded or not."""
    return draw_heatmaps(keypoints[..., :2], side, side) * (keypoints[..., 2, None, None] > 0)


def body_coverage(parts: np.ndarray, side: int) -> Tensor:
    """Labels [B, H, W] -> each body part's share [B, 6, side, side] of every cell."""
    masks = np.stack([np.isin(parts, group) for group in BODY], 1)
    return F.adaptive_avg_pool2d(torch.from_numpy(masks.astype(np.float32)), side)


def position_divergence(heatmaps: Tensor, target: Tensor) -> Tensor:
    """KL divergence between where target and estimate see a keypoint, averaged over the keypoints that are there.

    Squared errors alone are slow to leave the mean pose, for a blurred peak costs little wherever it is. Both
    distributions are the decoder's own, so what is learned is what is read.
    """
    seen = target.amax((-2, -1)) > 0.5
    where = torch.softmax(target.flatten(2) * SHARPNESS, -1)
    log_found = torch.log_softmax(heatmaps.flatten(2) * SHARPNESS, -1)
    divergence = (where * (where.clamp(min=1e-12).log() - log_found)).sum(-1)
    return (divergence * seen).sum() / seen.sum().clamp(min=1)


def paste_second_person(
    images: Tensor, heatmaps: Tensor, person: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Each picture gets the person of the next one beside its own, both at 55-75 % of their size."""
    scale = rng.uniform(0.55, 0.75)
    first, second = (-0.45, 0.45) if rng.random() < 0.5 else (0.45, -0.45)
    roll = lambda tensor: tensor.roll(1, 0)  # noqa: E731
    base = warp(images, scale, first, 0.0)
    mask = warp(roll(person).float(), scale, second, 0.0, padding="zeros") > 0.5
    pasted = torch.where(mask, warp(roll(images), scale, second, 0.0), base)
    peaks = torch.maximum(
        warp(heatmaps, scale, first, 0.0, padding="zeros"), warp(roll(heatmaps), scale, second, 0.0, padding="zeros")
    )
    return pasted, peaks


def augment(images: Tensor, heatmaps: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, scale, shift, brightness and contrast, one draw a batch. Maps beyond the 12 heatmaps have no sides."""
    if rng.random() < 0.5:
        images, heatmaps = images.flip(3), heatmaps.flip(3)[:, [*FLIP, *range(len(FLIP), heatmaps.shape[1])]]
    if rng.random() < 0.7:
        scale, dx, dy = rng.uniform(0.6, 1.2), *rng.uniform(-0.2, 0.2, 2)
        padding = "zeros" if rng.random() < 0.5 else "border"
        images = warp(images, scale, dx, dy, padding=padding)
        heatmaps = warp(heatmaps, scale, dx, dy, padding="zeros")
    gain, offset = rng.uniform(0.7, 1.3), rng.uniform(-0.2, 0.2)
    return (images * gain + offset).clamp(-1, 1), heatmaps


def warp(images: Tensor, scale: float, dx: float, dy: float, padding: str = "border") -> Tensor:
    """The pictures scaled about their centre and moved by (dx, dy) in units of half the side."""
    theta = torch.tensor([[1 / scale, 0, -dx / scale], [0, 1 / scale, -dy / scale]], dtype=images.dtype)
    grid = F.affine_grid(theta.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
