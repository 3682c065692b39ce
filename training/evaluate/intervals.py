"""95 % bootstrap intervals. People are drawn, not pictures: several of one person are not independent."""

from collections.abc import Iterator
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
    value = frechet_distance(features, real)
    drawn = [frechet_distance(features[those], real[true]) for those, true in _draws(real, people, seed)]
    high, low = 2 * value - np.percentile(drawn, LIMITS)
    return rounded(value, max(low, 0.0), high)


def distance_difference(features: NDArray, first: NDArray, real: NDArray, people: ArrayLike, seed: int = 0) -> Summary:
    """How much farther from `real` [M, D] `features` [B, D] are than `first` [B, D], which are of the same trials.

    Both are drawn alike, so that which people and real pictures there are, and most of the bias, falls out.
    """

    def farther(those: NDArray | slice, true: NDArray | slice) -> float:
        return frechet_distance(features[those], real[true]) - frechet_distance(first[those], real[true])

    value = farther(slice(None), slice(None))
    high, low = 2 * value - np.percentile([farther(*drawn) for drawn in _draws(real, people, seed)], LIMITS)
    return rounded(value, low, high)


def rounded(value: float, low: float, high: float) -> Summary:
    return {"value": round(float(value), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def _draws(real: NDArray, people: ArrayLike, seed: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Which pictures, all of each drawn person's, and which real ones: `DISTANCES` times, with replacement."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(np.asarray(people) == person) for person in np.unique(people)]
    for _ in range(DISTANCES):
        chosen = np.concatenate([members[person] for person in rng.integers(len(members), size=len(members))])
        yield chosen, rng.integers(len(real), size=len(real))
