"""ViTPose (arXiv:2204.12484) for the 12 body keypoints, with a differentiable decoder."""

import torch
from torch import Tensor, nn
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

KEYPOINTS = 12
HEATMAP_STRIDE = 4
SHARPNESS = 30.0
WINDOW = 2  # heatmap pixels on each side of the peak that the decoder averages
FAR = -1e4  # a logit that is nothing after softmax, and finite in float16
SIGMA = 1.5  # of a target's peak, in heatmap pixels


def build_vitpose(image_size: int, width: int, layers: int) -> VitPoseForPoseEstimation:
    """ViTPose with patches of 8 and heatmaps at a quarter of the (square) picture's side."""
    backbone = VitPoseBackboneConfig(
        image_size=[image_size, image_size],
        patch_size=[8, 8],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        mlp_ratio=4,
        out_features=[f"stage{layers}"],
    )
    config = VitPoseConfig(
        backbone_config=backbone, scale_factor=8 // HEATMAP_STRIDE, use_simple_decoder=True, num_labels=KEYPOINTS
    )
    return VitPoseForPoseEstimation(config)


def decode_heatmaps(heatmaps: Tensor) -> Tensor:
    """Keypoints [B, K, 3] (x, y in [0, 1], confidence in [0, 1]) from heatmaps [B, K, h, w] whose peaks are 1.

    A soft-argmax about the highest peak: more precise than the peak's cell, differentiable (L_id needs that), and
    undisturbed by a second peak. Over the whole map, a wrist that may be the left or the right one ends in the middle.
    """
    height, width = heatmaps.shape[-2:]
    peak = heatmaps.flatten(2).argmax(-1)[..., None, None]
    rows = torch.arange(height, device=heatmaps.device)[:, None]
    columns = torch.arange(width, device=heatmaps.device)
    near = ((rows - peak // width).abs() <= WINDOW) & ((columns - peak % width).abs() <= WINDOW)
    sharp = torch.where(near, heatmaps * SHARPNESS, torch.full_like(heatmaps, FAR)).flatten(2)
    weights = torch.softmax(sharp, dim=-1).unflatten(-1, (height, width))
    x = (weights.sum(-2) * ((columns + 0.5) / width)).sum(-1)
    y = (weights.sum(-1) * ((rows[:, 0] + 0.5) / height)).sum(-1)
    return torch.stack([x, y, heatmaps.flatten(2).amax(-1).clamp(0, 1)], dim=-1)


def draw_heatmaps(keypoints: Tensor, height: int, width: int, sigma: float = SIGMA) -> Tensor:
    """Targets [B, K, h, w]: a Gaussian of `sigma` heatmap pixels and peak 1 at each keypoint [B, K, 2] in [0, 1]."""
    xs = (torch.arange(width, dtype=keypoints.dtype) + 0.5) / width
    ys = (torch.arange(height, dtype=keypoints.dtype) + 0.5) / height
    dx = (keypoints[..., 0, None] - xs) * width
    dy = (keypoints[..., 1, None] - ys) * height
    return torch.exp(-(dx.square()[..., None, :] + dy.square()[..., :, None]) / (2 * sigma**2))


class PoseEstimator(nn.Module):
    """pixels [B, 3, H, W] in [-1, 1] -> keypoints [B, 12, 3], heatmaps [B, 12, H/4, W/4]."""

    def __init__(self, vitpose: VitPoseForPoseEstimation):
        super().__init__()
        self.vitpose = vitpose

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heatmaps = self.vitpose(pixels).heatmaps
        return decode_heatmaps(heatmaps), heatmaps
