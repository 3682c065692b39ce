"""`bolid-eval`: how well a bundle keeps people it has never seen, their pose and their clothes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

KEEP = "Keep people, pictures and what judges see in them in this folder, and do nothing again that it has."


def _judged(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that generates pictures of test people and has them judged."""
    options = (
        click.option("--data", type=click.Path(path_type=Path), default=Path("runs/people"), show_default=True),
        click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True),
        click.option("--people", "count", type=click.IntRange(2), default=200, show_default=True),
        click.option("--pictures-per-person", "pictures", type=click.IntRange(1), default=1, show_default=True),
        click.option(
            "--judges", type=click.Path(path_type=Path), default=Path("training/weights/judges"), show_default=True
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--keep", type=click.Path(path_type=Path), help=KEEP),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead of the embedded one.")
@_judged
@click.option("--against", type=click.Path(path_type=Path), help="A bundle to compare with, picture by picture.")
@click.option("--backend", help="onnxruntime, openvino …  [default: as Generator chooses]")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Draw reference | pose | 4 seeds for ten people.")
def main(
    context: click.Context,
    bundle: Path | None,
    data: Path,
    split: str,
    count: int,
    pictures: int,
    judges: Path,
    seed: int,
    keep: Path | None,
    against: Path | None,
    backend: str | None,
    out: Path | None,
    sheet: Path | None,
) -> None:
    """Generates pictures of test people through the SDK, the pose kept, in another place, and has them judged.

    The judges are networks that have no part in the model: `bolid-train stage judge_identity` and so on.

    With --against, both bundles draw each picture, from the same noise. The exit code is 1 unless identity and pose
    drop by at most 0.01 and the CLIP score by at most 1 %, the worse end of the 95 % interval counts.

    \b
      bolid-eval --people 400 --pictures-per-person 3 -o docs/results/avatar.json --sheet docs/images/sheet.png
      bolid-eval --bundle engines/avatar-int8 --against engines/avatar
    """
    if context.invoked_subcommand:
        return
    from bolid_sdk import Generator
    from bolid_sdk.errors import BolidError
    from bolid_training.data import load_people
    from bolid_training.evaluate import gate, run
    from bolid_training.evaluate.pictures import sheet as draw_sheet
    from bolid_training.evaluate.protocol import trials
    from bolid_training.judges.panel import load_judges

    try:
        people = load_people(data, split)
        panel = load_judges(judges, keep)
        generator = Generator(bundle, backend=backend)
        baseline = Generator(against, backend=backend) if against else None
        chosen = trials(people, count, seed, pictures)
        setup = run.setup(generator, panel, seed) | {"split": split}
        if baseline:
            setup["baseline"] = baseline.bundle.digest
            measured = gate.compare_bundles(generator, baseline, panel, people, chosen, seed, keep)
        else:
            measured = run.evaluate(generator, panel, people, chosen, seed, keep)
    except (FileNotFoundError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    _write({"setup": setup} | measured, out)
    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(generator, people, chosen).save(sheet)
    if not measured.get("passed", True):
        raise SystemExit(1)


@main.command("compare")
@click.argument("rows", nargs=-1, required=True)
@_judged
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw reference | pose | each model for some people.")
@click.option("--backend", help="onnxruntime, openvino …  [default: as Generator chooses]")
@click.option("--shown", type=click.IntRange(1), default=8, show_default=True, help="People in the figure.")
@click.option("--columns", help="Models in the figure, as in bolid,ip_adapter.  [default: all]")
@click.option(
    "--beside",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An earlier result of the same people: its other rows are kept.",
)
def compare_bundles(
    rows: tuple[str, ...],
    data: Path,
    split: str,
    count: int,
    pictures: int,
    judges: Path,
    seed: int,
    keep: Path | None,
    out: Path | None,
    figure: Path | None,
    backend: str | None,
    shown: int,
    columns: str | None,
    beside: Path | None,
) -> None:
    """Compares bundles on the same people, prompts and noise. ROWS: NAME=BUNDLE, the first is what the others are
    compared with, picture by picture.

    \b
      bolid-eval compare bolid=engines/bolid ip_adapter=engines/ip_adapter instantid=engines/instantid \\
          pulid=engines/pulid pulid_no_pose=engines/pulid@pose=none bolid_25=engines/base@steps=25@guidance=3 \\
          --people 400 --pictures-per-person 3 -o docs/results/comparison.json --figure docs/images/comparison.png
      bolid-eval compare embedded=embedded --beside docs/results/comparison.json -o docs/results/comparison.json
    """
    from bolid_sdk.errors import BolidError
    from bolid_training.data import load_people
    from bolid_training.evaluate.compare import compare, figure_columns, parse_contestant
    from bolid_training.evaluate.joined import read_comparison
    from bolid_training.evaluate.protocol import trials
    from bolid_training.judges.panel import load_judges

    try:
        contestants = [parse_contestant(row) for row in rows]
        named = figure_columns(contestants, columns) if columns else ()
        earlier = read_comparison(beside) if beside else None
        people = load_people(data, split)
        panel, chosen = load_judges(judges, keep), trials(people, count, seed, pictures)
        result, image = compare(contestants, panel, people, chosen, seed, split, shown, named, backend, keep, earlier)
    except (FileNotFoundError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    _write(result, out)
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        image.save(figure)


def _write(result: dict[str, Any], out: Path | None) -> None:
    text = json.dumps(result, indent=2)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    click.echo(text)
