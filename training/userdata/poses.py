"""Finding keypoints in a user's pictures, by the runtime's own rule: what that refuses as a reference is refused."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk.backends import Engine, open_backend
from bolid_sdk.bundle import open_bundle
from bolid_sdk.errors import InputError
from bolid_sdk.graphs import Graphs
from bolid_sdk.pose import detect_pose
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import PoseEstimator, load_pose_estimator


@dataclass(frozen=True, kw_only=True)
class PoseFinder:
    """A pose network and what it is called; below a mean confidence of `threshold` a picture shows nobody."""

    name: str
    engine: Engine
    size: tuple[int, int]
    threshold: float

    def find(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """Keypoints float32 [12, 3] of the one person in the picture. Raises PoseError."""
        pose, _ = detect_pose(self.engine, image, size=self.size, threshold=self.threshold, name=name)
        return pose.keypoints


class TorchPose:
    """A PoseEstimator where the runtime expects an engine."""

    def __init__(self, estimator: PoseEstimator):
        self.estimator = estimator.eval()

    @torch.no_grad()
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        keypoints, heatmaps = self.estimator(torch.from_numpy(inputs["pixels"]))
        return {"keypoints": keypoints.numpy(), "heatmaps": heatmaps.numpy()}


def open_pose_finder(model: Path, chosen: Path | None, threshold: float | None) -> PoseFinder:
    """The `chosen` ViTPose folder, else the model's own `pose_estimator`, else the embedded avatar's.

    Raises InputError for a folder that is no ViTPose of 12 keypoints.
    """
    folder = chosen or model / "pose_estimator"
    if chosen is None and not folder.is_dir():
        return _embedded(threshold)
    try:
        estimator = load_pose_estimator(folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder} is not a pose estimator: expected a ViTPose of 12 keypoints ({error})") from error
    limit = AvatarConfig().pose_threshold if threshold is None else threshold
    return PoseFinder(name=str(folder), engine=TorchPose(estimator), size=estimator.image_size, threshold=limit)


def _embedded(threshold: float | None) -> PoseFinder:
    bundle = open_bundle()
    sizes = bundle.manifest.sizes
    return PoseFinder(
        name="the embedded avatar's",
        engine=Graphs(bundle, open_backend("onnxruntime", "cpu"))["pose_estimator"],
        size=(sizes.pose_height, sizes.pose_width),
        threshold=bundle.manifest.pose_threshold if threshold is None else threshold,
    )
