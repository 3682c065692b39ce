"""What each way to do less work costs: time, and what the judges of `bolid-eval` say, compared picture by picture.

A lever is how a picture is sampled (steps, caching, guidance interval, sampler) and by which bundle. Every lever makes
the same pictures of the same people from the same seeds; the first bundle at its own settings, nothing left out, is
what the others are compared with. Times are of single pictures of a known person, one lever after another in turn.

python benchmarks/levers.py --data runs/unseen --people 200
python benchmarks/levers.py --bundle engines/avatar --bundle engines/avatar-int8 --lever "" --lever caching=fast
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bolid_sdk import Generator, Identity, Sampling
from bolid_sdk.errors import BolidError
from bolid_sdk.sampling import ResolvedSampling
from bolid_training.data import load_people
from bolid_training.evaluate import run
from bolid_training.evaluate.exam import Exam, look, scores, set_exam
from bolid_training.evaluate.intervals import Summary, summary
from bolid_training.evaluate.pictures import generate, identify
from bolid_training.evaluate.protocol import Trial, trials
from bolid_training.judges.panel import Judges, load_judges

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "engines" / "avatar"
JUDGES = ROOT / "training" / "weights" / "judges"
RESULTS = ROOT / "benchmarks" / "results" / "levers.json"

LEVERS = (
    "",
    "caching=balanced",
    "caching=fast",
    "steps=8",
    "steps=6",
    "steps=8 caching=balanced",
    "steps=20 caching=fast",
    "guidance_interval=0:0.75",
    "guidance_interval=0.1:0.75",
    "guidance_interval=0.25:0.75",
    "caching=balanced guidance_interval=0:0.75",
    "sampler=dpm++2m steps=8",
    "sampler=dpm++2m steps=8 caching=balanced",
)
"""Options of Sampling; the empty one changes nothing."""

GATES = {"id_similarity": ("absolute", 0.01), "pose_pck10": ("absolute", 0.01), "clip_score": ("relative", 0.01)}
"""How much of a metric a lever may cost to be on by default."""

Identified = list[tuple[Trial, Identity]]
Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A bundle by name, and what differs from its own sampling, as in LEVERS."""

    bundle: str
    options: str

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self.options)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a lever made of the exam: `pictures` [N, H, W, 3], and the judges' `values` [N] of every metric."""

    pictures: NDArray[np.uint8]
    values: Values


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundles", type=click.Path(path_type=Path), multiple=True, default=[EMBEDDED])
@click.option("--lever", "levers", multiple=True, default=LEVERS, help="As 'steps=8 caching=fast'; '' changes nothing.")
@click.option("--backend", help="Library that runs the graphs. [default: as the SDK chooses]")
@click.option("--data", type=click.Path(path_type=Path), default=Path("runs/unseen"), show_default=True)
@click.option("--split", default="test", show_default=True)
@click.option("--people", "count", type=click.IntRange(2), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Timed pictures of each lever.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    bundles: Sequence[Path],
    levers: Sequence[str],
    backend: str | None,
    data: Path,
    split: str,
    count: int,
    rounds: int,
    seed: int,
    out: Path,
) -> None:
    """Measure every lever with every bundle, and write one JSON file."""
    try:
        people, judges = load_people(data, split), load_judges(JUDGES)
        generators = {path.name: Generator(path, backend=backend) for path in bundles}
        asked = [Lever(bundle=name, options=text) for name in generators for text in ("", *filter(None, levers))]
        known = identify_with_all(generators, people, trials(people, count, seed))
        seconds = timed(generators, asked, known, rounds)
        exam = set_exam(judges, people, known[asked[0].bundle])
        judged = [judge(lever, generators, known, judges, exam, seed) for lever in tqdm(asked, desc="levers")]
    except (FileNotFoundError, ValueError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    manifests = [generators[lever.bundle].bundle.manifest for lever in asked]
    rows = [
        row(lever, manifest.sampling, exam, (found, judged[0]), (taken, seconds[0]))
        for lever, manifest, found, taken in zip(asked, manifests, judged, seconds, strict=True)
    ]
    digests = {name: generator.bundle.digest for name, generator in generators.items()}
    setup = run.setup(generators[asked[0].bundle], judges, seed)
    setup |= {"split": split, "pictures": len(exam.trials), "bundles": digests, "gates": GATES}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"setup": setup, "rows": rows}, indent=2) + "\n")
    click.echo("\n".join(line(entry) for entry in rows))


def sampling_of(options: str) -> Sampling:
    """Of "steps=8 guidance_interval=0:0.75". Raises ValueError for what is no such text."""
    kinds: dict[str, Callable[[str], Any]] = {
        "steps": int,
        "guidance": float,
        "sampler": str,
        "spacing": str,
        "eta": float,
        "caching": str,
        "guidance_interval": lambda text: tuple(float(end) for end in text.split(":")),
    }
    pairs = [part.partition("=") for part in options.split()]
    unknown = [name for name, _, _ in pairs if name not in kinds]
    if unknown:
        raise ValueError(f"{options!r} names {', '.join(unknown)}; expected some of {', '.join(kinds)}")
    return Sampling(**{name: kinds[name](value) for name, _, value in pairs})


def identify_with_all(generators: dict[str, Generator], people: Any, asked: list[Trial]) -> dict[str, Identified]:
    """Everybody whom every bundle accepts, by each bundle's own encoders."""
    found = {name: identify(generator, people, asked) for name, generator in generators.items()}
    common = set.intersection(*({trial.index for trial, _ in accepted} for accepted in found.values()))
    return {name: [pair for pair in accepted if pair[0].index in common] for name, accepted in found.items()}


def timed(
    generators: dict[str, Generator], levers: Sequence[Lever], known: dict[str, Identified], rounds: int
) -> list[list[float]]:
    """Seconds of `rounds` pictures of each lever, taken in turn; one picture of each before that is not counted."""
    seconds: list[list[float]] = [[] for _ in levers]
    for number in tqdm(range(rounds + 1), desc="rounds", dynamic_ncols=True):
        for lever, taken in zip(levers, seconds, strict=True):
            people = known[lever.bundle]
            trial, identity = people[number % len(people)]
            start = time.perf_counter()
            generators[lever.bundle](identity, trial.prompt, seed=number, sampling=lever.sampling)
            taken.append(time.perf_counter() - start)
    return [taken[1:] for taken in seconds]


def judge(
    lever: Lever,
    generators: dict[str, Generator],
    known: dict[str, Identified],
    judges: Judges,
    exam: Exam,
    seed: int,
) -> Judged:
    """The lever's pictures of everybody, judged."""
    pictures = generate(generators[lever.bundle], known[lever.bundle], seed, sampling=lever.sampling)
    original = look(judges, exam, exam.references)
    return Judged(pictures=pictures, values=scores(exam, look(judges, exam, pictures), original, exam.prompts))


def row(
    lever: Lever,
    defaults: ResolvedSampling,
    exam: Exam,
    judged: tuple[Judged, Judged],
    seconds: tuple[list[float], list[float]],
) -> dict[str, Any]:
    """Everything about a lever; of `judged` and `seconds` the second is the unaccelerated setting's."""
    (found, plain), (taken, before) = judged, seconds
    resolved = lever.sampling.resolve(defaults)
    different = differences(found.values, plain.values, exam.people)
    return {
        "bundle": lever.bundle,
        "lever": lever.options,
        "sampling": asdict(resolved),
        "full_steps": sum(step.full for step in resolved.plan()),
        "branches": sum(step.branches for step in resolved.plan()),
        "seconds": spread(taken),
        "speed_up": spread([old / new for old, new in zip(before, taken, strict=True)]),
        "psnr": None if found is plain else summary(psnr(found.pictures, plain.pictures), exam.people),
        "metrics": run.summaries(exam, found.values),
        "differences": different,
        **gates(different, plain.values),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, high = np.percentile(values, (25, 75))
    return {"median": round(statistics.median(values), 4), "q1": round(float(low), 4), "q3": round(float(high), 4)}


def psnr(pictures: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """dB [N]; 100 for equal pictures."""
    errors = np.square(pictures.astype(np.float64) - others).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(errors, 255**2 * 1e-10))


def differences(values: Values, plain: Values, people: NDArray[np.int64]) -> dict[str, Summary]:
    """Mean of each metric's change from picture to picture, and the interval of that mean: people are drawn once for
    both sides, so what they have in common cancels."""
    return {name: summary(found - plain[name], people) for name, found in values.items()}


def gates(different: dict[str, Summary], plain: Values) -> dict[str, bool]:
    """`passed`: no gated metric falls by more than GATES; `certain`: nor does it at the interval's worse end."""
    limits = {
        name: limit * (abs(float(np.nanmean(plain[name]))) if kind == "relative" else 1.0)
        for name, (kind, limit) in GATES.items()
    }
    return {
        "passed": all(different[name]["value"] >= -limit for name, limit in limits.items()),
        "certain": all(different[name]["ci95"][0] >= -limit for name, limit in limits.items()),
    }


def line(entry: dict[str, Any]) -> str:
    """A row for the terminal."""
    changes = ", ".join(
        f"{name} {entry['differences'][name]['value']:+.4f} {entry['differences'][name]['ci95']}" for name in GATES
    )
    verdict = "certain" if entry["certain"] else "passed" if entry["passed"] else "failed"
    name = f"{entry['bundle']} {entry['lever'] or 'unaccelerated'}"
    return f"{name}: {entry['seconds']['median']:.3f} s, {entry['speed_up']['median']:.2f} x; {changes}; {verdict}"


if __name__ == "__main__":
    main()
