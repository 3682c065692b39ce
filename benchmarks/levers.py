"""What each way to do less work costs: time, and what the judges of `bolid-eval` say, compared picture by picture.

A lever is how a picture is sampled (steps, caching, guidance interval, sampler), by which library, and from which
bundle. Every lever makes the same pictures of the same people from the same seeds, and is compared with the first of
its group, which leaves nothing out. Times are of single pictures of a known person, one lever after another in turn.

    python benchmarks/levers.py --data runs/unseen --people 1200
    python benchmarks/levers.py --bundle engines/mine --lever caching=fast --lever backend=openvino
    python benchmarks/levers.py --only "four steps" --lever caching=fast     # this row and the group's base again

The embedded model has no guidance, so there is a second group: the model that it was distilled from, whose checkpoint
is in the history.

    git archive f167689 training/weights/avatar | tar -x -C runs/guided
    bolid-export --model runs/guided/training/weights/avatar --precision fp32 -o engines/avatar-guided
    bolid-export --model runs/guided/training/weights/avatar --precision int8 -o engines/avatar-guided-int8
    bolid-export --precision int8 -o engines/avatar-int8
"""

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from lever_groups import GROUPS, Group, Lever, Place, lever_of
from numpy.typing import NDArray
from tqdm import tqdm

from bolid_sdk import Generator, Identity
from bolid_sdk.backends import BACKENDS
from bolid_sdk.errors import BolidError
from bolid_sdk.sampling import ResolvedSampling
from bolid_training.data import People, load_people
from bolid_training.evaluate import run
from bolid_training.evaluate.drawn import generate
from bolid_training.evaluate.exam import Exam, look, scores, set_exam
from bolid_training.evaluate.gate import LIMITS, verdict
from bolid_training.evaluate.intervals import summary
from bolid_training.evaluate.known import identify
from bolid_training.evaluate.protocol import Trial, trials
from bolid_training.judges.panel import Judges, load_judges

ROOT = Path(__file__).parents[1]
JUDGES = ROOT / "training" / "weights" / "judges"
RESULTS = ROOT / "benchmarks" / "results" / "levers.json"

Identified = list[tuple[Trial, Identity]]
Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a lever made of the exam: `pictures` [N, H, W, 3], and the judges' `values` [N] of every metric."""

    pictures: NDArray[np.uint8]
    values: Values


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every group is asked."""

    people: People
    judges: Judges
    trials: list[Trial]
    rounds: int
    seed: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", type=click.Choice([group.name for group in GROUPS]), multiple=True, help="[default: all groups]"
)
@click.option("--bundle", type=click.Path(path_type=Path), help="A group of your own instead.")
@click.option("--base", default="", help="Its base, as 'backend=onnxruntime steps=20'.")
@click.option(
    "--lever",
    "levers",
    multiple=True,
    help="One of its levers, as 'steps=8 caching=fast'; without --bundle, of --only's group.",
)
@click.option("--data", type=click.Path(path_type=Path), default=Path("runs/unseen"), show_default=True)
@click.option("--split", default="test", show_default=True)
@click.option("--people", "count", type=click.IntRange(2), default=200, show_default=True)
@click.option(
    "--pictures-per-person",
    "each",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="More make intervals narrower, as long as people differ less than their pictures.",
)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Timed pictures of each lever.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    only: Sequence[str],
    bundle: Path | None,
    base: str,
    levers: Sequence[str],
    data: Path,
    split: str,
    count: int,
    each: int,
    rounds: int,
    seed: int,
    out: Path,
) -> None:
    """Measure every lever of every group, and write one JSON file, in which rows that were not measured are kept."""
    groups = asked_groups(only, levers)
    if bundle:
        groups = [Group(name=bundle.name, base=f"bundle={bundle.absolute()} {base}", levers=tuple(levers))]
    rows, setups = [], []
    try:
        people = load_people(data, split)
        asked = Asked(
            people=people,
            judges=load_judges(JUDGES),
            trials=trials(people, count, seed, each),
            rounds=rounds,
            seed=seed,
        )
        for group in groups:
            found = list(usable(group))
            if not found or found[0].text:
                click.echo(f"{group.name}: left out, for its base cannot be run", err=True)
                continue
            measured, setup = measure(group, found, asked)
            rows += measured
            setups.append(setup)
    except (FileNotFoundError, ValueError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    if not rows:
        raise click.UsageError("no group can be run: nothing is written")
    bundles = {name: about for setup in setups for name, about in setup.pop("bundles").items()}
    setup = {**setups[0], "split": split, "people_asked": count, "bundles": bundles}
    document = with_other_rows({"setup": setup, "rows": rows}, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2) + "\n")
    click.echo("\n".join(line(entry) for entry in rows))


def asked_groups(only: Sequence[str], levers: Sequence[str]) -> list[Group]:
    """Those of these names, of all names if there are none, with these levers, or all. Raises UsageError."""
    groups = [group for group in GROUPS if not only or group.name in only]
    if not levers:
        return groups
    unknown = set(levers).difference(*(group.levers for group in groups))
    if unknown:
        raise click.UsageError(f"no group asked for has the lever {', '.join(map(repr, sorted(unknown)))}")
    some = [replace(group, levers=tuple(lever for lever in group.levers if lever in levers)) for group in groups]
    return [group for group in some if group.levers]


def with_other_rows(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """`document`, and what the file has of levers that were not measured this time, in the order of `GROUPS`.

    A row holds its differences from its own run's base, so that rows of several runs may stand side by side.
    """
    known = json.loads(path.read_text()) if path.exists() else {"setup": {"bundles": {}}, "rows": []}
    order = {(group.name, lever): index for index, (group, lever) in enumerate(listed())}
    names = {group.name for group in GROUPS}
    kept = [row for row in known["rows"] if (row["group"], row["lever"]) in order or row["group"] not in names]
    rows = {(row["group"], row["lever"]): row for row in (*kept, *document["rows"])}
    bundles = {**known["setup"]["bundles"], **document["setup"]["bundles"]}
    return {
        "setup": {**document["setup"], "bundles": bundles},
        "rows": [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))],
    }


def listed() -> Iterator[tuple[Group, str]]:
    return ((group, lever) for group in GROUPS for lever in ("", *group.levers))


def usable(group: Group) -> Iterator[Lever]:
    """The group's base and levers, without those whose bundle or library is not here, which are named."""
    installed = {entry.name for entry in BACKENDS if entry.installed}
    for text in ("", *group.levers):
        lever = lever_of(group.base, text)
        if not (lever.bundle / "manifest.json").is_file():
            click.echo(f"{group.name}: {text or 'base'} is left out, there is no bundle {lever.bundle}", err=True)
        elif lever.backend not in installed:
            click.echo(f"{group.name}: {text or 'base'} is left out, {lever.backend} is not installed", err=True)
        else:
            yield lever


def measure(group: Group, levers: Sequence[Lever], asked: Asked) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each lever, and what a reader needs to repeat them."""
    generators = {place: Generator(place[0], backend=place[1]) for place in dict.fromkeys(o.place for o in levers)}
    known = identify_with_all(generators, asked.people, asked.trials)
    seconds = timed(generators, levers, known, asked.rounds)
    exam = set_exam(asked.judges, asked.people, known[levers[0].place])
    original = look(asked.judges, exam, exam.references)
    judged = []
    for lever in tqdm(levers, desc=group.name, dynamic_ncols=True):
        pictures = generate(generators[lever.place], known[lever.place], asked.seed, sampling=lever.sampling)
        values = scores(exam, look(asked.judges, exam, pictures), original, exam.prompts)
        judged.append(Judged(pictures=pictures, values=values))
    rows = [
        row(group, lever, generators[lever.place], exam, (found, judged[0]), (taken, seconds[0]))
        for lever, found, taken in zip(levers, judged, seconds, strict=True)
    ]
    setup = run.setup(generators[levers[0].place], asked.judges, asked.seed)
    for varying in ("bundle", "precision", "sampling", "backend"):
        del setup[varying]
    return rows, {**setup, "limits": {n: asdict(limit) for n, limit in LIMITS.items()}, "bundles": about(generators)}


def about(generators: Mapping[Place, Generator]) -> dict[str, Any]:
    """Each bundle by name, and the libraries that ran it."""
    found: dict[str, Any] = {}
    for (path, backend), generator in generators.items():
        entry = found.setdefault(path.name, {"digest": generator.bundle.digest, "backends": {}})
        entry["backends"][backend] = generator.backend
    return found


def identify_with_all(
    generators: Mapping[Place, Generator], people: People, asked: list[Trial]
) -> dict[Place, Identified]:
    """Everybody whom every bundle accepts, by each bundle's own encoders."""
    found = {place: identify(generator, people, asked) for place, generator in generators.items()}
    common = set.intersection(*({trial.index for trial, _ in accepted} for accepted in found.values()))
    return {place: [pair for pair in accepted if pair[0].index in common] for place, accepted in found.items()}


def timed(
    generators: Mapping[Place, Generator], levers: Sequence[Lever], known: Mapping[Place, Identified], rounds: int
) -> list[list[float]]:
    """Seconds of `rounds` pictures of each lever, taken in turn; one picture of each before that is not counted."""
    seconds: list[list[float]] = [[] for _ in levers]
    for number in tqdm(range(rounds + 1), desc="rounds", dynamic_ncols=True):
        for lever, taken in zip(levers, seconds, strict=True):
            people = known[lever.place]
            trial, identity = people[number % len(people)]
            start = time.perf_counter()
            generators[lever.place](identity, trial.prompt, seed=number, sampling=lever.sampling)
            taken.append(time.perf_counter() - start)
    return [taken[1:] for taken in seconds]


def row(
    group: Group,
    lever: Lever,
    generator: Generator,
    exam: Exam,
    judged: tuple[Judged, Judged],
    seconds: tuple[list[float], list[float]],
) -> dict[str, Any]:
    """Everything about a lever; of `judged` and `seconds` the second is the base's."""
    (found, plain), (taken, before) = judged, seconds
    manifest = generator.bundle.manifest
    compared = verdict(found.values, plain.values, exam.people)
    return {
        "group": group.name,
        "lever": lever.text,
        "bundle": lever.bundle.name,
        "precision": manifest.precision,
        "backend": lever.backend,
        **sampled(lever.sampling.resolve(manifest.sampling)),
        "pictures": len(exam.trials),
        "seconds": spread(taken),
        "speed_up": spread([old / new for old, new in zip(before, taken, strict=True)]),
        "psnr": None if found is plain else summary(psnr(found.pictures, plain.pictures), exam.people),
        "metrics": run.summaries(exam, found.values),
        "differences": {name: metric["difference"] for name, metric in compared["metrics"].items()},
        "gates": compared["gates"],
        "passed": compared["passed"],
    }


def sampled(resolved: ResolvedSampling) -> dict[str, Any]:
    """`plan`: of each step, whether it is full, and its branches."""
    return {"sampling": asdict(resolved), "plan": [[step.full, step.branches] for step in resolved.plan()]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, high = np.percentile(values, (25, 75))
    return {"median": round(statistics.median(values), 4), "q1": round(float(low), 4), "q3": round(float(high), 4)}


def psnr(pictures: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """dB [N]; 100 for equal pictures."""
    errors = np.square(pictures.astype(np.float64) - others).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(errors, 255**2 * 1e-10))


def line(entry: dict[str, Any]) -> str:
    """A row for the terminal."""
    changes = ", ".join(
        f"{name} {entry['differences'][name]['value']:+.4f} {entry['differences'][name]['ci95']}" for name in LIMITS
    )
    name = f"{entry['group']}: {entry['lever'] or 'base'}"
    return f"{name}: {entry['seconds']['median']:.3f} s, {entry['speed_up']['median']:.2f} x; {changes}; {state(entry)}"


def state(entry: dict[str, Any]) -> str:
    """passed, failed, or open: too few pictures to tell."""
    states = [gate["state"].partition(":")[0] for gate in entry["gates"].values()]
    return next((worst for worst in ("failed", "open") if worst in states), "passed")


if __name__ == "__main__":
    main()
