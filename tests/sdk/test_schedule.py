"""Every sampler's table against the diffusers scheduler of that name, at every step, on a nonlinear dummy model."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bolid_sdk.errors import InputError
from bolid_sdk.schedule import NoiseSchedule, SamplerTable, sampler_table

SCHEDULES = st.builds(
    NoiseSchedule,
    prediction_type=st.sampled_from(["epsilon", "v_prediction"]),
    beta_schedule=st.sampled_from(["linear", "scaled_linear"]),
    set_alpha_to_one=st.booleans(),
    steps_offset=st.integers(0, 1),
)
SPACINGS = st.sampled_from(["leading", "trailing", "linspace"])
STEPS = st.integers(1, 30)
ZERO_SNR = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def model(sample, timestep):
    return torch.tanh(0.7 * sample + 0.3) + 0.2 * torch.sin(sample) * (1 + timestep / 1000)


def config(schedule: NoiseSchedule, *names: str) -> dict:
    values = schedule.to_dict()
    if values["beta_schedule"] == "trained":
        values["beta_schedule"] = "linear"
    common = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")
    return {name: values[name] for name in (*common, "rescale_betas_zero_snr", "steps_offset", *names)}


def exact_alphas(config) -> torch.Tensor:
    """float64. diffusers multiplies a thousand float32 alphas, which samples as large as Euler's first ones show."""
    power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
    ends = config.beta_start**power, config.beta_end**power
    betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** (1 / power)
    return torch.cumprod(1 - betas, 0)


def reference_steps(scheduler, sample, noises, **step_options):
    for timestep, noise in zip(scheduler.timesteps, noises, strict=True):
        output = model(scheduler.scale_model_input(sample, timestep), timestep)
        extra = {"variance_noise": noise} if "eta" in step_options else {}
        sample = scheduler.step(output, timestep, sample, **step_options, **extra).prev_sample
        yield float(timestep), sample


def table_steps(table: SamplerTable, sample, noises):
    previous_x0 = torch.zeros_like(sample)
    for timestep, k, noise in zip(table.timesteps, table.coefficients.astype(np.float64), noises, strict=True):
        output = model(k[0] * sample, float(timestep))
        x0 = k[1] * sample + k[2] * output
        sample = k[3] * sample + k[4] * output + k[5] * previous_x0 + k[6] * noise
        previous_x0 = x0
        yield float(timestep), sample


def assert_equal_steps(table, scheduler, tolerance=1e-5, **step_options):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(table.steps, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    sample = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64) * table.initial_std
    assert table.initial_std == pytest.approx(float(scheduler.init_noise_sigma), rel=5e-5)
    expected = list(reference_steps(scheduler, sample, noises, **step_options))
    actual = list(table_steps(table, sample, noises))
    assert len(actual) == len(expected)
    for (timestep, value), (wanted_timestep, wanted) in zip(actual, expected, strict=True):
        assert timestep == pytest.approx(wanted_timestep, abs=1e-3)
        scale = max(1.0, wanted.abs().max().item())
        assert (value - wanted).abs().max().item() / scale < tolerance


@settings(max_examples=40, deadline=None)
@given(SCHEDULES, SPACINGS, STEPS, st.sampled_from([0.0, 0.5, 1.0]))
def test_ddim(schedule, spacing, steps, eta):
    scheduler = DDIMScheduler(**config(schedule, "set_alpha_to_one"), timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    table = sampler_table(schedule, "ddim", steps, spacing=spacing, eta=eta)
    assert_equal_steps(table, scheduler, eta=eta)


@settings(max_examples=40, deadline=None)
@given(SCHEDULES, SPACINGS, STEPS)
def test_euler(schedule, spacing, steps):
    scheduler = EulerDiscreteScheduler(**config(schedule), timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert_equal_steps(sampler_table(schedule, "euler", steps, spacing=spacing), scheduler)


@settings(max_examples=30, deadline=None)
@given(SCHEDULES, SPACINGS, STEPS)
@example(NoiseSchedule(beta_schedule="linear"), "linspace", 30)
def test_euler_ancestral(schedule, spacing, steps):
    scheduler = EulerAncestralDiscreteScheduler(**config(schedule), timestep_spacing=spacing)
    scheduler.alphas_cumprod = exact_alphas(scheduler.config)
    scheduler.set_timesteps(steps)
    assert_equal_drawn_steps(sampler_table(schedule, "euler_a", steps, spacing=spacing), scheduler)


SDXL = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
"""What the published scheduler_config.json of SDXL, SDXL-Turbo and SDXL-Lightning have in common."""


@pytest.mark.parametrize(
    ("scheduler_class", "sampler", "spacing", "steps"),
    [
        (EulerDiscreteScheduler, "euler", "leading", 30),  # SDXL
        (EulerAncestralDiscreteScheduler, "euler_a", "trailing", 1),  # SDXL-Turbo
        (EulerAncestralDiscreteScheduler, "euler_a", "trailing", 4),
        (EulerDiscreteScheduler, "euler", "trailing", 2),  # SDXL-Lightning
        (EulerDiscreteScheduler, "euler", "trailing", 8),
    ],
)
def test_published_sdxl_schedulers(scheduler_class, sampler, spacing, steps):
    """With the settings that SDXL's files name beside those that every scheduler has."""
    published = {"interpolation_type": "linear", "use_karras_sigmas": False} if sampler == "euler" else {}
    scheduler = scheduler_class(**SDXL, **published, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert_equal_drawn_steps(sampler_table(NoiseSchedule(**SDXL), sampler, steps, spacing=spacing), scheduler)


@settings(max_examples=40, deadline=None)
@given(SCHEDULES, SPACINGS, STEPS)
def test_dpm_2m(schedule, spacing, steps):
    scheduler = DPMSolverMultistepScheduler(**config(schedule), timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert_equal_steps(sampler_table(schedule, "dpm++2m", steps, spacing=spacing), scheduler)


@settings(max_examples=30, deadline=None)
@given(SCHEDULES, st.integers(1, 25))
def test_lcm(schedule, steps):
    scheduler = LCMScheduler(**config(schedule, "set_alpha_to_one", "original_inference_steps", "timestep_scaling"))
    scheduler.set_timesteps(steps)
    assert_equal_drawn_steps(sampler_table(schedule, "lcm", steps), scheduler)


def assert_equal_drawn_steps(table, scheduler):
    """The scheduler draws its own noise, a tensor a step: the table gets the same."""
    generator = torch.Generator().manual_seed(1)
    noises = [torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(table.steps)]
    sample = torch.ones(1, 4, 4, 4, dtype=torch.float64) * table.initial_std
    assert table.initial_std == pytest.approx(float(scheduler.init_noise_sigma), rel=5e-5)
    drawing = {"generator": torch.Generator().manual_seed(1)}
    expected = list(reference_steps(scheduler, sample, noises, **(drawing if table.uses_noise else {})))
    for (timestep, value), (wanted_timestep, wanted) in zip(table_steps(table, sample, noises), expected, strict=True):
        assert timestep == pytest.approx(wanted_timestep, abs=1e-3)
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_zero_terminal_snr(spacing, steps):
    ddim = DDIMScheduler(**config(ZERO_SNR, "set_alpha_to_one"), timestep_spacing=spacing, clip_sample=False)
    euler = EulerDiscreteScheduler(**config(ZERO_SNR), timestep_spacing=spacing)
    dpm = DPMSolverMultistepScheduler(**config(ZERO_SNR), timestep_spacing=spacing)
    for name, scheduler, options in (("ddim", ddim, {"eta": 0.0}), ("euler", euler, {}), ("dpm++2m", dpm, {})):
        scheduler.set_timesteps(steps)
        # diffusers keeps its schedule in float32, and near zero signal that costs it digits.
        assert_equal_steps(sampler_table(ZERO_SNR, name, steps, spacing=spacing), scheduler, 1e-4, **options)


def test_trained_betas():
    betas = tuple(np.linspace(0.001, 0.02, 100).tolist())
    schedule = NoiseSchedule(beta_schedule="trained", trained_betas=betas, num_train_timesteps=100)
    scheduler = EulerDiscreteScheduler(**config(schedule), timestep_spacing="trailing")
    scheduler.set_timesteps(7)
    assert_equal_steps(sampler_table(schedule, "euler", 7, spacing="trailing"), scheduler)


@settings(max_examples=30, deadline=None)
@given(SCHEDULES, SPACINGS, STEPS, st.sampled_from(["ddim", "euler", "euler_a", "dpm++2m"]))
def test_a_perfect_model_is_recovered(schedule, spacing, steps, sampler):
    """With the true noise as output, x0 is the clean sample at each step whatever the sampler (closed form)."""
    table = sampler_table(schedule, sampler, steps, spacing=spacing)
    clean, noise = 0.3, -1.1
    for timestep, k in zip(table.timesteps, table.coefficients.astype(np.float64), strict=True):
        sigma_hat = np.interp(timestep, np.arange(schedule.timesteps), schedule.sigmas_hat)
        alpha = 1 / np.sqrt(1 + sigma_hat**2)
        sigma = sigma_hat * alpha
        sample = alpha * clean + sigma * noise
        output = noise if schedule.prediction_type == "epsilon" else alpha * noise - sigma * clean
        space = 1 / alpha if sampler.startswith("euler") else 1.0
        assert k[1] * sample * space + k[2] * output == pytest.approx(clean, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler_z", "steps": 4}, "unknown sampler"),
        ({"sampler": "ddim", "steps": 0}, "0 steps"),
        ({"sampler": "ddim", "steps": 1001}, "1001 steps"),
        ({"sampler": "lcm", "steps": 51}, "51 LCM steps"),
        ({"sampler": "dpm++2m", "steps": 1000, "spacing": "leading"}, "do not fit"),
        ({"sampler": "ddim", "steps": 4, "spacing": "even"}, "unknown timestep spacing"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        sampler_table(NoiseSchedule(), options.pop("sampler"), options.pop("steps"), **options)


def test_epsilon_without_signal_is_refused():
    schedule = NoiseSchedule(prediction_type="epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(InputError, match="signal is zero"):
        sampler_table(schedule, "ddim", 4, spacing="trailing")


def test_schedule_survives_its_dictionary():
    schedule = NoiseSchedule(beta_schedule="trained", trained_betas=(0.1, 0.2))
    assert NoiseSchedule.from_dict(schedule.to_dict()) == schedule
