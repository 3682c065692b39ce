"""The data set on disk: made by several processes, resumable, the same whatever their number."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bolid_training.avatars.captions import vocabulary
from bolid_training.avatars.shards import SPLITS, Settings, Shard, plan, split_identities, write_shard

GENERATOR_VERSION = 5
CARD = "dataset.json"
_counter = None  # a multiprocessing.Value in worker processes


class OtherSettingsError(ValueError):
    """The folder holds a data set that other settings made."""


def write_dataset(
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    splits: Iterable[str] = SPLITS,
    progress: Callable[[int], None] = lambda pictures: None,
) -> dict:
    """Writes the shards that are missing and the card; returns the card.

    `progress` is called now and then with the number of pictures made so far. Raises `OtherSettingsError` if `out`
    holds a data set of other settings: its shards must not be mixed with these.
    """
    check_settings(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    _write_card(out, settings, complete=False)
    todo = missing(out, settings, splits)
    if workers <= 1:
        _write_here(todo, out, progress)
    else:
        _write_in_processes(todo, out, workers, progress)
    return _write_card(out, settings, complete=not missing(out, settings))


def missing(out: Path, settings: Settings, splits: Iterable[str] = SPLITS) -> list[Shard]:
    """Shards still to be made, in the order to make them."""
    return [shard for shard in plan(settings, splits) if not (out / shard.name).exists()]


def check_settings(out: Path, settings: Settings) -> None:
    """Raises `OtherSettingsError` unless `out` is new or was begun with the same settings and generator."""
    card = out / CARD
    if not card.exists():
        return
    found = json.loads(card.read_text())
    wanted = {"generator_version": GENERATOR_VERSION, "settings": asdict(settings)}
    if {name: found.get(name) for name in wanted} != wanted:
        raise OtherSettingsError(
            f"{out} holds a data set made with generator {found.get('generator_version')} and {found.get('settings')}, "
            f"not with generator {GENERATOR_VERSION} and {asdict(settings)}: choose another --out or the same settings"
        )


def _write_here(todo: list[Shard], out: Path, progress: Callable[[int], None]) -> None:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done)

    for shard in todo:
        write_shard(shard, out, advance)


def _write_in_processes(todo: list[Shard], out: Path, workers: int, progress: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with (
        _single_threaded(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(counter,)) as pool,
    ):
        running = {pool.submit(_work, shard, out) for shard in todo}
        try:
            while running:
                finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                progress(counter.value)
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside use one thread each: the processes are the parallelism."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _begin(counter) -> None:
    global _counter
    _counter = counter
    import torch

    torch.set_num_threads(1)


def _work(shard: Shard, out: Path) -> None:
    write_shard(shard, out, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


def _write_card(out: Path, settings: Settings, *, complete: bool) -> dict:
    identities = split_identities(settings)
    pictures = dict.fromkeys(SPLITS, 0)
    for shard in plan(settings):
        pictures[shard.split] += shard.pictures
    card = {
        "name": "BoLID synthetic avatars",
        "licence": "CC0-1.0",
        "generator_version": GENERATOR_VERSION,
        "settings": asdict(settings),
        "complete": complete,
        "splits": {
            split: {"identities": 0 if split == "empty" else len(identities[split]), "pictures": pictures[split]}
            for split in SPLITS
        },
        "vocabulary": vocabulary(),
    }
    temporary = out / f".{CARD}.tmp"
    temporary.write_text(json.dumps(card, indent=1) + "\n")
    temporary.replace(out / CARD)
    return card
