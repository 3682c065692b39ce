"""Pictures that a bundle draws of the people it knows, one for each trial."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bolid_sdk import Generator
from bolid_training.evaluate.kept import kept
from bolid_training.evaluate.known import Accepted

BATCH = 8


def draw(keep: Path | None, generator: Generator, accepted: Accepted, seed: int, **options: Any) -> NDArray[np.uint8]:
    """`generate`, or what it gave for the same people, prompts and options before, from `keep` where one is given."""
    asked = {
        "bundle": generator.bundle.digest,
        "backend": generator.backend,
        "prompts": [trial.prompt for trial, _ in accepted],
        "seed": seed,
        "options": {name: repr(value) for name, value in sorted(options.items())},
    }
    people = (array for _, known in accepted for array in (known.tokens, known.keypoints) if array is not None)
    return kept(keep, asked, people, lambda: generate(generator, accepted, seed, **options))


def generate(generator: Generator, accepted: Accepted, seed: int, **options: Any) -> NDArray[np.uint8]:
    """One picture [B, H, W, 3] for each trial; `options` as of `Generator.batch`."""
    requests = [(identity, trial.prompt) for trial, identity in accepted]
    pictures = []
    for start in tqdm(range(0, len(requests), BATCH), desc="pictures", unit=f"x{BATCH}", dynamic_ncols=True):
        results = generator.batch(requests[start : start + BATCH], seed=seed + start, **options)
        pictures += [np.asarray(result.image) for result in results]
    return np.stack(pictures)
