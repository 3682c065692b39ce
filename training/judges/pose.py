"""Stage `judge_pose`: a fully convolutional pose network, where the one that conditions is a transformer.

UperNet (arXiv:1807.10221) on a ResNet gives a heatmap for each keypoint at a quarter of the picture's side. As ViTPose
it sees the whole picture first and the person's box then, and as there, limbs are learned beside the keypoints.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from bolid_sdk.contracts import LIMBS
from bolid_sdk.parts import person_box
from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People, pixels
from bolid_training.degrade import degrade
from bolid_training.evaluate.metrics import keypoint_errors, pck
from bolid_training.judges.config import JudgeConfig
from bolid_training.judges.resnet import resnet_config
from bolid_training.metric_learning import box_views, found_keypoints
from bolid_training.model.batch_norm import STATISTICS_BATCHES, settle
from bolid_training.model.pose_estimator import FLIP, KEYPOINTS, decode_heatmaps
from bolid_training.stages.pose import draw_limbs, draw_views, position_divergence, visible_heatmaps
from bolid_training.views import Views

STRIDE = 4
WHOLE = 0.35  # share of views of the whole picture
PEAK_WEIGHT, HEATMAP_WEIGHT, LIMB_WEIGHT = 10.0, 20.0, 20.0
BATCH = 32


class PoseJudge(nn.Module):
    """pixels [B, 3, H, H] in [-1, 1] -> heatmaps [B, 12, H/4, H/4] and logits of `LIMBS` [B, 18, H/4, H/4]."""

    def __init__(self, network: UperNetForSemanticSegmentation):
        super().__init__()
        self.network = network

    @property
    def image_size(self) -> int:
        return self.network.config.image_size

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.decode_head(self.network.backbone(pixels).feature_maps)
        return maps[:, :KEYPOINTS], maps[:, KEYPOINTS:]

    def heatmaps(self, pixels: Tensor) -> Tensor:
        """The mean over the picture and its mirror image."""
        straight, mirrored = self(torch.cat([pixels, pixels.flip(-1)]))[0].float().chunk(2)
        return (straight + mirrored.flip(-1)[:, FLIP]) / 2

    def look(self, images: Tensor, views: Views) -> NDArray[np.float32]:
        """Keypoints [B, 12, 3] in the coordinates of `images`, found in upright `views` of them."""
        found = decode_heatmaps(self.heatmaps(views.cut(images, self.image_size)))
        points = views.centre[:, None] + (found[..., :2] - 0.5) * views.side[:, None, None]
        return torch.cat([points, found[..., 2:]], -1).numpy()


def build_pose_judge(config: JudgeConfig) -> PoseJudge:
    """UperNet on a ResNet, both transformers' own."""
    stages = [f"stage{number + 1}" for number in range(len(config.pose_widths))]
    network = UperNetConfig(
        backbone_config=resnet_config(config.pose_widths, config.pose_depths, out_features=stages),
        hidden_size=config.pose_head,
        use_auxiliary_head=False,
        num_labels=KEYPOINTS + len(LIMBS),
        image_size=config.pose_size,
    )
    return PoseJudge(UperNetForSemanticSegmentation(network))


@torch.no_grad()
def find_keypoints(judge: PoseJudge, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Keypoints [B, 12, 3] (x, y in [0, 1], confidence) of square pictures [B, H, W, 3], in two looks.

    The second is at the box that the first has found: nothing is known of where the person should be.
    """
    return np.concatenate(
        [_find(judge, pixels(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    )


def _find(judge: PoseJudge, images: Tensor) -> NDArray[np.float32]:
    whole = np.tile([0.0, 0.0, 1.0, 1.0], (len(images), 1))
    first = judge.look(images, box_views(whole))
    return judge.look(images, box_views(np.stack([person_box(points) for points in first])))


class PoseJudgeTask:
    def __init__(self, config: JudgeConfig, people: People, validation: People):
        self.size, self.people, self.held_out = config.pose_size, people, validation
        self.boxes = np.stack([person_box(points) for points in found_keypoints(people)])
        self.module = build_pose_judge(config).to(memory_format=torch.channels_last)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        views = draw_views(self.boxes[indices], rng.random(size) < WHOLE, rng)
        points = views.locate(torch.from_numpy(self.people.keypoints[indices])[:, None])
        side = self.size // STRIDE
        return {
            "pixels": degrade(views.cut(pixels(self.people.images[indices]), self.size), rng),
            "heatmaps": visible_heatmaps(points, side),
            "limbs": draw_limbs(points, side),
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        heatmaps, limbs = (output.float() for output in module(batch["pixels"]))
        target = batch["heatmaps"]
        error = ((1 + PEAK_WEIGHT * target) * (heatmaps - target).square()).mean()
        divergence = position_divergence(heatmaps, target)
        limb = F.binary_cross_entropy_with_logits(limbs, batch["limbs"])
        loss = divergence + HEATMAP_WEIGHT * error + LIMB_WEIGHT * limb
        return {"loss": loss, "divergence": divergence, "error": error, "limb": limb}

    def validate(self, sheet: Path) -> dict[str, float]:
        """PCK on people who were not trained on, of pictures as they are and of damaged ones."""
        self.settle()
        images, truth = self.held_out.images[:200], self.held_out.keypoints[:200]
        found = find_keypoints(self.module, images)
        damaged = degrade(pixels(images), np.random.default_rng(0))
        errors, damaged_errors = keypoint_errors(found, truth), keypoint_errors(_find(self.module, damaged), truth)
        self.module.train()
        skeletons = np.stack([draw_skeleton(points, *images.shape[1:3]) for points in found[:18]])
        contact_sheet(np.maximum(images[:18] // 2, skeletons), columns=6).save(sheet)
        return {
            "pck10": float(pck(errors, 0.1).mean()),
            "pck05": float(pck(errors, 0.05).mean()),
            "pck10_damaged": float(pck(damaged_errors, 0.1).mean()),
        }

    def settle(self) -> None:
        seeds = range(STATISTICS_BATCHES)
        settle(self.module, [self.batch(np.random.default_rng(seed), BATCH)["pixels"] for seed in seeds])

    def save(self, folder: Path) -> None:
        self.settle()
        self.module.network.save_pretrained(folder)
        self.module.train()

    def load(self, folder: Path) -> None:
        self.module.network.load_state_dict(UperNetForSemanticSegmentation.from_pretrained(folder).state_dict())
