"""How alike two pictures look, as LPIPS asks (arXiv:1801.03924, eq. 1), with the features of `judge_identity`.

LPIPS itself needs weights that do not come with BoLID; what is measured with others bears another name.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from bolid_training.data import pixels
from bolid_training.metric_learning import BATCH, body_boxes, box_views


@torch.no_grad()
def perceptual_distance(
    judge: ResNetForImageClassification, first: NDArray[np.uint8], second: NDArray[np.uint8], keypoints: NDArray
) -> NDArray[np.float64]:
    """[B], in [0, 4]: of pictures [B, H, W, 3] in the box of the person at `keypoints` [B, 12, 3], of whom both are.

    Squared distances of the features' unit vectors, averaged over places and over the network's stages, which all count
    alike: weights fitted to what people see are LPIPS' own.
    """
    views = box_views(body_boxes(keypoints))
    cuts = [views.cut(pixels(images), judge.config.image_size).split(BATCH) for images in (first, second)]
    return torch.cat([_distance(judge, *pair) for pair in zip(*cuts, strict=True)]).double().numpy()


def _distance(judge: ResNetForImageClassification, first: Tensor, second: Tensor) -> Tensor:
    stages = [judge.resnet(batch, output_hidden_states=True).hidden_states for batch in (first, second)]
    units = [[F.normalize(features.float(), dim=1) for features in found] for found in stages]
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*units, strict=True)]).mean(0)
