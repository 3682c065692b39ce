"""Whether a process that makes pictures for hours stays as it was: memory and time of a thousand of them in a row.

Several callers share one generator, as a server's threads do; each picture is compared with the same one made alone.

python benchmarks/steadiness.py --pictures 1000 --callers 8
"""

import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bolid_sdk import Generator, Identity, Sampling
from bolid_training.evaluate.provenance import commit, cpu_name

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "examples" / "ref.png"
RESULTS = ROOT / "benchmarks" / "results" / "steadiness.json"
STATUS = Path("/proc/self/statm")
PLACES = ("on a beach", "in a park", "on a red sofa", "at night", "in an office")
DIFFERENT = 40
"""So many different pictures take turns; all of them are made alone first, which is also the warm-up."""
FLAT = 0.02


@dataclass(frozen=True, kw_only=True)
class Moment:
    """After a picture."""

    seconds: float
    megabytes: float
    equal: bool


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead of the embedded one.")
@click.option("--backend", help="Library that runs the graphs. [default: as the SDK chooses]")
@click.option("--pictures", "count", type=click.IntRange(20), default=1000, show_default=True)
@click.option("--callers", type=click.IntRange(1), default=8, show_default=True, help="Threads that ask at once.")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
@click.option("--caching", default="off", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    bundle: Path | None, backend: str | None, count: int, callers: int, steps: int, caching: Any, out: Path
) -> None:
    """Make many pictures, watch the memory, write JSON. Exit code 1 when it grows or a picture differs."""
    generator, sampling = Generator(bundle, backend=backend), Sampling(steps=steps, caching=caching)
    person = generator.identify(REFERENCE)
    alone = [picture(generator, person, number, sampling) for number in range(DIFFERENT)]

    def make(number: int) -> Moment:
        start = time.perf_counter()
        found = picture(generator, person, number % DIFFERENT, sampling)
        equal = np.array_equal(found, alone[number % DIFFERENT])
        return Moment(seconds=time.perf_counter() - start, megabytes=resident() / 1e6, equal=equal)

    with ThreadPoolExecutor(callers) as pool:
        moments = list(tqdm(pool.map(make, range(count)), total=count, dynamic_ncols=True))
    result = verdict(moments)
    out.parent.mkdir(parents=True, exist_ok=True)
    setup = {"pictures": count, "callers": callers, "steps": steps, "caching": caching, **environment(generator)}
    out.write_text(json.dumps({"setup": setup, **result}, indent=2) + "\n")
    click.echo(json.dumps({name: value for name, value in result.items() if name != "megabytes"}))
    if not (result["flat"] and result["all_equal"]):
        raise SystemExit(1)


def picture(generator: Generator, person: Identity, number: int, sampling: Sampling) -> NDArray[np.uint8]:
    prompt = f"standing {PLACES[number % len(PLACES)]}, view {number}"
    return np.asarray(generator(person, prompt, seed=number, sampling=sampling).image)


def resident() -> int:
    """Bytes of memory in use."""
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def verdict(moments: list[Moment]) -> dict[str, Any]:
    """Memory and time in the second tenth (the first still grows to its level) and in the last."""
    tenth = len(moments) // 10
    early, late = moments[tenth : 2 * tenth], moments[-tenth:]
    before, after = (statistics.median(moment.megabytes for moment in part) for part in (early, late))
    return {
        "megabytes_early": round(before, 1),
        "megabytes_late": round(after, 1),
        "growth": round(after / before - 1, 4),
        "flat": abs(after / before - 1) <= FLAT,
        "seconds_early": round(statistics.median(moment.seconds for moment in early), 4),
        "seconds_late": round(statistics.median(moment.seconds for moment in late), 4),
        "all_equal": all(moment.equal for moment in moments),
        "megabytes": [round(moment.megabytes, 1) for moment in moments[:: max(1, len(moments) // 100)]],
    }


def environment(generator: Generator) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "machine": cpu_name(),
        "commit": commit(),
        "backend": generator.backend,
        "bundle": generator.bundle.digest,
    }


if __name__ == "__main__":
    main()
