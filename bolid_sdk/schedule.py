"""Noise schedules and samplers as tables of coefficients, in float64 on the host.

Every sampler here is linear in (sample, model output, previous x0, noise), so one step is one row of seven numbers

    e           = unet(k0 * sample, timestep)
    x0          = k1 * sample + k2 * e
    next_sample = k3 * sample + k4 * e + k5 * previous_x0 + k6 * noise

Notation: `alpha**2 + sigma**2 = 1` (variance preserving), `sigma_hat = sigma / alpha` (what k-diffusion calls sigma).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.errors import InputError

Array: TypeAlias = NDArray[np.float64]
BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "trained"]
PredictionType: TypeAlias = Literal["epsilon", "v_prediction"]
Spacing: TypeAlias = Literal["leading", "trailing", "linspace"]
SamplerName: TypeAlias = Literal["ddim", "euler", "euler_a", "dpm++2m", "lcm"]

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)
LCM_SIGMA_DATA = 0.5
NEARLY_ZERO_SNR = 2.0**-24
"""Stands in for alpha**2 = 0 where a sampler divides by alpha, as in diffusers."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The forward process a model was trained on. Names are those of diffusers."""

    prediction_type: PredictionType = "epsilon"
    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False
    """Whether the step after the last timestep is free of noise (DDIM only)."""
    steps_offset: int = 1
    original_inference_steps: int = 50
    """LCM: steps of the schedule it was distilled on."""
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        _check_choice("prediction type", self.prediction_type, PREDICTION_TYPES)
        _check_choice("beta schedule", self.beta_schedule, get_args(BetaSchedule))
        if self.beta_schedule == "trained" and not self.trained_betas:
            raise InputError("beta_schedule 'trained' came without trained_betas; expected one beta for each timestep")
        if not all(isinstance(beta, int | float) for beta in self.trained_betas or ()):
            raise InputError("trained_betas are not all numbers; expected one beta for each timestep")

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "trained_betas": None if self.trained_betas is None else list(self.trained_betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NoiseSchedule:
        """Raises TypeError on unknown names, InputError on unusable values."""
        betas = values.get("trained_betas")
        return cls(**{**values, "trained_betas": None if betas is None else tuple(betas)})

    @property
    def timesteps(self) -> int:
        """Number of training timesteps T."""
        return len(self.trained_betas) if self.trained_betas else self.num_train_timesteps

    @cached_property
    def alphas_cumprod(self) -> Array:
        """alpha_t**2 for t = 0 .. T - 1, float64 [T], falling; the last is zero when rescaled to zero SNR."""
        alphas_cumprod: Array = np.cumprod(1.0 - self._betas(), dtype=np.float64)
        return _rescale_to_zero_snr(alphas_cumprod) if self.rescale_betas_zero_snr else alphas_cumprod

    @cached_property
    def sigmas_hat(self) -> Array:
        """sqrt(1 - alpha**2) / alpha, float64 [T], finite."""
        squares = self.alphas_cumprod.copy()
        if self.rescale_betas_zero_snr:
            squares[-1] = NEARLY_ZERO_SNR
        return np.sqrt((1.0 - squares) / squares)

    def _betas(self) -> Array:
        if self.trained_betas:
            return np.asarray(self.trained_betas, np.float64)
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerTable:
    """`timesteps` float32 [steps], `coefficients` float32 [steps, 7], and the first sample's standard deviation."""

    timesteps: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    initial_std: float

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def uses_noise(self) -> bool:
        return bool(self.coefficients[:, 6].any())


def sampler_table(
    schedule: NoiseSchedule, sampler: SamplerName, steps: int, *, spacing: Spacing = "leading", eta: float = 0.0
) -> SamplerTable:
    """The table of `sampler` over `steps` steps. `eta` in [0, 1]: DDIM's share of fresh noise. LCM ignores the spacing.

    Raises InputError when the schedule has no such steps.
    """
    _check_choice("sampler", sampler, SAMPLERS)
    _check_choice("timestep spacing", spacing, SPACINGS)
    if not 1 <= steps <= schedule.timesteps:
        raise InputError(f"{steps} steps were asked for; expected 1 to {schedule.timesteps}")
    # Division by a vanishing alpha is reported by the check below, not by NumPy.
    with np.errstate(divide="ignore", invalid="ignore"):
        timesteps, rows, initial_std = _BUILDERS[sampler](schedule, steps, spacing, eta)
    coefficients = np.asarray(rows, np.float32)
    if not np.isfinite(coefficients).all():
        raise InputError(
            f"{sampler} with {schedule.prediction_type} prediction is undefined where the signal is zero "
            f"(timestep {timesteps[0]:g}); use spacing='leading' or a v_prediction model"
        )
    return SamplerTable(timesteps=timesteps.astype(np.float32), coefficients=coefficients, initial_std=initial_std)


def _ddim(schedule: NoiseSchedule, steps: int, spacing: Spacing, eta: float) -> tuple[Array, list[Array], float]:
    """DDIM, eq. 12 and 16 of arXiv:2010.02502. As in diffusers the step back is T // steps whatever the spacing."""
    timesteps = _timesteps(schedule, steps, spacing)
    final = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    stride = schedule.timesteps // steps
    rows = []
    for timestep in timesteps.astype(int):
        square = schedule.alphas_cumprod[timestep]
        following = schedule.alphas_cumprod[timestep - stride] if timestep >= stride else final
        x0, epsilon = _x0_and_epsilon(schedule.prediction_type, np.sqrt(square), np.sqrt(1 - square))
        std = eta * np.sqrt(max(0.0, (1 - following) / (1 - square) * (1 - square / following)))
        direction = np.sqrt(max(0.0, 1 - following - std**2))
        update = np.sqrt(following) * x0 + direction * epsilon
        rows.append(np.array([1.0, *x0, *update, 0.0, std]))
    return timesteps, rows, 1.0


def _euler(schedule: NoiseSchedule, steps: int, spacing: Spacing, _eta: float) -> tuple[Array, list[Array], float]:
    """Euler's method on the probability flow ODE in the coordinates x / alpha (arXiv:2206.00364, algorithm 1)."""
    return _euler_steps(schedule, steps, spacing, fresh=0.0)


def _euler_a(schedule: NoiseSchedule, steps: int, spacing: Spacing, _eta: float) -> tuple[Array, list[Array], float]:
    """Ancestral sampling with Euler steps: k-diffusion's `sample_euler_ancestral`, as SDXL-Turbo is sampled."""
    return _euler_steps(schedule, steps, spacing, fresh=1.0)


def _euler_steps(
    schedule: NoiseSchedule, steps: int, spacing: Spacing, *, fresh: float
) -> tuple[Array, list[Array], float]:
    """`fresh` 1: of the noise that is left after a step, as much is new as in DDPM's posterior; 0: none."""
    timesteps = _timesteps(schedule, steps, spacing, whole=False)
    sigmas = _interpolate_sigmas(schedule, timesteps)
    rows = []
    for sigma, following in pairwise(sigmas):
        scale = 1 / np.sqrt(sigma**2 + 1)
        if schedule.prediction_type == "epsilon":
            x0, slope = np.array([1.0, -sigma]), np.array([0.0, 1.0])
        else:
            x0, slope = np.array([scale**2, -sigma * scale]), np.array([sigma * scale**2, scale])
        std = fresh * following * np.sqrt(1 - (following / sigma) ** 2)
        update = np.array([1.0, 0.0]) + (np.sqrt(following**2 - std**2) - sigma) * slope
        rows.append(np.array([scale, *x0, *update, 0.0, std]))
    largest = float(sigmas.max())
    return timesteps, rows, float(np.sqrt(largest**2 + 1)) if spacing == "leading" else largest


def _dpm_2m(schedule: NoiseSchedule, steps: int, spacing: Spacing, _eta: float) -> tuple[Array, list[Array], float]:
    """DPM-Solver++(2M), midpoint, algorithm 2 of arXiv:2211.01095; the first and last steps are of first order."""
    timesteps = _dpm_timesteps(schedule, steps, spacing)
    sigmas = _interpolate_sigmas(schedule, timesteps)
    alphas = 1 / np.sqrt(1 + sigmas**2)
    rows = []
    for i in range(steps):
        x0, _ = _x0_and_epsilon(schedule.prediction_type, alphas[i], sigmas[i] * alphas[i])
        carry = np.array([sigmas[i + 1] * alphas[i + 1] / (sigmas[i] * alphas[i]), 0.0])
        # exp(-h) with h = lambda_next - lambda is the ratio of the sigma_hats.
        weight = alphas[i + 1] * (1 - sigmas[i + 1] / sigmas[i])
        slope = 0.0
        if 0 < i < steps - 1:
            slope = 0.5 * np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i - 1] / sigmas[i])
        update = carry + weight * (1 + slope) * x0
        rows.append(np.array([1.0, *x0, *update, -weight * slope, 0.0]))
    return timesteps, rows, 1.0


def _lcm(schedule: NoiseSchedule, steps: int, _spacing: Spacing, _eta: float) -> tuple[Array, list[Array], float]:
    """Multistep consistency sampling, algorithm 1 of arXiv:2310.04378."""
    timesteps = _lcm_timesteps(schedule, steps)
    squares = schedule.alphas_cumprod[timesteps.astype(int)]
    rows = []
    for i, (timestep, square) in enumerate(zip(timesteps, squares, strict=True)):
        x0, _ = _x0_and_epsilon(schedule.prediction_type, np.sqrt(square), np.sqrt(1 - square))
        scaled = timestep * schedule.timestep_scaling
        length = scaled**2 + LCM_SIGMA_DATA**2
        denoised = scaled / np.sqrt(length) * x0 + np.array([LCM_SIGMA_DATA**2 / length, 0.0])
        following = squares[i + 1] if i < steps - 1 else 1.0
        rows.append(np.array([1.0, *denoised, *(np.sqrt(following) * denoised), 0.0, np.sqrt(1 - following)]))
    return timesteps, rows, 1.0


_Builder: TypeAlias = Callable[[NoiseSchedule, int, Spacing, float], tuple[Array, list[Array], float]]
_BUILDERS: dict[SamplerName, _Builder] = {
    "ddim": _ddim,
    "euler": _euler,
    "euler_a": _euler_a,
    "dpm++2m": _dpm_2m,
    "lcm": _lcm,
}


def _x0_and_epsilon(prediction: PredictionType, alpha: float, sigma: float) -> tuple[Array, Array]:
    """x0 and epsilon as weights of (sample, model output)."""
    if prediction == "epsilon":
        return np.array([1.0, -sigma]) / alpha, np.array([0.0, 1.0])
    return np.array([alpha, -sigma]), np.array([sigma, alpha])


def _timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing, *, whole: bool = True) -> Array:
    """Table 2 of arXiv:2305.08891, falling."""
    total = schedule.timesteps
    values: NDArray[Any]
    if spacing == "linspace":
        values = np.linspace(0, total - 1, steps)[::-1]
        # The graph receives float32, and the interpolated noise has to belong to exactly that number.
        values = values.round() if whole else values.astype(np.float32).astype(np.float64)
    elif spacing == "leading":
        values = np.arange(steps)[::-1] * (total // steps) + schedule.steps_offset
    else:
        values = (total - np.arange(steps) * (total / steps)).round() - 1
    return _check_timesteps(values, schedule)


def _dpm_timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> Array:
    """diffusers' DPMSolverMultistep counts the end point, which the other schedulers do not."""
    total = schedule.timesteps
    if spacing == "linspace":
        return _check_timesteps(np.linspace(0, total - 1, steps + 1).round()[:0:-1], schedule)
    if spacing == "leading":
        values = np.arange(1, steps + 1)[::-1] * (total // (steps + 1)) + schedule.steps_offset
        return _check_timesteps(values, schedule)
    return _timesteps(schedule, steps, spacing)


def _lcm_timesteps(schedule: NoiseSchedule, steps: int) -> Array:
    original = schedule.original_inference_steps
    if steps > original:
        raise InputError(f"{steps} LCM steps were asked for; this model was distilled on {original}, use at most those")
    trained = (np.arange(1, original + 1) * (schedule.timesteps // original) - 1)[::-1]
    return _check_timesteps(trained[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)], schedule)


def _check_timesteps(values: NDArray[Any], schedule: NoiseSchedule) -> Array:
    timesteps = np.asarray(values, np.float64)
    if timesteps[0] >= schedule.timesteps or timesteps[-1] < 0 or (np.diff(timesteps) >= 0).any():
        raise InputError(
            f"{len(timesteps)} steps do not fit the {schedule.timesteps} timesteps of this model; use fewer steps"
        )
    return timesteps


def _interpolate_sigmas(schedule: NoiseSchedule, timesteps: Array) -> Array:
    """sigma_hat at the timesteps, then zero: float64 [steps + 1]."""
    sigmas = np.interp(timesteps, np.arange(schedule.timesteps), schedule.sigmas_hat)
    return np.append(sigmas, 0.0)


def _rescale_to_zero_snr(alphas_cumprod: Array) -> Array:
    """Algorithm 1 of arXiv:2305.08891: shifts and scales sqrt(alpha**2) so that the last is zero."""
    roots = np.sqrt(alphas_cumprod)
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return np.asarray(shifted**2)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"unknown {what} {value!r}; expected one of {', '.join(choices)}")
