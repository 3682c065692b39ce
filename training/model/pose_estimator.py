"""ViTPose (arXiv:2204.12484) for the 12 body keypoints, with a differentiable decoder."""

from pathlib import Path

import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

KEYPOINTS = 12
FLIP = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]  # left and right keypoints change places in a mirrored picture
HEATMAP_STRIDE = 4
PATCH = 8  # pixels of a token's side
STEM_CHANNELS, STEM_STRIDE, STEM_FILE = 64, 4, "stem.safetensors"
SHARPNESS = 30.0
WINDOW = 2  # heatmap pixels on each side of the peak that the decoder averages
FAR = -1e4  # a logit that is nothing after softmax, and finite in float16
SIGMA = 1.5  # of a target's peak, in heatmap pixels


class Stem(nn.Sequential):
    """Convolutions in front of the transformer: pixels [B, 3, H, W] -> features [B, 64, H/4, W/4].

    Transformers that see patches of pixels are slow to learn what convolutions know from the start ("Early
    Convolutions Help Transformers See Better", arXiv:2106.14881).
    """

    def __init__(self) -> None:
        half = STEM_CHANNELS // 2
        super().__init__(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            nn.GroupNorm(8, half),
            nn.SiLU(),
            nn.Conv2d(half, STEM_CHANNELS, 3, stride=2, padding=1),
            *(ResnetBlock2D(in_channels=STEM_CHANNELS, temb_channels=None, groups=8) for _ in range(2)),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        for layer in self:
            pixels = layer(pixels, None) if isinstance(layer, ResnetBlock2D) else layer(pixels)
        return pixels


class PoseEstimator(nn.Module):
    """pixels [B, 3, H, W] in [-1, 1] -> keypoints [B, 12, 3], heatmaps [B, 12, H/4, W/4].

    `vitpose` is transformers' own class; with a `stem` it sees the stem's features instead of pixels.
    """

    def __init__(self, vitpose: VitPoseForPoseEstimation, stem: Stem | None = None):
        super().__init__()
        self.vitpose, self.stem = vitpose, stem
        if stem is not None:
            # transformers pads pictures by two pixels, which would be a whole patch of the stem's features
            vitpose.backbone.embeddings.patch_embeddings.projection.padding = (0, 0)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures it was trained on."""
        stride = 1 if self.stem is None else STEM_STRIDE
        height, width = self.vitpose.config.backbone_config.image_size
        return height * stride, width * stride

    def tokens(self, pixels: Tensor) -> Tensor:
        """The backbone's last feature map [B, D, h, w] of a square picture."""
        tokens = self.vitpose.backbone(self._see(pixels)).feature_maps[-1]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    def heatmaps(self, pixels: Tensor) -> Tensor:
        """The mean over the picture and its mirror image (ViTPose's flip test), so that neither side is favoured."""
        both = self.vitpose(self._see(torch.cat([pixels, pixels.flip(-1)]))).heatmaps
        # slices, for `chunk` would fix the batch in a trace
        straight, mirrored = both[: pixels.shape[0]], both[pixels.shape[0] :]
        return (straight + mirrored.flip(-1)[:, FLIP]) / 2

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heatmaps = self.heatmaps(pixels)
        return decode_heatmaps(heatmaps), heatmaps

    def _see(self, pixels: Tensor) -> Tensor:
        return pixels if self.stem is None else self.stem(pixels)

    def save(self, folder: Path) -> None:
        """Writes transformers' folder, and `stem.safetensors` into it."""
        self.vitpose.save_pretrained(folder)
        if self.stem is not None:
            save_file({name: t.contiguous() for name, t in self.stem.state_dict().items()}, folder / STEM_FILE)


def load_pose_estimator(folder: Path) -> PoseEstimator:
    """Reads what `PoseEstimator.save` wrote, or any ViTPose of 12 keypoints, in float32."""
    vitpose = VitPoseForPoseEstimation.from_pretrained(folder, dtype=torch.float32)
    if not (folder / STEM_FILE).exists():
        return PoseEstimator(vitpose)
    stem = Stem()
    stem.load_state_dict(load_file(folder / STEM_FILE))
    return PoseEstimator(vitpose, stem)


def build_pose_estimator(image_size: int, width: int, layers: int) -> PoseEstimator:
    """ViTPose on a stem: a token for 8 x 8 pixels, heatmaps at a quarter of the (square) picture's side."""
    backbone = VitPoseBackboneConfig(
        image_size=[image_size // STEM_STRIDE] * 2,
        patch_size=[PATCH // STEM_STRIDE] * 2,
        num_channels=STEM_CHANNELS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        mlp_ratio=4,
        out_features=[f"stage{layers}"],
    )
    config = VitPoseConfig(
        backbone_config=backbone, scale_factor=PATCH // HEATMAP_STRIDE, use_simple_decoder=True, num_labels=KEYPOINTS
    )
    return PoseEstimator(VitPoseForPoseEstimation(config), Stem())


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
