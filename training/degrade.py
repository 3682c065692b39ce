"""What an autoencoder and a denoiser do to a picture, without either: a judge must not take softness for a difference.

No network of the model has a part in it, so a judge cannot learn that model's own habits.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bolid_training.data import resize

CLEAN = 0.25  # share of pictures that are left as they are
SCALE = (0.35, 1.0)  # of a picture's side, through which it is squeezed
BLUR = (0.3, 1.5)  # pixels, a Gaussian's standard deviation
BLOTCH = 8  # pixels of a latent's side: errors of a denoiser are as large
NOISE = (0.0, 0.06)  # standard deviation, of pixels and of blotches
GAIN, OFFSET, TINT = (0.75, 1.25), (-0.15, 0.15), (0.93, 1.07)
CHUNKS = 4


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1]: softened, blurred, noisy, in other light, and mostly several of these."""
    damaged = recolour(add_noise(soften(images, rng), rng), rng).clamp(-1, 1)
    clean = torch.from_numpy(rng.random((len(images), 1, 1, 1)) < CLEAN)
    return torch.where(clean, images, damaged)


def soften(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Squeezed and enlarged again, or blurred; a few strengths a batch. Any value range."""
    return torch.cat([_one_of((squeeze, blur), rng)(chunk, rng) for chunk in images.chunk(CHUNKS)])


def squeeze(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Through a smaller picture."""
    side = images.shape[-1]
    small = resize(images, max(8, round(side * rng.uniform(*SCALE))))
    return F.interpolate(small, (side, side), mode="bicubic", align_corners=False)


def blur(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A Gaussian, rows first and columns then."""
    sigma, channels = rng.uniform(*BLUR), images.shape[1]
    radius = int(3 * sigma) + 1
    kernel = torch.exp(-torch.arange(-radius, radius + 1).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images).expand(channels, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="replicate"), kernel, groups=channels)
    return F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="replicate"), kernel.mT, groups=channels)


def add_noise(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Of single pixels, and of blotches as large as a latent."""
    count, channels, side, _ = images.shape
    fine = rng.standard_normal(images.shape, np.float32)
    coarse = rng.standard_normal((count, channels, side // BLOTCH, side // BLOTCH), np.float32)
    blotches = F.interpolate(torch.from_numpy(coarse), (side, side), mode="bilinear")
    return images + uniform(rng, NOISE, count) * torch.from_numpy(fine) + uniform(rng, NOISE, count) * blotches


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, brightness, and a tint so slight that red stays red."""
    count = len(images)
    return uniform(rng, GAIN, count) * uniform(rng, TINT, count, 3) * images + uniform(rng, OFFSET, count)


def uniform(rng: np.random.Generator, span: tuple[float, float], count: int, channels: int = 1) -> Tensor:
    """float32 [count, channels, 1, 1]."""
    return torch.from_numpy(rng.uniform(*span, (count, channels, 1, 1))).float()


def _one_of(functions: tuple[Callable, ...], rng: np.random.Generator) -> Callable:
    return functions[rng.integers(len(functions))]
