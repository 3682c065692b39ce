"""Several bundles on the same people, prompts and seeds: rows of one table.

A row is a model: what it draws is judged as in `evaluate.run`, and picture by picture compared with the first row's.
Ceilings and floors belong to the pictures that are asked for, not to a model, so they stand once beside all rows.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk import Generator, Sampling
from bolid_sdk.errors import InputError
from bolid_training.data import People
from bolid_training.evaluate.drawn import draw
from bolid_training.evaluate.exam import Exam, Seen, look, look_at_references, scores, set_exam
from bolid_training.evaluate.figure import chosen_rows, figure
from bolid_training.evaluate.intervals import Summary, distance_difference, summary
from bolid_training.evaluate.joined import check_same, joined
from bolid_training.evaluate.known import Accepted, identify
from bolid_training.evaluate.pictures import reconstruct
from bolid_training.evaluate.protocol import Trial
from bolid_training.evaluate.run import distance, poses, setup, summaries
from bolid_training.judges.panel import Judges

NUMBERS = {"best_of": int, "pose_scale": float}  # options of a picture, by what reads them
TIMED = 7  # pictures one by one, after one that is not counted

Judged: TypeAlias = tuple[dict[str, NDArray], Seen]
"""Of a row's pictures: each metric's values [N], and what the judges saw."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A row: a bundle, and what is asked of it beyond its defaults. `options`: keywords of `Generator.batch`;
    `references`: how many photographs of a person it is shown, where there are so many."""

    name: str
    bundle: Path | None
    references: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def parse_contestant(text: str) -> Contestant:
    """ "bolid=engines/bolid", "bolid_25=engines/base@steps=25@guidance=3", "ip_adapter=engines/ip@pose=none",
    "best=embedded@best_of=4".

    The bundle "embedded" is the SDK's own. Raises InputError.
    """
    head, *choices = text.split("@")
    name, equals, folder = head.partition("=")
    if not (name and equals and folder):
        raise InputError(f"{text!r} is no row; expected NAME=BUNDLE, as in bolid=engines/bolid")
    given = dict(choice.partition("=")[::2] for choice in choices)
    known = {"pose", "steps", "guidance", "references", *NUMBERS}
    if given.keys() - known or given.get("pose", "none") != "none":
        raise InputError(
            f"{text!r} cannot be read; expected @pose=none, @steps=N, @guidance=X, @references=N, @best_of=N or "
            "@pose_scale=X after the bundle"
        )
    references = given.pop("references", "1")
    if not (references.isdecimal() and int(references)):
        raise InputError(f"{text!r} asks for {references!r} references; expected a whole number from 1")
    bundle = None if folder == "embedded" else Path(folder)
    return Contestant(name=name, bundle=bundle, references=int(references), options=_options(text, given))


def _options(text: str, given: dict[str, str]) -> dict[str, Any]:
    pose = {"pose": None} if "pose" in given else {}
    try:
        sampling = Sampling(
            steps=int(given["steps"]) if "steps" in given else None,
            guidance=float(given["guidance"]) if "guidance" in given else None,
        )
        numbers = {name: read(given[name]) for name, read in NUMBERS.items() if name in given}
    except ValueError as error:
        raise InputError(f"{text!r} cannot be read: {error}") from error
    return pose | numbers | ({"sampling": sampling} if sampling != Sampling() else {})


def figure_columns(contestants: list[Contestant], names: str) -> list[str]:
    """The models of "NAME,NAME". Raises InputError for one that is no row."""
    rows, chosen = [contestant.name for contestant in contestants], names.split(",")
    if unknown := [name for name in chosen if name not in rows]:
        raise InputError(f"the figure cannot show {', '.join(unknown)}; the rows are {', '.join(rows)}")
    return chosen


def compare(
    contestants: list[Contestant],
    judges: Judges,
    people: People,
    trials: list[Trial],
    seed: int,
    split: str,
    shown: int = 8,
    columns: Sequence[str] = (),
    backend: str | None = None,
    keep: Path | None = None,
    earlier: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Image.Image]:
    """`rows`, `ceilings`, `floors`, `by_pose` of the ceilings and `setup` of one comparison, and the figure of `shown`
    people and the models named in `columns`, or all.

    `split`: the people's, told in `setup`. `keep`: a folder for each row's people and pictures, which are taken from
    there where it has them. `earlier`: a comparison whose other rows are kept, refused before anything is drawn if it
    is of other people.

    Raises BundleError and InputError.
    """
    generators = [Generator(contestant.bundle, backend=backend) for contestant in contestants]
    accepted = common(
        [
            identify(generator, people, trials, contestant.references, keep)
            for generator, contestant in zip(generators, contestants, strict=True)
        ]
    )
    exam = set_exam(judges, people, accepted[0])
    told = _setup(generators[0], judges, exam, refused=len(trials) - len(exam.trials), seed=seed, split=split)
    if earlier:
        check_same(told, earlier)
    beside, reference = references(exam, judges, generators[0], keep)
    places, rows, drawn = chosen_rows(exam, shown), [], {}
    first: Judged | None = None
    for contestant, generator, known in zip(contestants, generators, accepted, strict=True):
        pictures = draw(keep, generator, known, seed, **contestant.options)
        seen = look(judges, exam, pictures)
        values = scores(exam, seen, reference, exam.prompts) | likeness(judges, exam, pictures)
        first = first or (values, seen)
        compared = {"minus_first_row": differences(exam, (values, seen), first)} if rows else {}
        rows.append(_row(contestant, generator, exam, seen, values, known) | compared)
        if not columns or contestant.name in columns:
            drawn[contestant.name] = pictures[places]
    result = {"rows": rows, **beside, "setup": told}
    return joined(result, earlier) if earlier else result, figure(exam, drawn, places)


def _setup(generator: Generator, judges: Judges, exam: Exam, *, refused: int, seed: int, split: str) -> dict[str, Any]:
    """What all rows have in common; what is a row's own is said there."""
    shared = setup(generator, judges, seed)
    told = {name: shared[name] for name in shared if name not in ("bundle", "sampling", "precision")}
    return told | {
        "protocol": told["protocol"] | PROTOCOL,
        "pictures": len(exam.trials),
        "identity_judged": sum(trial.other is not None for trial in exam.trials),
        "people": len(np.unique(exam.people)),
        "references_refused": refused,
        "split": split,
    }


def common(accepted: list[Accepted]) -> list[Accepted]:
    """Each bundle's identities of the trials that all bundles accepted, in the same order. Raises InputError."""
    kept = set.intersection(*({trial for trial, _ in known} for known in accepted))
    if len(kept) < 2:
        raise InputError(f"{len(kept)} references were accepted by all bundles; a comparison needs two at least")
    return [[(trial, identity) for trial, identity in known if trial in kept] for known in accepted]


def references(exam: Exam, judges: Judges, generator: Generator, keep: Path | None) -> tuple[dict[str, Any], Seen]:
    """`ceilings`, `autoencoded` and `floors`, the first two also `by_pose`, and what is seen in the references."""
    seen = look_at_references(judges, exam, exam.references)
    shown = scores(exam, seen, seen, exam.true_prompts) | likeness(judges, exam, exam.references)
    others = scores(exam, seen.somebody_else(), seen, exam.prompts)
    others |= likeness(judges, exam, np.roll(exam.references, 1, 0))
    rows = {
        "ceilings": summaries(exam, shown) | distance(exam, seen),
        "floors": summaries(exam, others),
        "by_pose": {"ceilings": poses(exam, shown)},
    }
    rebuilt = reconstruct(generator, exam.references, keep)
    if rebuilt is not None:
        coded = look_at_references(judges, exam, rebuilt)
        values = scores(exam, coded, seen, exam.true_prompts) | likeness(judges, exam, rebuilt)
        rows["autoencoded"] = summaries(exam, values) | distance(exam, coded)
        rows["by_pose"]["autoencoded"] = poses(exam, values)
    return rows, seen


def likeness(judges: Judges, exam: Exam, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """How near pictures [N, H, W, 3] look to the references, which hold the pose that is asked for."""
    return {"perceptual_judge_identity": judges.distances(images, exam.references, exam.truth)}


def _row(
    contestant: Contestant,
    generator: Generator,
    exam: Exam,
    seen: Seen,
    values: dict[str, NDArray],
    accepted: Accepted,
) -> dict[str, Any]:
    """`seen` and `values`: what the judges saw in the pictures, and the metrics of each."""
    sampling = contestant.options.get("sampling", Sampling()).resolve(generator.bundle.manifest.sampling)
    return {
        "model": contestant.name,
        "bundle": generator.bundle.digest,
        "precision": generator.bundle.manifest.precision,
        **asdict(sampling),
        "references": contestant.references,
        "best_of": contestant.options.get("best_of", 1),
        "pose_scale": contestant.options.get("pose_scale", 1.0),
        "pose_input": "pose" not in contestant.options and "pose" in generator.bundle.manifest.capabilities,
        "metrics": summaries(exam, values) | distance(exam, seen),
        "by_pose": poses(exam, values),
        "seconds_per_image": seconds(generator, accepted, contestant.options),
    }


def differences(exam: Exam, judged: Judged, first: Judged) -> dict[str, Summary]:
    """Of every metric, picture by picture; intervals that leave out 0 are a difference."""
    (values, seen), (values_first, seen_first) = judged, first
    paired = {name: summary(values[name] - values_first[name], exam.people) for name in values}
    return paired | {"fd_judge_clip": distance_difference(seen.clip, seen_first.clip, exam.real, exam.people)}


def seconds(generator: Generator, accepted: Accepted, options: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles of single pictures of known people."""
    taken = []
    for trial, identity in [accepted[index % len(accepted)] for index in range(TIMED + 1)]:
        start = time.perf_counter()
        generator(identity, trial.prompt, seed=0, **options)
        taken.append(time.perf_counter() - start)
    low, median, high = np.percentile(taken[1:], (25, 50, 75)).round(4)
    return {"value": float(median), "quartiles": [float(low), float(high)]}


PROTOCOL = {
    "paired": "every row: the same references, prompts and noise; minus_first_row: picture by picture, of Frechet "
    "distances with the same draws of people and real pictures",
    "perceptual_judge_identity": "LPIPS' formula with judge_identity's features, equal weights, in the person's box",
}
