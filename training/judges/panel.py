"""The three judges together, as the evaluation asks them."""

import hashlib
import shutil
from collections.abc import Callable
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

from bolid_training.evaluate.kept import kept
from bolid_training.judges.clip import ClipJudge
from bolid_training.judges.identity import embed
from bolid_training.judges.perceptual import perceptual_distance
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
    folder: Path | None = None
    """For what they have seen: they look at no picture twice that is in it."""

    def keypoints(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Keypoints [B, 12, 3] (x, y in [0, 1], confidence) of square pictures [B, H, W, 3]."""
        return self._kept("keypoints", [images], lambda: find_keypoints(self.pose, images))

    def people(self, images: NDArray[np.uint8], keypoints: NDArray | None = None) -> NDArray[np.float32]:
        """Unit embeddings [B, D] of the people in pictures [B, H, W, 3], at `keypoints` or where the pose judge finds
        them."""
        points = self.keypoints(images) if keypoints is None else keypoints
        return self._kept("people", [images, points], lambda: embed(self.identity, images, points))

    def looks(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """CLIP's unit embeddings [B, E] of pictures [B, H, W, 3]."""
        return self._kept("looks", [images], lambda: self.clip.embed_images(images))

    def distances(
        self, first: NDArray[np.uint8], second: NDArray[np.uint8], keypoints: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """[B]: the `perceptual_distance` of pictures [B, H, W, 3] of people who are both at `keypoints`."""
        seen = [first, second, keypoints]
        return self._kept("distances", seen, lambda: perceptual_distance(self.identity, *seen))

    def _kept(self, what: str, seen: list[NDArray], look: Callable[[], NDArray]) -> NDArray:
        return kept(self.folder, {"judges": self.digest, "asked for": what}, seen, look)


def load_judges(folder: Path = FOLDER, keep: Path | None = None) -> Judges:
    """Reads what `keep_judges` wrote; what they see stays in the folder `keep`, where one is given.

    Raises FileNotFoundError that names the judges which are missing.
    """
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
        folder=keep,
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
