"""Looks of a picture: photograph, drawing, painting. Post-processes of a linear rendering, a few milliseconds each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

MONOCHROME = frozenset({"pencil sketch", "black and white"})
"""Styles that show no hue: captions of such pictures name no colours."""

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def stylise(
    style: str, linear: np.ndarray, parts: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Turns a rendering into a picture.

    Args:
        style: a key of `STYLES`.
        linear: float32 [H, W, 3], linear light, not negative.
        parts: uint8 [H, W], segmentation (outlines follow its borders).
        depth: float32 [H, W], metres, infinite in the sky.
        rng: grain, paper and exposure.

    Returns:
        uint8 [H, W, 3], sRGB.
    """
    image = STYLES[style](tone_map(linear), outlines(parts, depth), rng)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def tone_map(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB in [0, 1]; highlights above 0.8 roll off instead of clipping, colours below stay exact."""
    linear = np.maximum(linear, 0).astype(np.float32)
    bright = 1 - 0.2 * np.exp(-(np.maximum(linear, 0.8) - 0.8) / 0.2)
    compressed = np.where(linear > 0.8, bright, linear)
    return np.where(compressed <= 0.0031308, 12.92 * compressed, 1.055 * compressed ** (1 / 2.4) - 0.055)


def outlines(parts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Borders between body parts and jumps in depth, float32 [H, W]: 0 inside a surface, 1 on a line."""
    inverse = 1 / np.clip(depth, 0.1, 60)
    jump = np.abs(ndimage.laplace(inverse)) / inverse > 0.22
    labels = parts.astype(np.int16)
    border = ndimage.maximum_filter(labels, (2, 2)) != ndimage.minimum_filter(labels, (2, 2))
    return (jump | border).astype(np.float32)


def photo(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slight vignette and grain: enough to look taken, too little to cost the autoencoder anything."""
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    vignette = 1 - rng.uniform(0, 0.10) * (x**2 + y**2) / 2
    grain = rng.normal(0, 0.006, (height, width)).astype(np.float32)
    return image * vignette[..., None] + grain[..., None]


def black_and_white(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Silver print: luminance with an S curve."""
    gray = photo(image, lines, rng) @ LUMINANCE
    contrast = gray + 0.35 * gray * (1 - gray) * (2 * gray - 1) * 2
    return np.repeat(contrast[..., None], 3, axis=-1)


def pencil_sketch(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Graphite: outlines plus the colour-dodge edges and a light tone in the shadows, on white paper."""
    gray = image @ LUMINANCE
    dodge = np.clip(gray / np.maximum(ndimage.gaussian_filter(gray, _scale(gray, 2.5)), 0.05), 0, 1)
    tone = 0.62 + 0.38 * np.clip(ndimage.gaussian_filter(gray, 0.8) * 1.25, 0, 1)
    stroke = 1 - 0.72 * ndimage.gaussian_filter(lines, 0.5)
    paper = 0.97 + rng.normal(0, 0.012, gray.shape)
    return np.repeat((dodge**1.6 * tone * stroke * paper)[..., None], 3, axis=-1)


def watercolour(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat washes over a faint drawing: they creep, dry darker at their edges and thin out at the paper's margin."""
    wash = _saturate(_creep(_kuwahara(image, 2), rng), 1.2)
    edges = ndimage.gaussian_gradient_magnitude(image @ LUMINANCE, 0.8)
    blotches = 0.05 * _clouds(image.shape[:2], _scale(image, 16), rng) + 0.015 * rng.normal(0, 1, image.shape[:2])
    density = np.clip(0.86 + blotches, 0, 1) * _margin(image.shape[:2], rng)
    paint = 1 - density[..., None] * (1 - wash)
    return paint * (1 - np.clip(0.7 * edges, 0, 0.25) - 0.25 * lines)[..., None]


def cartoon(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four tones, saturated, inked outlines."""
    smooth = _kuwahara(image, 1)
    value = smooth.max(axis=-1, keepdims=True)
    levels = 5
    stepped = (np.floor(value * levels) + 0.62) / levels
    flat = smooth * (stepped / np.maximum(value, 1e-3))
    return _saturate(flat, 1.2) * (1 - 0.85 * lines)[..., None]


def oil_painting(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Kuwahara patches with the relief of brush strokes that follow the forms."""
    patches = _saturate(_kuwahara(image, 2), 1.15)
    height, width = image.shape[:2]
    bristles = ndimage.uniform_filter1d(rng.normal(0, 0.09, (height, width + height)), 5)
    slanted = bristles[np.arange(height)[:, None], np.arange(height)[:, None] + np.arange(width)]
    return patches * (1 + ndimage.uniform_filter1d(slanted, 3, axis=0))[..., None]


def pixel_art(image: np.ndarray, lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blocks of 1/64 of the picture (2 pixels at 128) in a palette of seven levels a channel."""
    height, width = image.shape[:2]
    block = max(2, height // 64)
    rows, columns = -(-height // block), -(-width // block)
    padded = np.pad(image, ((0, rows * block - height), (0, columns * block - width), (0, 0)), mode="edge")
    small = padded.reshape(rows, block, columns, block, 3).mean(axis=(1, 3))
    small = np.round(_saturate(small, 1.2) * 6) / 6
    return small.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]


def _scale(image: np.ndarray, pixels_at_128: float) -> float:
    return pixels_at_128 * image.shape[0] / 128


def _saturate(image: np.ndarray, amount: float) -> np.ndarray:
    gray = (image @ LUMINANCE)[..., None]
    return np.clip(gray + amount * (image - gray), 0, 1)


def _kuwahara(image: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel takes the mean of its calmest quadrant (Kuwahara 1976): flat patches, crisp edges."""
    size, half = radius + 1, (radius + 1) // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
    gray = padded @ LUMINANCE
    mean = ndimage.uniform_filter(padded, (size, size, 0))
    spread = ndimage.uniform_filter(gray * gray, size) - ndimage.uniform_filter(gray, size) ** 2
    height, width = image.shape[:2]
    rows, columns = np.indices((height, width), sparse=True)
    offsets = [(dy, dx) for dy in (0, 2 * half) for dx in (0, 2 * half)]
    calmest = np.argmin([spread[dy : dy + height, dx : dx + width] for dy, dx in offsets], axis=0)
    return mean[rows + calmest // 2 * 2 * half, columns + calmest % 2 * 2 * half]


def _clouds(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit deviation."""
    step = max(1, int(sigma))
    coarse = rng.normal(0, 1, (shape[0] // step + 3, shape[1] // step + 3))
    return ndimage.zoom(coarse, step, order=1)[: shape[0], : shape[1]]


def _creep(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves every pixel by about one along smooth noise, as pigment creeps in wet paper."""
    height, width = image.shape[:2]
    amount = 0.45 * height / 128
    y = np.arange(height)[:, None] + amount * _clouds((height, width), 5, rng)
    x = np.arange(width)[None] + amount * _clouds((height, width), 5, rng)
    rows = np.clip(np.rint(y), 0, height - 1).astype(int)
    columns = np.clip(np.rint(x), 0, width - 1).astype(int)
    return image[rows, columns]


def _margin(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """1 inside, falling to 0 towards an irregular paper margin."""
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None]
    edge = np.maximum(np.abs(y), np.abs(x)) + 0.015 * _clouds(shape, shape[0] / 16, rng)
    return np.clip((1.0 - edge) / 0.06, 0, 1)


Style = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
STYLES: dict[str, Style] = {
    "photo": photo,
    "pencil sketch": pencil_sketch,
    "watercolour": watercolour,
    "cartoon": cartoon,
    "oil painting": oil_painting,
    "black and white": black_and_white,
    "pixel art": pixel_art,
}
WEIGHTS = {
    "photo": 0.60,
    "pencil sketch": 0.07,
    "watercolour": 0.08,
    "cartoon": 0.08,
    "oil painting": 0.07,
    "black and white": 0.05,
    "pixel art": 0.05,
}
"""How often each style is drawn."""


def sample_style(rng: np.random.Generator) -> str:
    """A style by `WEIGHTS`."""
    return str(rng.choice(list(WEIGHTS), p=list(WEIGHTS.values())))
