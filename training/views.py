"""Views of pictures: squares of any place, size and angle, cut from pictures, masks and keypoints alike."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bolid_training.model.pose_estimator import FLIP


@dataclass(frozen=True, kw_only=True)
class Views:
    """B squares in square pictures, float32: `centre` [B, 2] and `side` [B] in units of the picture's side, turned by
    `angle` [B] (radians, clockwise), and mirrored where `mirror` [B] (bool) says so."""

    centre: Tensor
    side: Tensor
    angle: Tensor
    mirror: Tensor

    @property
    def _axes(self) -> Tensor:
        """[B, 2, 2]: its columns are the view's axes, as long as its side, in the picture's coordinates."""
        cos, sin = torch.cos(self.angle), torch.sin(self.angle)
        sign = 1 - 2 * self.mirror.float()
        axes = torch.stack([torch.stack([sign * cos, -sin], -1), torch.stack([sign * sin, cos], -1)], 1)
        return self.side[:, None, None] * axes

    def cut(self, images: Tensor, size: int, padding: str = "zeros") -> Tensor:
        """[B, C, H, H] -> [B, C, size, size], bilinear; `padding` is grid_sample's, for what lies outside."""
        theta = torch.cat([self._axes, 2 * self.centre[..., None] - 1], -1)
        grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)

    def locate(self, keypoints: Tensor) -> Tensor:
        """Keypoints [B, P, 12, 3] of P people, in [0, 1] of the picture -> of the view; left stays the person's left.

        Those outside the view become invisible (0 in the third column).
        """
        offsets = keypoints[..., :2] - self.centre[:, None, None]
        points = torch.einsum("bij,bpkj->bpki", torch.linalg.inv(self._axes), offsets) + 0.5
        inside = ((points >= 0) & (points <= 1)).all(-1)
        located = torch.cat([points, (keypoints[..., 2] * inside)[..., None]], -1)
        return torch.where(self.mirror[:, None, None, None], located[..., FLIP, :], located)


def upright(centre: Tensor, side: Tensor) -> Views:
    """Views that are neither turned nor mirrored."""
    zeros = torch.zeros_like(side)
    return Views(centre=centre, side=side, angle=zeros, mirror=zeros.bool())
