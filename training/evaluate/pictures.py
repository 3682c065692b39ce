"""Pictures from the SDK: of every trial, of the references through the autoencoder, and a sheet to look at."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from bolid_sdk import Generator, Identity
from bolid_sdk.backends import open_backend
from bolid_sdk.errors import InputError
from bolid_sdk.graphs import Graphs
from bolid_sdk.images import from_signed, stack_pixels, to_signed
from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People
from bolid_training.evaluate.protocol import Trial, further_photographs

BATCH = 8


def identify(
    generator: Generator, people: People, trials: list[Trial], references: int = 1
) -> list[tuple[Trial, Identity]]:
    """The trials whose reference the SDK accepts; the others are counted as refused.

    With more `references` further photographs of the person come in, as far as there are any and they are accepted;
    pose stays the trial's own.
    """
    # several trials may ask for one photograph
    first = {trial.index: trial for trial in trials}
    known = {index: recognise(generator, people, trial, references) for index, trial in first.items()}
    found = ((trial, known[trial.index]) for trial in trials)
    return [(trial, identity) for trial, identity in found if identity is not None]


def recognise(generator: Generator, people: People, trial: Trial, references: int) -> Identity | None:
    """The person of a trial; None where the SDK refuses the reference."""
    try:
        identity = generator.identify(Image.fromarray(people.images[trial.index]))
    except InputError:
        return None
    more = further_photographs(people, trial)[: references - 1]
    return with_photographs(generator, people, identity, [trial.index, *more]) if more else identity


def with_photographs(generator: Generator, people: People, alone: Identity, indices: list[int]) -> Identity:
    """The person of several photographs, or of the first `alone` where another is refused."""
    try:
        return generator.identify([Image.fromarray(people.images[index]) for index in indices])
    except InputError:
        return alone


def generate(
    generator: Generator, accepted: list[tuple[Trial, Identity]], seed: int, **options: Any
) -> NDArray[np.uint8]:
    """One picture [B, H, W, 3] for each trial; `options` as of `Generator.batch`."""
    requests = [(identity, trial.prompt) for trial, identity in accepted]
    pictures = []
    for start in tqdm(range(0, len(requests), BATCH), desc="pictures", unit=f"x{BATCH}", dynamic_ncols=True):
        results = generator.batch(requests[start : start + BATCH], seed=seed + start, **options)
        pictures += [np.asarray(result.image) for result in results]
    return np.stack(pictures)


def reconstruct(generator: Generator, images: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Pictures [B, H, W, 3] through the bundle's autoencoder; None for a bundle without an encoder."""
    graphs = Graphs(generator.bundle, open_backend(None, "auto", None))
    if "vae_encoder" not in graphs:
        return None
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
