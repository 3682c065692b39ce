"""`bolid-train fit`: the adapter on a model and pictures of the user's own. PyTorch is imported when it is needed."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from bolid_sdk.errors import BolidError, InputError

if TYPE_CHECKING:
    from bolid_training.loop import LoopOptions
    from bolid_training.model.base import Base
    from bolid_training.stages.fit import FitOptions
    from bolid_training.userdata.entries import Entry
    from bolid_training.userdata.poses import PoseFinder
    from bolid_training.userdata.reading import Chosen, Look

PRECISIONS = ("no", "bf16", "fp16")
SETTINGS = "settings.json"
PATH = click.Path(path_type=Path)


@click.command()
@click.option("--model", type=PATH, required=True, help="A diffusers folder of Stable Diffusion 1.5's or SDXL's shape.")
@click.option("--data", type=PATH, required=True, help="Captioned folders of people, or webdataset shards.")
@click.option("--image-encoder", type=PATH, help="Folder of a CLIP vision model. [default: MODEL/image_encoder]")
@click.option("--pose-estimator", type=PATH, help="A ViTPose of 12 keypoints. [default: the model's, the avatar's]")
@click.option("--pose-threshold", type=click.FloatRange(0, 1), help="Below this confidence nobody is in a picture.")
@click.option("--out", type=PATH, help="Everything that is written. [default: runs/fit/MODEL]")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Of one process.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches to one step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="[default: bf16 where it is fast, else no]")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time.")
@click.option("--single", is_flag=True, help="Somebody's only picture is its own reference (teaches to copy).")
@click.option("--validate-every", type=click.IntRange(1), default=500, show_default=True, help="Steps.")
@click.option("--seed", default=0, show_default=True)
@click.option("--complete", is_flag=True, help="Also write OUT/complete, one folder with the model and the adapter.")
@click.option("--dry-run", is_flag=True, help="Look at data and memory, write nothing.")
def fit(**given: Any) -> None:
    """Trains the BoLID adapter on your model with your pictures; an interrupted run goes on.

    \b
      people/anna/1.jpg  people/anna/1.txt     a folder for each person, a caption for each picture
      people/anna/2.jpg  people/anna/2.txt
      bolid-train fit --model stable-diffusion-v1-5 --image-encoder clip-vit-h --data people --dry-run

    Keypoints are found in pictures that come without. Damaged pictures, pictures of nobody or of several people are
    left out and listed in OUT/data.json. The result is OUT/model, a folder for `bolid-export --adapter`.

    \b
      torchrun --nproc-per-node 2 -m bolid_training fit …      several GPUs, or accelerate launch
    """
    try:
        run(FitRequest(**given))
    except BolidError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.UsageError(f"{error}; the run can be continued by the same command") from error


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """The command's options as they were given."""

    model: Path
    data: Path
    image_encoder: Path | None
    pose_estimator: Path | None
    pose_threshold: float | None
    out: Path | None
    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    precision: str | None
    gradient_checkpointing: bool
    single: bool
    validate_every: int
    seed: int
    complete: bool
    dry_run: bool

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "fit" / self.model.resolve().name

    def fit_options(self) -> "FitOptions":
        """Raises InputError for a precision that this machine lacks."""
        from bolid_training.data import process_state
        from bolid_training.precision import fastest_precision
        from bolid_training.stages.fit import FitOptions

        device = process_state(gpu=True).device.type
        if self.precision == "fp16" and device == "cpu" and not self.dry_run:
            raise InputError("--precision fp16 needs a GPU; on this machine give bf16 or no")
        precision = self.precision or fastest_precision(device)
        return FitOptions(mixed_precision=precision, gradient_checkpointing=self.gradient_checkpointing)

    def loop_options(self, mixed_precision: str) -> "LoopOptions":
        from bolid_training.loop import LoopOptions

        return LoopOptions(
            out=self.folder,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            learning_rate=self.learning_rate,
            warmup=max(1, min(100, self.steps // 10)),
            mixed_precision=mixed_precision,
            validate_every=self.validate_every,
            seed=self.seed,
        )


def run(request: FitRequest) -> None:
    """Raises BolidError for what the user can mend."""
    import diffusers
    import transformers

    from bolid_training.data import process_state
    from bolid_training.loop import NotFiniteError, train
    from bolid_training.model.base import open_base
    from bolid_training.userdata.poses import open_pose_finder
    from bolid_training.userdata.reading import choose, find_entries

    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = request.fit_options()
    base = open_base(request.model, request.image_encoder)
    entries, skipped = find_entries(request.data)
    finder = open_pose_finder(request.model, request.pose_estimator, request.pose_threshold)
    settings = decisive_settings(request, base, entries, finder)
    if not request.dry_run:
        check_settings(request.folder, settings)
    chosen = choose(entries, looks_at(entries, finder, request), skipped, single=request.single)
    main = process_state().is_main_process
    if main:
        report(request, base, chosen, options)
    if request.dry_run:
        return
    check_space(request.folder, base, chosen)
    if main:
        (request.folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    try:
        train(
            build_fit_task(base, chosen, request.folder / "cache", options),
            request.loop_options(options.mixed_precision),
        )
    except NotFiniteError as error:
        raise click.ClickException(str(error)) from error
    if main and request.complete:
        from bolid_training.userdata.complete import write_complete

        write_complete(base, request.folder / "model", request.pose_estimator, request.folder / "complete")


def build_fit_task(base: "Base", chosen: "Chosen", cache: Path, options: "FitOptions") -> Any:
    """The loop's task; what is still missing in `cache` is computed."""
    import torch

    from bolid_training.stages.fit import FitTask
    from bolid_training.userdata.arrays import prepare

    torch.manual_seed(0)
    return FitTask(base, prepare(base, chosen, cache), options)


def looks_at(entries: "list[Entry]", finder: "PoseFinder", request: FitRequest) -> "list[Look]":
    """What is seen in each picture; kept in OUT/cache, unless nothing may be written."""
    import numpy as np

    from bolid_training.data import cached_chunks
    from bolid_training.userdata.arrays import CHUNK
    from bolid_training.userdata.reading import Look, look

    if request.dry_run:
        show = partial(tqdm, desc="pictures", dynamic_ncols=True)
        return [look(entry, finder) for entry in show(entries)]
    key = looks_key(entries, finder)

    def see(number: int) -> np.ndarray:
        return np.array([look(e, finder).to_json() for e in entries[number * CHUNK : (number + 1) * CHUNK]])

    chunks = cached_chunks(request.folder / "cache" / f"looks-{key}", see, -(-len(entries) // CHUNK))
    return [Look.from_json(str(text)) for chunk in chunks for text in chunk]


def looks_key(entries: "Iterable[Entry]", finder: "PoseFinder") -> str:
    content = [finder.name, finder.threshold, *((e.picture.stamp, str(e.keypoints)) for e in entries)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def decisive_settings(
    request: FitRequest, base: "Base", entries: "Iterable[Entry]", finder: "PoseFinder"
) -> dict[str, Any]:
    """By the options' names, what cannot change when a run goes on. Of the data, what is in them, wherever they lie."""
    pictures = [(e.name, e.identity, e.captions, e.style, str(e.keypoints), e.picture.stamp[1:]) for e in entries]
    digest = hashlib.sha256(json.dumps(pictures).encode()).hexdigest()[:16]
    poses = request.pose_estimator
    return {
        "--model": str(request.model.resolve()),
        "--data": f"{len(pictures)} captioned pictures, digest {digest}",
        "--image-encoder": str(base.image_encoder_folder.resolve()),
        "--pose-estimator": None if poses is None else str(poses.resolve()),
        "--pose-threshold": finder.threshold,
        "--single": request.single,
        "--seed": request.seed,
    }


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises InputError when there is a checkpoint in `folder` of a run with other settings."""
    file = folder / SETTINGS
    if not file.is_file() or not list(folder.glob("checkpoints/*/complete")):
        return
    found = json.loads(file.read_text())
    differ = [f"{name} {now} (was {found.get(name)})" for name, now in settings.items() if found.get(name) != now]
    if differ:
        raise InputError(
            f"{folder} holds a run of other settings: {', '.join(differ)}; give another --out for a new run, or go on "
            "with the same settings"
        )


def report(request: FitRequest, base: "Base", chosen: "Chosen", options: "FitOptions") -> None:
    """Prints what will be trained on what; a dry run with estimates. Otherwise it is also written to OUT/data.json."""
    content: dict[str, Any] = {"model": str(request.model), "size": base.size, **chosen.report()}
    if base.few_step:
        content["note"] = "the model's few-step LoRA is left out: the adapter is trained for many steps with guidance"
    if not request.dry_run:
        request.folder.mkdir(parents=True, exist_ok=True)
        (request.folder / "data.json").write_text(json.dumps(content, indent=2) + "\n")
    else:
        from bolid_training.memory_estimate import estimate_encoders, estimate_memory
        from bolid_training.userdata.arrays import bytes_on_disk

        memory, encoders = estimate_memory(base, options, request.batch_size), estimate_encoders(base)
        disk = bytes_on_disk(base, len(chosen.entries), content["captions"])
        content["precision"] = options.mixed_precision
        content["memory_gigabytes"] = {name: round(value, 3) for name, value in memory.items()}
        content["memory_is"] = "a process': bytes of a step on fake tensors, without libraries and allocator's waste"
        content["encoders_gigabytes"] = {name: round(value, 3) for name, value in encoders.items()}
        content["encoders_are"] = "in memory one after the other, before the training"
        content["cache_gigabytes"] = round(disk / 1e9, 3)
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def check_space(folder: Path, base: "Base", chosen: "Chosen") -> None:
    """Raises InputError when the cache would not fit on the disk."""
    from bolid_training.userdata.arrays import bytes_on_disk, data_key

    if (folder / "cache" / data_key(base, chosen)).is_dir():
        return  # some of it is there already
    needed = bytes_on_disk(base, len(chosen.entries), chosen.report()["captions"])
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB left and what is computed of {len(chosen.entries)} pictures takes "
            f"{needed / 1e9:.1f} GB; give another place with --out, or fewer pictures"
        )
