"""`bolid-export`: a checkpoint in, a verified bundle out. PyTorch is imported after the arguments are understood."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from bolid_sdk.errors import BolidError, InputError, OutputError

if TYPE_CHECKING:
    from bolid_export.sources import Source

BACKENDS = ("onnx",)
PRECISIONS = ("fp32", "fp16")

EXAMPLES = """\b
Examples:
  bolid-export --precision fp16                          the avatar model, into engines/avatar-fp16
  bolid-export --model my-model --dry-run                what would be written, and where
  bolid-export --model my-model --adapter anna.safetensors -o engines/anna
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.option("--model", type=click.Path(path_type=Path), help="A diffusers folder. [default: the avatar model]")
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    help="In place of the model's own of that kind.",
)
@click.option("--precision", default="fp16", show_default=True, help="fp16 for GPUs; fp32 is faster on CPUs.")
@click.option("--backend", default="onnx", show_default=True, help="Format of the engines; ONNX runs everywhere.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder. [default: engines/NAME]")
@click.option("--licence", help="Licence of the weights, for the manifest. [default: the avatar's Apache-2.0]")
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is verified.")
@click.option("--dry-run", is_flag=True, help="Check the sources and show the plan; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(**given: Any) -> None:
    """Export a model as a bundle for the SDK: ONNX graphs, tokenizer, manifest.

    Every graph is compared with PyTorch, and a whole picture with diffusers at equal noise. When one of them differs
    too much, nothing is written. The comparison is in the bundle's report.md.
    """
    with _failures_in_one_line():
        _run(**given)


def _run(
    model: Path | None,
    adapters: tuple[Path, ...],
    precision: str,
    backend: str,
    output: Path | None,
    licence: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("backend", backend, BACKENDS)
    folder = output or default_output(model, precision)
    if folder.exists() and not force:
        raise OutputError(f"{folder} exists already; choose another folder with -o, or replace it with --force")
    source = _open(model, adapters)
    if dry_run:
        from bolid_export.plan import plan, plan_text

        planned = plan(source, precision, folder)
        click.echo(json.dumps(planned, indent=1) if as_json else plan_text(planned))
        return
    from bolid_export.pipeline import Target

    licence = licence or ("Apache-2.0" if model is None and not adapters else "unknown")
    _export(source, Target(folder=folder, precision=precision, licence=licence, overwrite=force), as_json)


def default_output(model: Path | None, precision: str) -> Path:
    """`engines/avatar` (fp32, for CPUs: the embedded bundle) or `engines/NAME-PRECISION`, in the repository if any."""
    name = model.resolve().name if model else "avatar"
    embedded = model is None and precision == "fp32"
    repository = Path(__file__).resolve().parents[1]
    base = repository if (repository / "pyproject.toml").is_file() else Path()
    return base / "engines" / (name if embedded else f"{name}-{precision}")


def _open(model: Path | None, adapters: tuple[Path, ...]) -> Source:
    _quieten_libraries()
    from bolid_export.sources import default_checkpoint, open_source

    folder = model or default_checkpoint()
    if model is None and not (folder / "model_index.json").is_file():
        raise InputError(
            "this installation has no avatar weights; name a model with --model, or train one: bolid-train"
        )
    return open_source(folder, adapters)


def _export(source: Source, target: Any, as_json: bool) -> None:
    from bolid_export.package import REPORT
    from bolid_export.pipeline import export_bundle, stage_count
    from bolid_export.sources import model_sizes

    # on a pipe or in a log file a bar is noise; tqdm's None asks whether stderr is a terminal
    with tqdm(
        total=stage_count(model_sizes(source.checkpoint)), disable=True if as_json else None, unit="stage"
    ) as bar:

        def progress(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        bundle = export_bundle(source, target, progress)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle.path), "digest": bundle.digest, **bundle.manifest.to_dict()}))
    else:
        click.echo((bundle.path / REPORT).read_text(encoding="utf-8"))
        click.echo(f"{bundle.path} is ready: bolid-infer REF PROMPT --bundle {bundle.path}")


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
