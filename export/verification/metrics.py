"""How far two tensors or pictures are apart."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, tensor
from torch.nn import functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine of two arrays of one shape, in float64; 1 when both are zero."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y / norms) if norms else float(np.array_equal(x, y))


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute difference, in units of the largest expected value."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))


def psnr(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], clipped to that; at most 99, NaN for a NaN."""
    error = np.mean((a.clip(-1, 1) - b.clip(-1, 1)) ** 2, dtype=np.float64)
    return float(np.minimum(99.0, 10 * np.log10(4 / np.maximum(error, 1e-12))))


def ssim(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Structural similarity (Wang et al. 2004, Gaussian window) of pictures [B, C, H, W] in [-1, 1]."""
    x, y = (from_numpy(image.clip(-1, 1).astype(np.float32)) for image in (a, b))
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _blur(image: Tensor) -> Tensor:
    offsets = range(-(SSIM_WINDOW // 2), SSIM_WINDOW // 2 + 1)
    window = tensor([math.exp(-(i**2) / (2 * SSIM_SIGMA**2)) for i in offsets])
    window = window / window.sum()
    planes = image.flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
