"""Which sampling steps run the whole UNet, and with how many guidance branches: a plan made before the loop.

**Step caching** (DeepCache, arXiv:2312.00858): features of the deep layers change slowly along a trajectory, so some
steps run the shallow half alone, on features that are continued along the line through those of the last two full steps
(first order in TaylorSeer, arXiv:2503.06923); kept as they are, they lag behind. **Guidance interval**
(arXiv:2404.07724): guidance matters in a part of the trajectory; outside of it the conditional branch alone does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Caching: TypeAlias = Literal["off", "balanced", "fast"]
Interval: TypeAlias = tuple[float, float]

CACHINGS: tuple[Caching, ...] = get_args(Caching)
WHOLE: Interval = (0.0, 1.0)
PERIODS: dict[Caching, int] = {"off": 1, "balanced": 2, "fast": 3}
"""One step in so many is full."""

FEW = 8
"""Fewer steps than this are a distilled model's, each of them a large part of the way."""


@dataclass(frozen=True)
class PlannedStep:
    """`full`: by the whole UNet, else by its shallow half; `branches` is G, 2 with guidance.

    A shallow step goes on from latest + `extrapolation` * (latest - earlier), features of the last two full steps.
    """

    full: bool
    branches: int
    extrapolation: float = 0.0


def plan_steps(steps: int, *, guided: bool, interval: Interval = WHOLE, caching: Caching = "off") -> list[PlannedStep]:
    """One entry for each of `steps`; `guided`: whether there is any guidance at all."""
    branches = [1 + (guided and inside) for inside in guided_steps(steps, interval)]
    full = full_steps(branches, caching)
    return [PlannedStep(*step) for step in zip(full, branches, extrapolations(full, branches), strict=True)]


def guided_steps(steps: int, interval: Interval) -> list[bool]:
    """Whether the middle of step i, (i + 1/2) / steps of the way from noise to picture, lies in the interval."""
    low, high = interval
    return [low <= (index + 0.5) / steps <= high for index in range(steps)]


def full_steps(branches: Sequence[int], caching: Caching) -> list[bool]:
    """Whether each step is full, given its number of guidance branches.

    The first step is: there is no feature yet. So is the second, when the picture's composition changes fastest; the
    last, whose errors nothing corrects; and one after the number of branches has changed, since the feature of one
    branch does not serve two. Between them one step in `PERIODS[caching]` is; one in two as long as there are no two
    features to draw a line through (`extrapolations`). Of fewer than `FEW` steps fast runs every other one,
    from the first on: a distilled model's pictures bear that better than a second half without a full step.
    """
    steps = len(branches)
    alternating = caching == "fast" and 2 < steps < FEW
    period, warm_up, last = (2, 1, steps) if alternating else (PERIODS[caching], 2, steps - 1)
    full: list[bool] = []
    age = 0
    for index, count in enumerate(branches):
        fixed = index < warm_up or index >= last or count != branches[index - 1]
        full.append(fixed or age + 1 >= (period if sum(full) > 2 else min(period, 2)))
        age = 0 if full[-1] else age + 1
    return full


def extrapolations(full: Sequence[bool], branches: Sequence[int]) -> list[float]:
    """Each shallow step's distance to the last full step, in units of the distance between the last two.

    0 for full steps, and where the last two are no line: they differ in their number of branches, or the earlier is the
    first step, which has seen nothing but noise.
    """
    return [0.0 if is_full else _extrapolation(index, full, branches) for index, is_full in enumerate(full)]


def _extrapolation(index: int, full: Sequence[bool], branches: Sequence[int]) -> float:
    *_, earlier, latest = [0, *(i for i in range(index) if full[i])]
    if earlier == 0 or branches[earlier] != branches[latest]:
        return 0.0
    return (index - latest) / (latest - earlier)
