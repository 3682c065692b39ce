"""Stage `pose`: ViTPose on the pictures' exact keypoints.

ViTPose is a top-down estimator: it finds the person in the whole picture first, and reads the pose in the person's box
then. It is trained on both views.

It also has to read what the autoencoder draws, where arms are a shade of the background: some of the pictures are
reconstructions, from latents with noise as a denoiser leaves it.

Twelve points a picture are a sparse signal: beside the heatmaps the backbone learns, through a layer that is not kept,
to segment the body and to say of every limb where it is and of which side.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_sdk.contracts import LIMBS
from bolid_sdk.parts import person_box
from bolid_sdk.pose import draw_skeleton, estimate_pose
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import BODY, body_masks, estimated_keypoints
from bolid_training.data import People, cached_of, pixels, resize
from bolid_training.evaluate.metrics import keypoint_errors, pck
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import (
    HEATMAP_STRIDE,
    SHARPNESS,
    PoseEstimator,
    build_pose_estimator,
    draw_heatmaps,
    load_pose_estimator,
)
from bolid_training.precision import autocast, fastest_layout, use_fastest_attention
from bolid_training.stages.unet import cached_latents
from bolid_training.stages.vae import autoencoder_folder, to_bytes
from bolid_training.views import Views, upright

CROWD = 0.1  # share of batches with a second person pasted in: the runtime counts people by their peaks
EMPTY = 0.06  # share of pictures of places without people: nobody must look like nobody
RECONSTRUCTED = 0.4  # share of pictures as the autoencoder draws them
LATENT_NOISE = 0.5  # at most, in standard deviations of a latent
WHOLE = 0.4  # share of views of the whole picture, which find the person; the others read the pose close up
LYING = 2.0  # how much more often people are drawn who lie: they are read least well
TURNED = 0.1  # share of turned views
TURN = 0.4  # radians, standard deviation
LIGHT = ((0.7, 1.3), (-0.2, 0.2))  # contrast and brightness
PEAK_WEIGHT = 10.0
HEATMAP_WEIGHT = 20.0
SEGMENTATION_WEIGHT = 10.0
LIMB_WEIGHT = 20.0
LIMB_SIGMA = 0.8  # of a limb's profile, in heatmap pixels


class SegmentingPose(nn.Module):
    """An estimator and a layer beside it: pixels -> heatmaps [B, 12, h, w], logits of `BODY`, `LIMBS` [B, 18, h, w]."""

    def __init__(self, estimator: PoseEstimator):
        super().__init__()
        self.estimator = estimator
        width = estimator.vitpose.config.backbone_config.hidden_size
        self.segmentation = nn.Conv2d(width, len(BODY) + len(LIMBS), 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.estimator.tokens(pixels)
        heatmaps = self.estimator.vitpose.head(tokens)
        return heatmaps, F.interpolate(self.segmentation(tokens), heatmaps.shape[-2:], mode="bilinear")


class TorchEngine:
    """The estimator as the runtime calls it."""

    def __init__(self, estimator: PoseEstimator):
        self.estimator = estimator

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.estimator(torch.from_numpy(inputs["pixels"]))
        return {name: output.numpy() for name, output in zip(("keypoints", "heatmaps"), outputs, strict=True)}


class PoseTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, empty: People, runs: Path):
        self.size, self.people, self.validation, self.empty = config.pose_size, people, validation, empty
        self.shares = shares(people.metadata, LYING)
        vae = AutoencoderTiny.from_pretrained(autoencoder_folder(runs)).eval().requires_grad_(False)
        self.reconstructed = cached_reconstructions(vae, people, runs)
        self.reconstructed_empty = cached_reconstructions(vae, empty, runs)
        self.boxes = person_boxes(people)
        self.estimator = build_pose_estimator(config.pose_size, config.pose_width, config.pose_layers)
        self.module = SegmentingPose(self.estimator).to(memory_format=fastest_layout())
        use_fastest_attention(self.estimator.vitpose.backbone)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.choice(len(self.people), size, p=self.shares)
        drawn = rng.random((size, 1, 1, 1)) < RECONSTRUCTED
        images = pixels(np.where(drawn, self.reconstructed[indices], self.people.images[indices]))
        masks = body_masks(self.people.parts[indices])
        keypoints = torch.from_numpy(self.people.keypoints[indices])[:, None]
        crowd = rng.random() < CROWD
        if crowd:
            images, masks, keypoints = paste_second_person(images, masks, keypoints, rng)
        nobody = rng.random(size) < EMPTY
        places = rng.integers(len(self.empty), size=nobody.sum())
        empty = np.where(drawn[nobody], self.reconstructed_empty[places], self.empty.images[places])
        images[nobody] = pixels(empty)
        masks[nobody], keypoints[nobody] = 0, 0
        views = draw_views(self.boxes[indices], crowd | (rng.random(size) < WHOLE), rng)
        side = self.size // HEATMAP_STRIDE
        points = views.locate(keypoints)
        cut = views.cut(images, self.size, "zeros" if rng.random() < 0.5 else "border")
        return {
            "pixels": change_light(cut, rng).contiguous(memory_format=fastest_layout()),
            "heatmaps": visible_heatmaps(points, side),
            "limbs": draw_limbs(points, side),
            "coverage": F.avg_pool2d(views.cut(masks, 2 * side), 2),
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        heatmaps, logits = (output.float() for output in module(batch["pixels"]))
        weight = 1 + PEAK_WEIGHT * batch["heatmaps"]
        error = (weight * (heatmaps - batch["heatmaps"]).square()).mean()
        divergence = position_divergence(heatmaps, batch["heatmaps"])
        body, limbs = logits.split([len(BODY), len(LIMBS)], 1)
        segmentation = F.binary_cross_entropy_with_logits(body, batch["coverage"])
        limb = F.binary_cross_entropy_with_logits(limbs, batch["limbs"])
        loss = divergence + HEATMAP_WEIGHT * error + SEGMENTATION_WEIGHT * segmentation + LIMB_WEIGHT * limb
        return {"loss": loss, "divergence": divergence, "error": error, "segmentation": segmentation, "limb": limb}

    def validate(self, sheet: Path) -> dict[str, float]:
        images, truth = self.validation.images[:200], self.validation.keypoints[:200]
        first, found = self.estimate(images)
        drawn = [draw_skeleton(points, *images.shape[1:3]) for points in found[:18]]
        overlay = np.maximum(images[:18] // 2, np.stack(drawn))
        contact_sheet(overlay, columns=6).save(sheet)
        nobody = self.estimate(self.empty.images[-200:])
        errors = keypoint_errors(found, truth)
        return {
            "pck10": float(pck(errors, 0.1).mean()),
            "pck20": float(pck(errors, 0.2).mean()),
            "pck10_first": float(pck(keypoint_errors(first, truth), 0.1).mean()),
            "confidence_first": float(first[..., 2].mean()),
            "confidence": float(found[..., 2].mean()),
            "confidence_empty_first": float(nobody[0][..., 2].mean()),
            "confidence_empty": float(nobody[1][..., 2].mean()),
        }

    def estimate(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints [B, 12, 3] of pictures [B, H, W, 3]: by the whole picture alone, and as the runtime finds them."""
        first = self.estimator(resize(pixels(images), self.size))[0].numpy()
        engine, size = TorchEngine(self.estimator), (self.size, self.size)
        found = [estimate_pose(engine, Image.fromarray(image), size).keypoints for image in images]
        return first, np.stack(found)

    def save(self, folder: Path) -> None:
        self.estimator.save(folder)

    def load(self, folder: Path) -> None:
        self.estimator.load_state_dict(load_pose_estimator(folder).state_dict())


def shares(metadata: Iterable[Mapping[str, Any]], lying: float) -> np.ndarray:
    """[N]: how often samples are drawn, if people who lie are drawn `lying` times as often as others."""
    weights = np.array([lying if entry["pose"] == "lying" else 1.0 for entry in metadata])
    return weights / weights.sum()


def person_boxes(people: People) -> np.ndarray:
    """[N, 4]: where the runtime looks closer, having found the person as well as an estimator does."""
    return np.stack([person_box(estimated_keypoints(k, i)) for i, k in enumerate(people.keypoints)])


def cached_reconstructions(vae: AutoencoderTiny, people: People, runs: Path) -> np.ndarray:
    """uint8 [N, H, W, 3]: pictures as the autoencoder draws them, from the latents that the base learns, with noise."""
    latents = cached_latents(vae, people, runs)

    def reconstruct(piece: slice) -> np.ndarray:
        rng, clean = np.random.default_rng(piece.start or 0), latents[piece].astype(np.float32)
        noise = rng.uniform(0, LATENT_NOISE, (len(clean), 1, 1, 1)) * rng.standard_normal(clean.shape)
        with torch.no_grad(), autocast():
            return to_bytes(vae.decode(torch.from_numpy(clean + noise.astype(np.float32))).sample.float())

    return cached_of(people, runs, "reconstructed", reconstruct, by=vae)


def visible_heatmaps(keypoints: Tensor, side: int) -> Tensor:
    """Heatmaps [B, 12, side, side] with a peak for each keypoint of each person [B, P, 12, 3] inside the picture."""
    peaks = draw_heatmaps(keypoints[..., :2], side, side) * (keypoints[..., 2, None, None] > 0)
    return peaks.amax(1)


def draw_limbs(keypoints: Tensor, side: int) -> Tensor:
    """Maps [B, 12, side, side], 1 along the `LIMBS` of each person [B, P, 12, 3] that have both ends in the picture."""
    ends = keypoints[..., list(zip(*LIMBS, strict=True)), :]
    (start, stop), seen = ends[..., :2].unbind(2), (ends[..., 2] > 0).all(2)
    axis = (torch.arange(side) + 0.5) / side
    cells = torch.stack([axis.expand(side, side), axis[:, None].expand(side, side)], -1)
    offset = cells - start[..., None, None, :]
    along = (stop - start)[..., None, None, :]
    share = (offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)
    distance = (offset - share.clamp(0, 1)[..., None] * along).norm(dim=-1) * side
    maps = torch.exp(-distance.square() / (2 * LIMB_SIGMA**2)) * seen[..., None, None]
    return maps.amax(1)


def position_divergence(heatmaps: Tensor, target: Tensor) -> Tensor:
    """KL divergence between where target and estimate see a keypoint, averaged over the keypoints that are there.

    Squared errors alone are slow to leave the mean pose, for a blurred peak costs little wherever it is. Both
    distributions are as sharp as the decoder's.
    """
    seen = target.amax((-2, -1)) > 0.5
    where = torch.softmax(target.flatten(2) * SHARPNESS, -1)
    log_found = torch.log_softmax(heatmaps.flatten(2) * SHARPNESS, -1)
    divergence = (where * (where.clamp(min=1e-12).log() - log_found)).sum(-1)
    return (divergence * seen).sum() / seen.sum().clamp(min=1)


def paste_second_person(
    images: Tensor, masks: Tensor, keypoints: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Each picture gets the person of the next one beside its own, both at 55-75 % of their size.

    Keypoints [B, 1, 12, 3] become [B, 2, 12, 3].
    """
    count, size = len(images), images.shape[-1]
    side = 1 / rng.uniform(0.55, 0.75)
    shift = 0.225 * side * (1 if rng.random() < 0.5 else -1)
    centre = torch.full((count, 2), 0.5)
    offset = torch.tensor([shift, 0.0])
    first, second = (upright(centre + sign * offset, torch.full((count,), side)) for sign in (1, -1))
    other = [tensor.roll(1, 0) for tensor in (images, masks, keypoints)]
    where = second.cut(other[1].amax(1, keepdim=True), size) > 0.5
    pasted = torch.where(where, second.cut(other[0], size), first.cut(images, size, "border"))
    covered = torch.where(where, second.cut(other[1], size), first.cut(masks, size))
    return pasted, covered, torch.cat([first.locate(keypoints), second.locate(other[2])], 1)


def draw_views(boxes: np.ndarray, whole: np.ndarray, rng: np.random.Generator) -> Views:
    """What the estimator is shown: the picture, where `whole` [B] says so, or about the person's box [B, 4]."""
    count = len(boxes)
    centre = np.where(whole[:, None], 0.5, (boxes[:, :2] + boxes[:, 2:]) / 2)
    side = np.where(whole, 1.0, boxes[:, 2] - boxes[:, 0])
    wander = np.where(whole, 0.2, 0.1) * (rng.random(count) < 0.8)
    zoom = np.exp(rng.uniform(-0.25, 0.25, count) * (rng.random(count) < 0.8))
    return Views(
        centre=torch.from_numpy(centre + (wander * side)[:, None] * rng.uniform(-1, 1, (count, 2))).float(),
        side=torch.from_numpy(side * zoom).float(),
        angle=torch.from_numpy(rng.normal(0, TURN, count) * (rng.random(count) < TURNED)).float(),
        mirror=torch.from_numpy(rng.random(count) < 0.5),
    )


def change_light(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness and contrast of each picture."""
    gain, offset = (torch.from_numpy(rng.uniform(*span, (len(images), 1, 1, 1))).float() for span in LIGHT)
    return (images * gain + offset).clamp(-1, 1)
