"""The few-step LoRA of a checkpoint: a file as diffusers' pipelines write and load it."""

from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

LIGHTNING = "lightning"
"""Its folder in a checkpoint."""
STEPS = 4
LORA_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "unet."
STUDENTS = (LIGHTNING, "refine", "contrast", "energy", "guider", "clothes")
"""The stages that train it, one after the other."""


def newest_student(runs: Path, last: str = STUDENTS[-1]) -> Path:
    """What the last of `STUDENTS`, up to the stage `last`, has left in `runs`; else where the first would leave it."""
    folders = [runs / stage / "model" for stage in STUDENTS[: STUDENTS.index(last) + 1]]
    return next((folder for folder in reversed(folders) if folder.is_dir()), folders[0])


def read_lora(file: Path) -> dict[str, Tensor]:
    """The UNet's part of the file, in float32. Raises FileNotFoundError."""
    state = load_file(file)
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in state.items() if name.startswith(PREFIX)}


def fuse_lora(unet: UNet2DConditionModel, file: Path) -> None:
    """Adds the LoRA to the UNet's own weights: nothing of it is left to compute.

    The sums are rounded to float16, which is how a merged checkpoint would have been saved: an engine's weights take
    half the space, and every export of the same files has the same ones.
    """
    unet.float().load_lora_adapter(read_lora(file), prefix=None)
    unet.fuse_lora()
    unet.unload_lora()
    for parameter in unet.parameters():
        parameter.data = parameter.data.half().to(parameter.dtype)
