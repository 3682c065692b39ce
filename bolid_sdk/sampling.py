"""The denoising loop. One call of the denoiser is one sampling step; the sample stays on its device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import Engine, Tensor
from bolid_sdk.caching import CACHINGS, WHOLE, Caching, Interval, PlannedStep, plan_steps
from bolid_sdk.errors import InputError, NumericalError
from bolid_sdk.loops import BoundLoops, DeepFeatures
from bolid_sdk.schedule import (
    SAMPLERS,
    SPACINGS,
    NoiseSchedule,
    SamplerName,
    SamplerTable,
    Spacing,
    sampler_table,
)

FloatArray: TypeAlias = NDArray[np.float32]

MAX_GUIDANCE = 100.0
WHOLE_NUMBER = (int, np.integer)
REAL = (*WHOLE_NUMBER, float, np.floating)


@dataclass(frozen=True, kw_only=True)
class ResolvedSampling:
    """How a picture is sampled, with nothing left open. A bundle's manifest holds one as its defaults.

    `steps` >= 1; `guidance` >= 1, where 1 means the conditional branch alone (half the work a step); `sampler` one of
    ddim, euler, euler_a, dpm++2m, lcm; `spacing` leading, trailing or linspace; `eta` in [0, 1], DDIM's share of fresh
    noise; `caching` off, balanced or fast: how many steps run the shallow half of the UNet only; `guidance_interval`
    (from, to), fractions of the way from noise to picture between which there is guidance. Raises InputError.
    """

    steps: int
    guidance: float
    sampler: SamplerName
    spacing: Spacing
    eta: float = 0.0
    caching: Caching = "off"
    guidance_interval: Interval = WHOLE

    def __post_init__(self) -> None:
        _check_number("steps", self.steps, 1, math.inf, whole=True)
        _check_number("guidance", self.guidance, 1.0, MAX_GUIDANCE)
        _check_number("eta", self.eta, 0.0, 1.0)
        _check_choice("sampler", self.sampler, SAMPLERS)
        _check_choice("spacing", self.spacing, SPACINGS)
        _check_choice("caching", self.caching, CACHINGS)
        # of NumPy's numbers, and of JSON's lists, plain ones, which go into a picture's history
        plain = {"steps": int(self.steps), "guidance": float(self.guidance), "eta": float(self.eta)}
        for name, value in (plain | {"guidance_interval": _interval(self.guidance_interval)}).items():
            object.__setattr__(self, name, value)

    @property
    def branches(self) -> int:
        """G: the most guidance branches of any step, 1 or 2."""
        return max(step.branches for step in self.plan())

    def plan(self) -> list[PlannedStep]:
        """How each step is run."""
        guided = self.guidance != 1.0
        return plan_steps(self.steps, guided=guided, interval=self.guidance_interval, caching=self.caching)

    def table(self, schedule: NoiseSchedule) -> SamplerTable:
        return sampler_table(schedule, self.sampler, self.steps, spacing=self.spacing, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a caller wants to differ from the bundle's defaults; None keeps a default. Fields as in ResolvedSampling."""

    steps: int | None = None
    guidance: float | None = None
    sampler: SamplerName | None = None
    spacing: Spacing | None = None
    eta: float | None = None
    caching: Caching | None = None
    guidance_interval: Interval | None = None

    def resolve(self, defaults: ResolvedSampling) -> ResolvedSampling:
        """Raises InputError."""
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return ResolvedSampling(**cast(Any, {**asdict(defaults), **chosen}))


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Noise that depends on each picture's own seed and on nothing else: `seeds` of B pictures, `shape` (c, h, w)."""

    seeds: Sequence[int]
    shape: tuple[int, int, int]

    def draws(self) -> Iterator[FloatArray]:
        """Endless standard normal float32 [B, c, h, w]; the first is the initial sample."""
        generators = [np.random.Generator(np.random.Philox(seed)) for seed in self.seeds]
        while True:
            yield np.stack([generator.standard_normal(self.shape, np.float32) for generator in generators])


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """After step `index` (from 0): the model's estimate of the clean latents, and the latents themselves."""

    index: int
    x0: Tensor
    sample: Tensor


def denoise(
    denoiser: Engine,
    table: SamplerTable,
    guidance: float,
    conditioning: Mapping[str, FloatArray],
    noise: NoiseSource,
    *,
    shallow: Engine | None = None,
    plan: Sequence[PlannedStep] | None = None,
) -> Iterator[LoopState]:
    """Yields the state after each step. Raises NumericalError when a latent is no longer finite.

    `plan` has an entry for each step; without one, all are full. `shallow` runs those that are not.
    """
    plan = plan or plan_steps(table.steps, guided=guidance != 1.0)
    draws = noise.draws()
    sample: Tensor | FloatArray = next(draws) * np.float32(table.initial_std)
    x0: Tensor | FloatArray = np.zeros_like(sample)
    constants = {**conditioning, "guidance": np.array([guidance], np.float32)}
    if not table.uses_noise:
        constants["noise"] = np.zeros(x0.shape, np.float32)
    loops = BoundLoops(denoiser, shallow, constants, len(noise.seeds), plan)
    deep = DeepFeatures()
    for index, (step, timestep, coefficients) in enumerate(zip(plan, table.timesteps, table.coefficients, strict=True)):
        changing = {"sample": sample, "previous_x0": x0, "timestep": timestep[None], "coefficients": coefficients}
        fresh = {"noise": next(draws)} if table.uses_noise else {}
        outputs = loops[step].run({**changing, **fresh, **deep.inputs(step)})
        deep.keep(outputs)
        sample, x0 = outputs["next_sample"], outputs["x0"]
        check_finite(x0.numpy(), f"the denoiser at step {index + 1} of {table.steps} (timestep {timestep:g})")
        yield LoopState(index=index, x0=x0, sample=sample)


def check_finite(values: FloatArray, origin: str) -> None:
    """Raises NumericalError naming `origin` when a value is NaN or infinite."""
    if not np.isfinite(values).all():
        broken = 1.0 - np.isfinite(values).mean()
        raise NumericalError(
            f"{origin} gave {broken:.1%} NaN or infinite values; try a bundle of higher precision, and report this"
        )


def _interval(value: object) -> Interval:
    """Two fractions, the first smaller."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    ends = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    numbers = [end for end in ends if isinstance(end, REAL) and not isinstance(end, bool)]
    if len(ends) != 2 or len(numbers) != 2 or not 0.0 <= numbers[0] < numbers[1] <= 1.0:
        raise InputError(f"guidance_interval={value!r} is unusable; expected (from, to) with 0 <= from < to <= 1")
    return float(numbers[0]), float(numbers[1])


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown; expected one of {', '.join(choices)}")


def _check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kinds = WHOLE_NUMBER if whole else REAL
    fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= cast(float, value) <= high
    if not fits:
        kind = "a whole number" if whole else "a number"
        limit = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value!r} is unusable; expected {kind} {limit}")
