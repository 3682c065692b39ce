"""The scheduler of a checkpoint, as far as the runtime has it too."""

import json
from pathlib import Path

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
)

from bolid_sdk.schedule import SamplerName

SAMPLERS: dict[SamplerName, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}

# What the runtime's tables are made for; a scheduler takes of it what it knows.
SETTINGS = {
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "thresholding"), False),
    "interpolation_type": "linear",
    "clip_sample": False,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
}


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The folder's own scheduler, or DDIM with the same noise schedule for one that the runtime does not have.

    SETTINGS, Karras' sigmas among them, are how a picture is sampled, not what the model was trained on.
    """
    config = json.loads((folder / "scheduler_config.json").read_text())
    classes = {known.__name__: known for known in SAMPLERS.values()}
    return classes.get(config["_class_name"], DDIMScheduler).from_config(config, **SETTINGS)


def without_noise(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler, or its relative that draws no noise of its own: of two pictures from equal noise, one can be
    compared with the other."""
    relatives = {"euler_a": EulerDiscreteScheduler, "lcm": DDIMScheduler}
    relative = relatives.get(sampler_name(scheduler))
    return scheduler if relative is None else relative.from_config(scheduler.config)


def sampler_name(scheduler: SchedulerMixin) -> SamplerName:
    """The runtime's name of a scheduler that `load_scheduler` gave."""
    return next(name for name, known in SAMPLERS.items() if isinstance(scheduler, known))
