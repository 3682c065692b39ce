"""The judges' tasks for the training loop."""

import torch

from bolid_training.data import People
from bolid_training.judges.clip import ClipJudgeTask
from bolid_training.judges.config import SEED, JudgeConfig
from bolid_training.judges.identity import IdentityTask
from bolid_training.judges.pose import PoseJudgeTask
from bolid_training.loop import Task

TASKS = {"judge_identity": IdentityTask, "judge_pose": PoseJudgeTask, "judge_clip": ClipJudgeTask}


def build_judge_task(name: str, people: People, validation: People, config: JudgeConfig | None = None) -> Task:
    """One of `TASKS`, with random weights that no other network began with."""
    torch.manual_seed(SEED + list(TASKS).index(name))
    return TASKS[name](config or JudgeConfig(), people, validation)
