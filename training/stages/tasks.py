"""Every stage's task for the training loop, by the stage's name."""

from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
import transformers

from bolid_training.data import load_people, load_together
from bolid_training.judges.tasks import TASKS as JUDGES
from bolid_training.judges.tasks import build_judge_task
from bolid_training.loop import Task
from bolid_training.model.config import AvatarConfig
from bolid_training.recipes.methods import Recipe
from bolid_training.stages.adapter import AdapterTask
from bolid_training.stages.clip import ClipTask
from bolid_training.stages.clip_text import ClipTextTask
from bolid_training.stages.clothes import ClothesTask
from bolid_training.stages.contrast import ContrastTask
from bolid_training.stages.decoder import DecoderTask
from bolid_training.stages.energy import EnergyTask
from bolid_training.stages.guider import GuiderTask
from bolid_training.stages.lightning import LightningTask
from bolid_training.stages.method import MethodTask
from bolid_training.stages.pose import PoseTask
from bolid_training.stages.refine import RefineTask
from bolid_training.stages.reid import ReidTask
from bolid_training.stages.unet import UnetTask
from bolid_training.stages.vae import VaeTask
from bolid_training.stages.words import WordsTask

FIRST = {"clip": ClipTask, "vae": VaeTask}
"""These begin with nothing."""

LATER = {
    "decoder": DecoderTask,
    "unet": UnetTask,
    "clip_text": ClipTextTask,
    "adapter": AdapterTask,
    "lightning": LightningTask,
    "refine": RefineTask,
    "contrast": ContrastTask,
    "energy": EnergyTask,
    "guider": GuiderTask,
    "clothes": ClothesTask,
}
"""These begin with what earlier stages have left in `runs`."""

HELD_OUT = 600  # validation pictures: enough for the metrics that are logged


def build_task(
    name: str,
    data: Path,
    runs: Path,
    limit: int | None = None,
    config: AvatarConfig | None = None,
    recipe: Recipe | None = None,
    more_data: Sequence[Path] = (),
) -> Task:
    """The stage's task on the first `limit` pictures of the train splits of `data` and `more_data`, and on the
    validation split of `data`; the adapter's by a `recipe`, if there is one.

    Raises FileNotFoundError for missing data or earlier stages.
    """
    diffusers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = config or AvatarConfig()
    people = load_together([data, *more_data], "train", limit)
    validation = load_people(data, "validation", HELD_OUT)
    if name in JUDGES:
        return build_judge_task(name, people, validation)
    if name in FIRST:
        return FIRST[name](config, people, validation)
    if name == "reid":
        return ReidTask(people, validation)
    if name == "pose":
        return PoseTask(config, people, validation, load_people(data, "empty"), runs)
    if name == "words":
        return WordsTask(config, people, validation, runs, recipe)
    if recipe is not None:
        return MethodTask(config, people, validation, runs, recipe)
    return LATER[name](config, people, validation, runs)
