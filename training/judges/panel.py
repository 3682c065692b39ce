"""The three judges together, as the evaluation asks them."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ResNetForImageClassification,
    UperNetForSemanticSegmentation,
)

from bolid_training.judges.clip import ClipJudge
from bolid_training.judges.identity import embed
from bolid_training.judges.pose import PoseJudge, find_keypoints
from bolid_training.model.checkpoint import cast_weights

NAMES = ("identity", "pose", "clip")
FOLDER = Path("training/weights/judges")


@dataclass(frozen=True, kw_only=True)
class Judges:
    """In eval mode, float32."""

    identity: ResNetForImageClassification
    pose: PoseJudge
    clip: ClipJudge
    digest: str = ""
    """SHA-256 of the three networks' weights."""

    def keypoints(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Keypoints [B, 12, 3] (x, y in [0, 1], confidence) of square pictures [B, H, W, 3]."""
        return find_keypoints(self.pose, images)

    def people(self, images: NDArray[np.uint8], keypoints: NDArray | None = None) -> NDArray[np.float32]:
        """Unit embeddings [B, D] of the people in pictures [B, H, W, 3], at `keypoints` or where the pose judge finds
        them."""
        return embed(self.identity, images, self.keypoints(images) if keypoints is None else keypoints)


def load_judges(folder: Path = FOLDER) -> Judges:
    """Reads what `keep_judges` wrote. Raises FileNotFoundError that names the judges which are missing."""
    missing = [name for name in NAMES if not (folder / name / "config.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks the judges {', '.join(missing)}: train them with `bolid-train stage judge_{missing[0]}` "
            "and so on, then run `bolid-train keep-judges`"
        )
    single = {"dtype": torch.float32}
    pose = UperNetForSemanticSegmentation.from_pretrained(folder / "pose", **single)
    # the same keypoints to 2e-6, in two thirds of the time
    pose.to(memory_format=torch.channels_last)
    return Judges(
        identity=ResNetForImageClassification.from_pretrained(folder / "identity", **single).eval(),
        pose=PoseJudge(pose).eval(),
        clip=ClipJudge(
            model=CLIPModel.from_pretrained(folder / "clip", **single).eval(),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "clip"),
            feature_extractor=CLIPImageProcessor.from_pretrained(folder / "clip"),
        ),
        digest=_digest(folder),
    )


def keep_judges(runs: Path, out: Path = FOLDER) -> dict[str, int]:
    """Copies `runs/judge_NAME/model` to `out/NAME`, weights as float16, and returns the copies' sizes in bytes.

    Raises FileNotFoundError for a judge that has not been trained.
    """
    for name in NAMES:
        if not (runs / f"judge_{name}" / "model").is_dir():
            raise FileNotFoundError(f"there is no {name} judge yet: run `bolid-train stage judge_{name}` first")
    for name in NAMES:
        shutil.copytree(runs / f"judge_{name}" / "model", out / name, dirs_exist_ok=True)
        cast_weights(out / name, torch.float16)
    return {name: sum(file.stat().st_size for file in (out / name).iterdir()) for name in NAMES}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update((folder / name / "model.safetensors").read_bytes())
    return digest.hexdigest()
