"""`bolid-export`: a checkpoint in, a verified bundle out. PyTorch is imported after the arguments are understood."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from tqdm import tqdm

from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import BolidError, InputError, OutputError

if TYPE_CHECKING:
    from bolid_export.engines.target import EngineRequest, EngineTarget
    from bolid_export.pipeline import Target
    from bolid_export.precision import Precision
    from bolid_export.sources import Source
    from bolid_sdk.bundle import Bundle

BACKENDS = ("onnx", "openvino", "tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
MAX_LORA_RANK = 1024


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says, as it says it."""

    model: Path | None
    adapters: tuple[Path, ...]
    loras: tuple[str, ...]
    hot_lora: int | None
    vae: Path | None
    image_encoder: Path | None
    prediction_type: str | None
    config: Path | None
    precision: str
    backend: str
    compute_capability: str | None
    version_compatible: bool
    hardware_compatible: bool
    refit: bool
    batch: str | None
    size: str | None
    output: Path | None
    licence: str | None
    gate: str | None
    force: bool
    no_cache: bool
    ignore_memory: bool
    dry_run: bool
    as_json: bool


EXAMPLES = """\b
Examples:
  bolid-export --precision fp16                          the avatar model, into engines/avatar-fp16
  bolid-export --precision int8 --gate "bolid-eval --bundle {} --against engines/avatar"     only if people stay as good
  bolid-export --model my-model --dry-run                what would be written, and where
  bolid-export --model my-model --adapter anna.safetensors -o engines/anna
  bolid-export --model dreams.safetensors --adapter ip-adapter-plus_sd15.bin --image-encoder models/image_encoder
  bolid-export --model my-sdxl --adapter InstantID/ip-adapter.bin       with InstantID/ControlNetModel beside it
  bolid-export --model my-sdxl --adapter pulid_v1.1.safetensors
  bolid-export --model my-model --lora style.safetensors:0.7 --vae taesd
  bolid-export --model my-model --hot-lora 128           requests bring LoRAs: bolid-infer ... --lora FILE:WEIGHT
  bolid-export --backend openvino --precision int8       verified by OpenVINO too, and compiled for the first start
  bolid-export --backend tensorrt-rtx --compute-capability 8.9,12.0     engines for RTX 40 and 50, built without a GPU
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A diffusers folder or one .safetensors file, of SD1.5 or SDXL. [default: the avatar model]",
)
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    help="BoLID's, an IP-Adapter, InstantID's or PuLID's, told by its keys; in place of the model's own of that kind. "
    "A folder with all of BoLID's, as `bolid-train fit` writes it, is one, too. "
    "On a model without an identity the first IP-Adapter becomes the identity, another one the image prompt. "
    "InstantID's ControlNetModel folder is found beside ip-adapter.bin, or named with another --adapter.",
)
@click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="Added to the weights now, not at run time."
)
@click.option(
    "--hot-lora",
    type=int,
    metavar="RANK",
    help="Let requests bring LoRAs, of this rank at most in sum (128 is plenty): no weight needs another export.",
)
@click.option(
    "--vae", type=click.Path(path_type=Path), help="In place of the model's: a folder or a file, also TAESD's."
)
@click.option(
    "--image-encoder", type=click.Path(path_type=Path), help="The folder of CLIP's vision model that an adapter reads."
)
@click.option(
    "--prediction-type",
    help="epsilon or v_prediction, where the model does not say. [default: its scheduler's, or what a file's keys say]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A diffusers folder with the configuration, tokenizers and scheduler of a single file, such as a Turbo's or "
    "Lightning's, whose weights look like the base's. [default: SD1.5's or SDXL's]",
)
@click.option(
    "--precision", default="fp16", show_default=True, help="fp16 for GPUs; fp32 is faster on CPUs; int8 for OpenVINO."
)
@click.option(
    "--backend",
    default="onnx",
    show_default=True,
    help="onnx runs everywhere; openvino verifies the graphs on OpenVINO too, and compiles them into this machine's "
    "cache; tensorrt-rtx adds engines for NVIDIA GPUs, built without one; tensorrt for those here.",
)
@click.option(
    "--compute-capability", help="GPUs that tensorrt-rtx builds for, such as 8.9,12.0 (RTX 40 and 50; 8.6 is RTX 30)."
)
@click.option("--version-compatible", is_flag=True, help="Later versions of the same major TensorRT load the engines.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT engines for all GPUs from 8.0 on, somewhat slower.")
@click.option("--refit", is_flag=True, help="TensorRT engines whose adapter weights can be exchanged.")
@click.option("--batch", help="Pictures in a call that engines are built for, MIN:OPT:MAX. [default: 1:1:4]")
@click.option("--size", help="Sides in pixels that engines are built for, MIN:OPT:MAX. [default: the native size]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder. [default: engines/NAME]")
@click.option("--licence", help="Licence of the weights, for the manifest. [default: the avatar's Apache-2.0]")
@click.option(
    "--gate",
    help="A command that must succeed on the finished bundle, {} in it, before the bundle takes its place.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is verified.")
@click.option("--no-cache", is_flag=True, help="Trace all graphs again, also those that a stopped export has left.")
@click.option("--ignore-memory", is_flag=True, help="Go on with less memory than the export is estimated to need.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the sources and show the plan: files, decisions, disk, estimates of time and memory; write nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(**given: Any) -> None:
    """Export a model as a bundle for the SDK: ONNX graphs, tokenizer, manifest.

    Every graph is compared with PyTorch, and a whole picture with diffusers at equal noise. When one of them differs
    too much, nothing is written. The comparison is in the bundle's report.md.

    With --backend openvino, OpenVINO runs all of it once more, in bfloat16 where the processor has that; the bundle is
    as good for other backends.

    An engine is built from a compared graph. It runs with the same version of the library, on the GPUs
    and within the sizes that it was built for; the ONNX graph stays beside it.

    An export that was stopped, and is started again with the same sources, options and versions, finds in the cache
    (BOLID_CACHE_DIR, ~/.cache/bolid-sdk) what it had traced; it is verified all the same.

    Before it starts, an export compares what it needs with the disks and, by an estimate, with the memory here.
    """
    with _failures_in_one_line():
        _run(Asked(**given))


def _run(asked: Asked) -> None:
    _check_choice("precision", asked.precision, PRECISIONS)
    _check_choice("backend", asked.backend, BACKENDS)
    request = _engine_request(asked)
    if asked.backend == "openvino":
        _require_openvino()
    folder = asked.output or default_output(asked.model, asked.precision, asked.backend)
    if folder.exists() and not asked.force:
        raise OutputError(f"{folder} exists already; choose another folder with -o, or replace it with --force")
    source = _open(asked)
    target = _target(asked, folder, request.resolve(_sizes(source)) if request else None)
    from bolid_export.plan import plan, plan_text

    planned = plan(
        source, target.precision, folder, target.engines, runtimes=target.runtimes, gate=target.gate is not None
    )
    if asked.dry_run:
        click.echo(json.dumps(planned, indent=1) if asked.as_json else plan_text(planned))
        return
    _require_room(planned, asked.ignore_memory)
    _export(source, target, asked.as_json)


def _target(asked: Asked, folder: Path, engines: EngineTarget | None) -> Target:
    from bolid_export.pipeline import Target
    from bolid_export.verification.gate import CommandGate

    foreign = bool(asked.model or asked.adapters or asked.loras or asked.vae or asked.image_encoder)
    return Target(
        folder=folder,
        precision=cast("Precision", asked.precision),
        licence=asked.licence or ("unknown" if foreign else "Apache-2.0"),
        overwrite=asked.force,
        engines=engines,
        runtimes=("onnxruntime", "openvino") if asked.backend == "openvino" else ("onnxruntime",),
        cache=not asked.no_cache,
        gate=CommandGate(asked.gate) if asked.gate is not None else None,
    )


def default_output(model: Path | None, precision: str, backend: str = "onnx") -> Path:
    """`engines/avatar` (fp32 ONNX, for CPUs: the embedded bundle) or `engines/NAME-PRECISION[-BACKEND]`.

    In the repository if there is one, else in the working folder.
    """
    name = model.resolve().name.removesuffix(".safetensors") if model else "avatar"
    embedded = model is None and precision == "fp32" and backend == "onnx"
    suffix = "" if embedded else f"-{precision}" if backend == "onnx" else f"-{precision}-{backend}"
    repository = Path(__file__).resolve().parents[1]
    base = repository if (repository / "pyproject.toml").is_file() else Path()
    return base / "engines" / f"{name}{suffix}"


def _engine_request(asked: Asked) -> EngineRequest | None:
    """None: ONNX graphs are all that is wanted."""
    options = {name: getattr(asked, name) for name in ("version_compatible", "hardware_compatible", "refit")}
    if asked.backend.startswith("tensorrt"):
        from bolid_export.engines.target import BuildOptions, EngineRequest

        built = BuildOptions(**options)
        return EngineRequest.parse(asked.backend, asked.compute_capability, asked.batch, asked.size, built)
    given = {"--compute-capability": asked.compute_capability, "--batch": asked.batch, "--size": asked.size}
    given |= {f"--{name.replace('_', '-')}": "" for name, chosen in options.items() if chosen}
    for option, value in given.items():
        if value is not None:
            named = f"{option} {value}".strip()
            raise InputError(f"{named} is for engines, ONNX graphs fit all; add --backend tensorrt-rtx")
    return None


def _open(asked: Asked) -> Source:
    _quieten_libraries()
    from bolid_export.sources import PREDICTION_TYPES, Choices, Lora, default_checkpoint, open_source

    if asked.prediction_type:
        _check_choice("prediction type", asked.prediction_type, PREDICTION_TYPES)
    folder = asked.model or default_checkpoint()
    if asked.model is None and not (folder / "model_index.json").is_file():
        raise InputError(
            "this installation has no avatar weights; name a model with --model, or train one: bolid-train"
        )
    choices = Choices(
        loras=tuple(Lora.parse(lora) for lora in asked.loras),
        hot_lora_rank=_hot_lora_rank(asked.hot_lora),
        vae=asked.vae,
        image_encoder=asked.image_encoder,
        prediction_type=asked.prediction_type,
        config=asked.config,
    )
    return open_source(folder, asked.adapters, choices)


def _hot_lora_rank(rank: int | None) -> int:
    if rank is not None and not 1 <= rank <= MAX_LORA_RANK:
        raise InputError(f"--hot-lora {rank} is unusable; expected a rank from 1 to {MAX_LORA_RANK}, such as 128")
    return rank or 0


def _sizes(source: Source) -> Sizes:
    from bolid_export.sources import model_sizes

    return model_sizes(source.checkpoint)


def _require_room(planned: dict[str, Any], ignore_memory: bool) -> None:
    """Raises OutputError, MemoryShortageError."""
    from bolid_export.room import require_disk, require_memory

    require_disk({Path(folder): count for folder, count in planned["disk"].items()})
    if not ignore_memory:
        require_memory(planned["estimate"]["memory_bytes"])


def _require_openvino() -> None:
    """Before anything is computed. Raises BackendError, and InputError for settings of its cache."""
    from bolid_sdk.backends import open_backend

    for notice in open_backend("openvino", "cpu").notices:
        click.echo(f"warning: {notice}", err=True)


def _export(source: Source, target: Target, as_json: bool) -> None:
    from bolid_export.package import REPORT
    from bolid_export.pipeline import export_bundle, stage_count
    from bolid_export.verification.runtimes import OPENVINO

    compiles = OPENVINO in target.runtimes
    stages = stage_count(_sizes(source), target.engines, target.gate is not None, len(target.runtimes)) + compiles
    # on a pipe or in a log file a bar is noise; tqdm's None asks whether stderr is a terminal
    with tqdm(total=stages, disable=True if as_json else None, unit="stage") as bar:

        def progress(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        with _terminated_cleanly():
            bundle = export_bundle(source, target, progress)
        if compiles:
            progress("compiling for the first start")
            _compile_ahead(bundle)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle.path), "digest": bundle.digest, **bundle.manifest.to_dict()}))
    else:
        click.echo((bundle.path / REPORT).read_text(encoding="utf-8"))
        click.echo(f"{bundle.path} is ready: {_first_use(bundle, 'openvino' if compiles else None)}")


def _first_use(bundle: Bundle, backend: str | None) -> str:
    """What makes a picture. A person who is known by a face's embedding cannot be given on a command line."""
    if bundle.manifest.sizes.image_size:
        return f"bolid-infer REF PROMPT --bundle {bundle.path}" + (f" --backend {backend}" if backend else "")
    chosen = f", backend={backend!r}" if backend else ""
    return f"Generator({str(bundle.path)!r}{chosen})(FACE, PROMPT) in Python"


@contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """Inside, SIGTERM is an exception as Ctrl-C is: temporary folders are deleted before the process ends."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compile_ahead(bundle: Bundle) -> None:
    """What fails here costs time at the first start: the bundle is whole and verified."""
    from bolid_export.to_openvino import compile_ahead

    try:
        compile_ahead(bundle)
    except BolidError as error:
        click.echo(f"warning: nothing is compiled ahead, the first start will: {error}", err=True)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{what} {value!r} does not exist; there is {', '.join(choices)}")


def _quieten_libraries() -> None:
    """Their progress bars and advice would interleave with ours; environment variables reach them before import."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@contextmanager
def _failures_in_one_line() -> Iterator[None]:
    """User mistakes end with exit code 2, our failures with 1, neither with a traceback."""
    try:
        yield
    except BolidError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort of a command line
        message = " ".join(str(error).split())[:500]
        click.echo(f"bolid-export failed: {type(error).__name__}: {message}; please report this", err=True)
        raise SystemExit(1) from None
