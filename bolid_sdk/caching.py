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
FEW = 8
"""Below this many steps each is a large part of the way, and caching follows `FEW_STEPS`."""

EARLY_STEPS = 6
"""The first third of the way, of short loops these steps, is early: then a picture's composition is decided."""

DAMPING = 0.85
"""Of the way along the line: features turn back a little. Of 0.7, 0.85, 1 and 1.1 the nearest to uncached pictures."""


@dataclass(frozen=True)
class Cadence:
    """Full: the first `warm_up` steps, one in `early` up to `EARLY_STEPS`, then one in `late`; with `last` the last."""

    early: int
    late: int
    warm_up: int = 2
    last: bool = True


MANY_STEPS: dict[Caching, Cadence] = {
    "off": Cadence(1, 1),
    "balanced": Cadence(2, 2),
    "fast": Cadence(2, 3, last=False),
}
FEW_STEPS: dict[Caching, Cadence] = {**MANY_STEPS, "fast": Cadence(2, 2, warm_up=1, last=False)}


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

    By `MANY_STEPS`: the first step is full, since there is no feature yet; the second, when the picture's composition
    changes fastest; with `Cadence.last` the last, whose errors nothing corrects; and one after the number of branches
    has changed, since the feature of one branch does not serve two. "fast" spends its full steps early: what those miss
    the later ones draw on. `FEW_STEPS` runs every other one for it: a full second and last step would leave nothing to
    save. Two steps are both full.
    """
    steps = len(branches)
    cadence = (FEW_STEPS if 2 < steps < FEW else MANY_STEPS)[caching]
    full: list[bool] = []
    age = 0
    for index, count in enumerate(branches):
        fixed = index < cadence.warm_up or (cadence.last and index == steps - 1) or count != branches[index - 1]
        period = cadence.early if index < max(EARLY_STEPS, steps / 3) else cadence.late
        full.append(fixed or age + 1 >= period)
        age = 0 if full[-1] else age + 1
    return full


def extrapolations(full: Sequence[bool], branches: Sequence[int]) -> list[float]:
    """Each shallow step's distance to the last full step, in units of the distance between the last two, by `DAMPING`.

    0 for full steps, and where the last two are no line: they differ in their number of branches, or the earlier is the
    first step, which has seen nothing but noise.
    """
    return [0.0 if is_full else _extrapolation(index, full, branches) for index, is_full in enumerate(full)]


def _extrapolation(index: int, full: Sequence[bool], branches: Sequence[int]) -> float:
    *_, earlier, latest = [0, *(i for i in range(index) if full[i])]
    if earlier == 0 or branches[earlier] != branches[latest]:
        return 0.0
    return DAMPING * (index - latest) / (latest - earlier)
