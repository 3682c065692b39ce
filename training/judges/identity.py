"""Stage `judge_identity`: who a picture shows, as a ResNet sees it that has learned by metric learning."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from bolid_training.data import People, pixels
from bolid_training.judges.config import JudgeConfig
from bolid_training.judges.resnet import resnet_config
from bolid_training.metric_learning import BATCH, PairsTask, body_boxes, box_views


def build_identity_judge(config: JudgeConfig) -> ResNetForImageClassification:
    """transformers' classifier, whose last layer gives the embedding instead of classes."""
    sizes = {"num_labels": config.identity_embedding, "image_size": config.identity_size}
    return ResNetForImageClassification(resnet_config(config.identity_widths, config.identity_depths, **sizes))


@torch.no_grad()
def embed(judge: ResNetForImageClassification, images: NDArray[np.uint8], keypoints: NDArray) -> NDArray[np.float32]:
    """Unit embeddings [B, D] of the people at `keypoints` [B, 12, 3] (x, y in [0, 1], confidence) in [B, H, W, 3]."""
    cuts = box_views(body_boxes(keypoints)).cut(pixels(images), judge.config.image_size)
    return F.normalize(torch.cat([judge(chunk).logits.float() for chunk in cuts.split(BATCH)])).numpy()


class IdentityTask(PairsTask):
    """The judge's."""

    def __init__(self, config: JudgeConfig, people: People, validation: People):
        super().__init__(build_identity_judge(config), people, validation)
