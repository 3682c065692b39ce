"""The few-step student as later stages find it, and what it said before them."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from bolid_training.data import People
from bolid_training.lightning import lightning_sample
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import STEPS, newest_student
from bolid_training.model.sampling import seeded_noise
from bolid_training.precision import autocast
from bolid_training.stages.adapter import AdapterTask


class StudentTask(AdapterTask):
    """Begins with the newest of the students that the stages up to `follows` have left."""

    begins_with = None
    follows: str

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.module.load(newest_student(runs, self.follows))
        self.before = deepcopy(self.module).eval().requires_grad_(False)

    def draw(self, batch: dict[str, Tensor], skeletons: Tensor, steps: int = STEPS, guidance: float = 1.0) -> Tensor:
        """Without guidance: the unconditional half of `batch` is not looked at."""
        told = {name: value.chunk(2)[1] for name, value in batch.items()}
        told |= {"skeleton": skeletons, "keep_pose": torch.ones(len(skeletons), dtype=torch.bool)}
        noise = seeded_noise((len(skeletons), *self.validation_arrays["latents"].shape[1:]))
        with autocast():
            return lightning_sample(self.module.student(told), self.scheduler, noise, steps=steps, gradient_steps=0)

    def save(self, folder: Path) -> None:
        self.module.save(folder)

    def load(self, folder: Path) -> None:
        self.module.load(folder)


def one_for_each(steps: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Of steps' tensors [B, ...], for each sample those of one step, in turn."""
    rows = torch.arange(len(steps[0][0]))
    return tuple(torch.stack(column)[rows % len(steps), rows] for column in zip(*steps, strict=True))
