"""The commands `bolid-infer` and `bolid-doctor`. What is heavy is imported when it is needed: start-up time counts."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bolid_sdk.errors import BolidError, InputError, OutputError

if TYPE_CHECKING:
    from bolid_sdk.generator import Generator
    from bolid_sdk.result import Result

EXAMPLES = """\b
Examples:
  bolid-infer anna.jpg "sitting on a red sofa" -o sofa.png
  bolid-infer front.jpg "walking" --ref side.jpg --seed 7 -n 4
  bolid-infer anna.jpg "on a beach" --image-prompt beach.jpg --pose dancer.jpg
  bolid-infer anna.jpg "dancing" --pose dancer.jpg --best-of 4
  bolid-infer anna.jpg "jumping" --pose none --steps 8 --guidance 2 --json
"""
INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended: 128 and the signal's number."""
SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("reference", type=click.Path(path_type=Path), metavar="REF")
@click.argument("prompt", metavar="PROMPT")
@click.option(
    "--ref", "more", type=click.Path(path_type=Path), multiple=True, help="Another picture of the same person."
)
@click.option("--image-prompt", type=click.Path(path_type=Path), help="A picture whose scene and style are followed.")
@click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="A LoRA, for bundles exported with --hot-lora."
)
@click.option("--pose", help="A picture, a .json of 12 keypoints, or 'none'. [default: the reference's own pose]")
@click.option("--identity-scale", type=float, default=1.0, show_default=True, help="Likeness; 0 ignores the person.")
@click.option("--image-scale", type=float, default=1.0, show_default=True, help="Weight of the image prompt.")
@click.option("--pose-scale", type=float, default=1.0, show_default=True, help="Weight of the pose.")
@click.option("--steps", type=int, help="Sampling steps. [default: the bundle's]")
@click.option(
    "--guidance", type=float, help="How strictly the prompt is followed; 1 is fastest. [default: the bundle's]"
)
@click.option("--sampler", help="ddim, euler, euler_a, dpm++2m or lcm. [default: the bundle's]")
@click.option(
    "--spacing",
    help="Of the steps: leading, trailing (as Turbo and Lightning were trained) or linspace. [default: the bundle's]",
)
@click.option("--caching", help="off, balanced or fast: fewer whole steps, other pictures. [default: the bundle's]")
@click.option(
    "--guidance-interval", metavar="LO:HI", help="Guide between these fractions of the steps only, as 0.1:0.8."
)
@click.option("--seed", type=int, help="Makes a picture repeatable; further pictures take seed + 1 … [default: random]")
@click.option(
    "--best-of", type=int, default=1, show_default=True, help="Draw so many, keep the one that follows the pose best."
)
@click.option("-n", "count", type=int, default=1, show_default=True, help="How many pictures.")
@click.option("--size", help="512 or 384x512 (width x height). [default: the bundle's]")
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle's folder. [default: the embedded one]")
@click.option("--backend", help="Library that runs the graphs. [default: the best that is installed and works]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path),
    default=Path("bolid.png"),
    show_default=True,
    help="File or folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the pictures.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def infer(reference: Path, prompt: str, more: tuple[Path, ...], output: Path, as_json: bool, **given: Any) -> None:
    """Make pictures of the person in REF that show PROMPT."""
    with _failures_in_one_line():
        _check_output(output, given["count"])
        options = _options(given)
        from bolid_sdk.generator import Generator

        generator = Generator(given["bundle"], backend=given["backend"], device=given["device"])
        quiet, names = given["quiet"] or as_json, _names(output, given["count"])
        results = _pictures(generator, [reference, *more], prompt, given["count"], options, quiet)
        written = [(result, result.save(path)) for result, path in zip(results, names, strict=True)]
        _report(written, as_json, quiet)


@click.command(context_settings=SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--backend", help="Library that runs the graphs. [default: the best that is installed and works]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(bundle: Path | None, backend: str | None, device: str, as_json: bool) -> None:
    """Check this installation and a BUNDLE (the embedded one by default).

    Versions, backends; then every file's hash, engines that were built for other GPUs or versions, and whether each
    graph still computes what was stored when the bundle was exported. Exit code 2 when something is wrong.
    """
    with _failures_in_one_line():
        from bolid_sdk.doctor import diagnose, report_lines

        with _checking() as progress:
            report = diagnose(bundle, backend, device, progress)
        click.echo(json.dumps(report, indent=1) if as_json else "\n".join(report_lines(report)))
    if not report["ok"]:
        raise SystemExit(2)


@contextmanager
def _checking() -> Iterator[Callable[[str, int], None]]:
    """A bar for what takes longer than two seconds, if somebody watches."""
    from tqdm import tqdm

    with tqdm(unit="step", leave=False, delay=2, disable=not sys.stderr.isatty()) as bar:

        def progress(what: str, total: int) -> None:
            bar.total = total
            bar.set_description(what)
            bar.update()

        yield progress


@contextmanager
def _failures_in_one_line() -> Iterator[None]:
    # Pillow's own warning about large pictures, ahead of our error about them.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        yield
    except BolidError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None


def _options(given: dict[str, Any]) -> dict[str, Any]:
    from bolid_sdk.lora_format import parse_lora
    from bolid_sdk.sampling import Sampling

    width, height = _size(given["size"])
    options = {name: given[name] for name in ("image_prompt", "identity_scale", "image_scale", "pose_scale")}
    chosen = {name: given[name] for name in ("steps", "guidance", "sampler", "spacing", "caching")}
    sampling = Sampling(**chosen, guidance_interval=_interval(given["guidance_interval"]))
    pose = {} if given["pose"] is None else {"pose": _pose(given["pose"])}
    loras = {"loras": [parse_lora(lora) for lora in given["loras"]]} if given["loras"] else {}
    options |= {"seed": given["seed"], "best_of": given["best_of"], "sampling": sampling}
    return {**options, **pose, **loras, "width": width, "height": height}


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height or width)
    except ValueError:
        raise InputError(f"--size {text!r} is unusable; expected 512 or 384x512 (width x height)") from None


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f"--guidance-interval {text!r} is unusable; expected LO:HI such as 0.1:0.8") from None


def _pose(text: str) -> Any:
    if text.lower() == "none":
        return None
    path = Path(text)
    if path.suffix.lower() != ".json":
        return path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--pose {text} cannot be read ({error}); expected a JSON list of 12 keypoints") from None


def _check_output(output: Path, count: int) -> None:
    """Found out before the work, not after it."""
    if count < 1:
        raise InputError(f"-n {count} is unusable; expected at least 1")
    if not output.is_dir() and output.suffix.lower() not in ("", ".png"):
        raise InputError(f"-o {output} is no PNG; expected a name ending in .png, or a folder")
    if not output.parent.is_dir():
        raise OutputError(f"-o {output}: there is no folder {output.parent}; make it first or choose another")


def _names(output: Path, count: int) -> list[Path]:
    if output.is_dir():
        output = output / "bolid.png"
    output = output if output.suffix else output.with_suffix(".png")
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index + 1}{output.suffix}") for index in range(count)]


def _pictures(
    generator: Generator, references: list[Path], prompt: str, count: int, options: dict[str, Any], quiet: bool
) -> Iterator[Result]:
    """One after the other: each is saved when it is finished."""
    seed = options.pop("seed")
    person: Any = references
    with _progress(quiet) as advance:
        for index in range(count):
            if index == 0 and count > 1:
                person = generator.identify(references)
            following = None if seed is None else seed + index
            for step in generator.stream(person, prompt, seed=following, **options):
                advance(step.total * count)
            yield step.result()


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda total: None
        return
    from tqdm import tqdm

    with tqdm(unit="step", leave=False) as bar:

        def advance(total: int) -> None:
            bar.total = total
            bar.update()

        yield advance


def _report(written: list[tuple[Result, Path]], as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(json.dumps({"results": [{"path": str(path), **result.to_dict()} for result, path in written]}))
    elif not quiet:
        for result, path in written:
            click.echo(f"{path} (seed {result.seed}, {sum(result.timings.values()):.2f} s, {result.backend})")
    messages = dict.fromkeys(notice.message for result, _ in written for notice in result.warnings)
    for message in messages if not quiet else ():
        click.echo(f"warning: {message}", err=True)
