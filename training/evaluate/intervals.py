"""95 % bootstrap intervals. People are drawn, not pictures: several of one person are not independent."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolid_training.evaluate.metrics import frechet_distance

MEANS, DISTANCES = 2000, 200  # draws
LIMITS = (2.5, 97.5)

Summary: TypeAlias = dict[str, float | list[float]]


def summary(values: ArrayLike, people: ArrayLike | None = None, seed: int = 0) -> Summary:
    """Mean of `values` [B] over pictures and its interval; NaNs are left out.

    `people` [B] says whose picture it is; without, each is somebody else's. Raises ValueError if every value is NaN.
    """
    array = np.asarray(values, np.float64)
    kept = np.isfinite(array)
    if not kept.any():
        raise ValueError(f"none of {len(array)} values is finite: there is nothing to summarise")
    groups = np.arange(len(array)) if people is None else np.asarray(people)
    _, owner = np.unique(groups[kept], return_inverse=True)
    sums, counts = np.bincount(owner, array[kept]), np.bincount(owner)
    draws = np.random.default_rng(seed).integers(len(counts), size=(MEANS, len(counts)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), LIMITS)
    return rounded(array[kept].mean(), low, high)


def distance_summary(features: NDArray, real: NDArray, people: ArrayLike, seed: int = 0) -> Summary:
    """Frechet distance of `features` [B, D] to `real` [M, D], and its basic bootstrap interval.

    A drawn sample has fewer different pictures and is farther away for that; the basic interval (2 d - percentiles)
    takes this bias out, the plain percentiles may not even contain the distance.
    """
    rng, value = np.random.default_rng(seed), frechet_distance(features, real)
    members = [np.flatnonzero(np.asarray(people) == person) for person in np.unique(people)]
    drawn = [_drawn_distance(features, real, members, rng) for _ in range(DISTANCES)]
    high, low = 2 * value - np.percentile(drawn, LIMITS)
    return rounded(value, max(low, 0.0), high)


def rounded(value: float, low: float, high: float) -> Summary:
    return {"value": round(float(value), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def _drawn_distance(features: NDArray, real: NDArray, members: list[NDArray], rng: np.random.Generator) -> float:
    chosen = np.concatenate([members[person] for person in rng.integers(len(members), size=len(members))])
    return frechet_distance(features[chosen], real[rng.integers(len(real), size=len(real))])
