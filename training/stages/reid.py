"""Stage `reid`: an embedding of people (re-identification) for losses on finished pictures, as PuLID has ArcFace's.

A network of its own: the one that conditions has to be asked by the adapter, and the one that judges may not be in a
loss. So this is a ConvNeXt (arXiv:2201.03545), where the judge is a ResNet, with another seed. What both have in common
is the data set and how they learn from it.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification

from bolid_training.data import People, cached_of, pixels
from bolid_training.metric_learning import PairsTask, body_boxes, box_views, found_keypoints
from bolid_training.precision import autocast

SEED = 2000  # of the random weights; the model's networks begin with 0, the judges with 1000 and more
SIZE, WIDTHS, DEPTHS, EMBEDDING = 96, (64, 128, 256, 384), (1, 1, 3, 1), 128


def build_reid() -> ConvNextForImageClassification:
    """Pixels [B, 3, 96, 96] in [-1, 1] -> embeddings [B, 128], not of unit length."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        sizes = {"image_size": SIZE, "num_labels": EMBEDDING}
        return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=list(WIDTHS), depths=list(DEPTHS), **sizes))


class ReidTask(PairsTask):
    """A batch of size P is P people, twice."""

    def __init__(self, people: People, validation: People):
        super().__init__(build_reid(), people, validation)


class Reid:
    """The trained network, frozen. Raises FileNotFoundError when there is none."""

    def __init__(self, runs: Path):
        if not (folder := runs / "reid" / "model").is_dir():
            raise FileNotFoundError(
                f"{folder} is missing, which the identity-embedding loss asks: run `bolid-train stage reid` first"
            )
        network = ConvNextForImageClassification.from_pretrained(folder)
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor, keypoints: NDArray[np.float32]) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] of people at `keypoints` [B, 12, 3] (x, y in [0, 1], confidence) -> unit
        embeddings [B, 128], differentiable in the pictures."""
        cuts = box_views(body_boxes(keypoints)).cut(images.float(), SIZE)
        with autocast():
            return F.normalize(self.network(cuts).logits.float())

    def of(self, people: People, runs: Path) -> NDArray[np.float32]:
        """What it says of everybody's pictures [N, 128], computed once and kept in `runs/cache`."""
        points = found_keypoints(people)

        @torch.no_grad()
        def embed(piece: slice) -> NDArray[np.float32]:
            return self(pixels(people.images[piece]), points[piece]).numpy()

        return cached_of(people, runs, "persons", embed, by=self.network)
