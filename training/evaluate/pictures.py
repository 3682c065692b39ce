"""Pictures beside the trials': the references through the autoencoder, and a sheet to look at."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk import Generator
from bolid_sdk.backends import open_backend
from bolid_sdk.graphs import Graphs
from bolid_sdk.images import from_signed, stack_pixels, to_signed
from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People
from bolid_training.evaluate.drawn import BATCH
from bolid_training.evaluate.kept import kept
from bolid_training.evaluate.known import identify
from bolid_training.evaluate.protocol import Trial


def reconstruct(generator: Generator, images: NDArray[np.uint8], keep: Path | None = None) -> NDArray[np.uint8] | None:
    """Pictures [B, H, W, 3] through the bundle's autoencoder, or what it made of them before, from `keep`; None for a
    bundle without an encoder."""
    backend = open_backend(None, "auto", None)
    graphs = Graphs(generator.bundle, backend)
    if "vae_encoder" not in graphs:
        return None
    asked = {"autoencoded by": [generator.bundle.digest, backend.description]}
    return kept(keep, asked, [images], lambda: _reconstruct(graphs, images))


def _reconstruct(graphs: Graphs, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rebuilt = []
    for start in range(0, len(images), BATCH):
        latents = graphs["vae_encoder"].run({"pixels": to_signed(images[start : start + BATCH])})["latents"]
        pixels = graphs["vae_decoder"].run({"latents": np.asarray(latents, np.float32)})["pixels"]
        rebuilt += from_signed(np.asarray(pixels, np.float32))
    return stack_pixels(rebuilt)


def sheet(generator: Generator, people: People, trials: list[Trial], rows: int = 10, seeds: int = 4) -> Image.Image:
    """Rows of reference, pose, and `seeds` pictures of the first accepted trials; the prompt stands under them."""
    cells, labels = [], []
    for trial, identity in identify(generator, people, trials[: 3 * rows])[:rows]:
        reference = people.images[trial.index]
        skeleton = draw_skeleton(identity.keypoints, *reference.shape[:2])
        results = generator.batch([(identity, trial.prompt)] * seeds, seed=0)
        cells += [reference, skeleton, *(np.asarray(result.image) for result in results)]
        labels += ["reference", "pose", trial.prompt, *[""] * (seeds - 1)]
    return contact_sheet(cells, columns=2 + seeds, labels=labels)
