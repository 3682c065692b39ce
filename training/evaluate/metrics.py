"""Metrics with confidence intervals. All functions are NumPy, one value a picture first and means last."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bolid_training.avatars.parts import Part

BOOTSTRAPS = 2000
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


def summary(values: Sequence[float] | NDArray, seed: int = 0) -> dict[str, float | list[float]]:
    """Mean and its 95 % bootstrap interval over pictures; NaNs are left out."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    draws = np.random.default_rng(seed).integers(len(array), size=(BOOTSTRAPS, len(array)))
    low, high = np.percentile(array[draws].mean(1), [2.5, 97.5])
    return {"value": round(float(array.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}
