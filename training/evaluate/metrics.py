"""Metrics in NumPy: one value a picture, or one for two sets of pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bolid_training.avatars.parts import Part

MIN_REGION = 40  # pixels; a smaller patch of cloth has no reliable mean colour


def keypoint_errors(found: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Distances [B, 12] between keypoints [B, 12, 2+] in units of the person's size; NaN where the truth is outside.

    The size is the longer side of the box around the true keypoints, the usual normalisation of PCK. `truth` carries
    the visibility in its third column.
    """
    inside = truth[..., 2] > 0
    points = np.where(inside[..., None], truth[..., :2], np.nan)
    size = (np.nanmax(points, 1) - np.nanmin(points, 1)).max(-1)
    return np.linalg.norm(found[..., :2] - points, axis=-1) / size[:, None]


def pck(errors: NDArray, threshold: float) -> NDArray[np.float64]:
    """Share [B] of each person's keypoints that are within `threshold`; points outside the picture do not count."""
    inside = np.isfinite(errors)
    return (np.where(inside, errors, np.inf) < threshold).sum(-1) / inside.sum(-1)


def clothes_colours(image: NDArray[np.uint8], parts: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean colour [2, 3] in [0, 1] of the upper and lower clothes of a picture; NaN for a region too small."""
    return mean_colours(image, parts, ((Part.UPPER,), (Part.LOWER,)))


def mean_colours(
    image: NDArray[np.uint8], parts: NDArray[np.uint8], groups: Sequence[Sequence[Part]]
) -> NDArray[np.float64]:
    """Mean colour [G, 3] in [0, 1] of each group of parts in a picture; NaN for a region too small."""
    regions = [image[np.isin(parts, group)] for group in groups]
    return np.stack([r.mean(0) / 255 if len(r) >= MIN_REGION else np.full(3, np.nan) for r in regions])


def colour_distance(found: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Euclidean RGB distance [B], averaged over the garments [B, 2, 3] that both have."""
    return np.nanmean(np.linalg.norm(found - truth, axis=-1), axis=-1)


def cosines(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Cosine [B] of each pair of rows of [B, D] and [B, D]."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)


def found_first(queries: NDArray, gallery: NDArray, size: int) -> NDArray[np.float64]:
    """1 where a query is nearer to its own entry of the gallery than to those of `size` - 1 other people, else 0: [B].

    Unit rows [B, D] in the same order. Galleries are consecutive people; the last one reaches back to be as large.
    """
    count = len(queries)
    size = min(size, count)
    starts = np.minimum(np.arange(count) // size * size, count - size)
    similar = queries @ gallery.T
    best = [start + similar[row, start : start + size].argmax() for row, start in enumerate(starts)]
    return (np.array(best) == np.arange(count)).astype(np.float64)


def frechet_distance(first: NDArray, second: NDArray) -> float:
    """That of two Gaussians fitted to features [N, D] and [M, D] (arXiv:1706.08500, eq. 6); biased for few pictures."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    p, q = _covariance_root(first), _covariance_root(second)
    # Tr (P'P Q'Q)^(1/2) is the sum of the singular values of P Q', which rounding cannot push below zero
    cross = np.linalg.svd(p @ q.T, compute_uv=False).sum()
    return float(np.square(first.mean(0) - second.mean(0)).sum() + np.square(p).sum() + np.square(q).sum() - 2 * cross)


def _covariance_root(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with R'R the covariance of features [N, D]."""
    return np.linalg.qr((features - features.mean(0)) / (len(features) - 1) ** 0.5, mode="r")
