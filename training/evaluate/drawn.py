"""Pictures that a bundle has drawn before: a comparison of hours goes on where it was stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk import Generator, Identity
from bolid_training.evaluate.pictures import generate
from bolid_training.evaluate.protocol import Trial

Accepted = list[tuple[Trial, Identity]]


def draw(folder: Path | None, generator: Generator, accepted: Accepted, seed: int, **options: Any) -> NDArray[np.uint8]:
    """`pictures.generate`, or what it gave for the same request before, from `folder` where one is given."""
    if folder is None:
        return generate(generator, accepted, seed, **options)
    file = folder / f"{_request(generator, accepted, seed, options)}.npy"
    if file.exists():
        return np.load(file)
    pictures = generate(generator, accepted, seed, **options)
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_name("partial.npy")
    np.save(partial, pictures)
    partial.rename(file)
    return pictures


def _request(generator: Generator, accepted: Accepted, seed: int, options: dict[str, Any]) -> str:
    """A digest of the bundle, the library that runs it, the people, their prompts and the options."""
    asked = {
        "bundle": generator.bundle.digest,
        "backend": generator.backend,
        "prompts": [trial.prompt for trial, _ in accepted],
        "seed": seed,
        "options": {name: repr(value) for name, value in sorted(options.items())},
    }
    digest = hashlib.sha256(json.dumps(asked).encode())
    for _, identity in accepted:
        digest.update(identity.tokens.tobytes())
        digest.update(b"" if identity.keypoints is None else identity.keypoints.tobytes())
    return digest.hexdigest()[:32]
