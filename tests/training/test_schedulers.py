"""Schedulers of other people's checkpoints, as the runtime has them."""

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from bolid_training.model.schedulers import load_scheduler, sampler_name, without_noise


@pytest.mark.parametrize(
    ("scheduler_class", "name"),
    [
        (DDIMScheduler, "ddim"),
        (EulerDiscreteScheduler, "euler"),
        (EulerAncestralDiscreteScheduler, "euler_a"),
        (DPMSolverMultistepScheduler, "dpm++2m"),
        (LCMScheduler, "lcm"),
        (PNDMScheduler, "ddim"),
    ],
)
def test_a_scheduler_keeps_its_noise_schedule(scheduler_class, name, tmp_path):
    settings = {"beta_start": 0.001, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    scheduler = scheduler_class(**settings, steps_offset=1, timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path)
    loaded = load_scheduler(tmp_path)
    assert sampler_name(loaded) == name
    for setting in (*settings, "steps_offset", "timestep_spacing"):
        assert loaded.config[setting] == scheduler.config[setting]
    quiet = {"euler_a": "euler", "lcm": "ddim"}.get(name, name)
    assert sampler_name(without_noise(loaded)) == quiet
    assert (without_noise(loaded).alphas_cumprod == loaded.alphas_cumprod).all()


def test_karras_sigmas_are_left_to_diffusers(tmp_path):
    DPMSolverMultistepScheduler(use_karras_sigmas=True, algorithm_type="sde-dpmsolver++").save_pretrained(tmp_path)
    config = load_scheduler(tmp_path).config
    assert (config.use_karras_sigmas, config.algorithm_type) == (False, "dpmsolver++")
