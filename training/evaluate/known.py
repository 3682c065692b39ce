"""Whom the SDK recognises in the references."""

from pathlib import Path
from typing import TypeAlias

from PIL import Image
from tqdm import tqdm

from bolid_sdk import Generator, Identity
from bolid_sdk.errors import InputError
from bolid_training.data import People
from bolid_training.evaluate.kept import digest
from bolid_training.evaluate.protocol import Trial, further_photographs

Accepted: TypeAlias = list[tuple[Trial, Identity]]


def identify(
    generator: Generator, people: People, trials: list[Trial], references: int = 1, keep: Path | None = None
) -> Accepted:
    """The trials whose reference the SDK accepts; the others are counted as refused.

    With more `references` further photographs of the person come in, as far as there are any and they are accepted;
    pose stays the trial's own. `keep`: whom it has recognised before is read from there.
    """
    # several trials may ask for one photograph
    first = {trial.index: trial for trial in trials}
    asked = tqdm(first.values(), desc="references", dynamic_ncols=True)
    known = {trial.index: recognise(generator, people, trial, references, keep) for trial in asked}
    found = ((trial, known[trial.index]) for trial in trials)
    return [(trial, identity) for trial, identity in found if identity is not None]


def recognise(
    generator: Generator, people: People, trial: Trial, references: int, keep: Path | None
) -> Identity | None:
    """The person of a trial; None where the SDK refuses the reference."""
    try:
        alone = _person(generator, people, [trial.index], keep)
    except InputError:
        return None
    more = further_photographs(people, trial)[: references - 1]
    try:
        return _person(generator, people, [trial.index, *more], keep) if more else alone
    except InputError:
        return alone


def _person(generator: Generator, people: People, indices: list[int], keep: Path | None) -> Identity:
    """Raises InputError."""
    images = people.images[indices]
    pictures = [Image.fromarray(image) for image in images]
    shown = pictures if len(pictures) > 1 else pictures[0]
    if keep is None:
        return generator.identify(shown)
    file = keep / f"{digest({'known to': [generator.bundle.digest, generator.backend]}, images)}.npz"
    if not file.exists():
        keep.mkdir(parents=True, exist_ok=True)
        generator.identify(shown).save(file)
    return Identity.load(file)
