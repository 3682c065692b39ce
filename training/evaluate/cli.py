"""`bolid-eval`: how well a bundle keeps pose and clothes of people it has never seen."""

import json
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead of the embedded one.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("runs/people"), show_default=True)
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--people", "count", type=click.IntRange(2), default=200, show_default=True, help="One picture each.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Draw reference | pose | 4 seeds for ten people.")
def main(
    bundle: Path | None, data: Path, split: str, count: int, seed: int, out: Path | None, sheet: Path | None
) -> None:
    """Generates a picture of each test person through the SDK, the pose kept, in another place, and measures it.

    \b
      bolid-eval --people 200 -o docs/results/avatar.json --sheet docs/images/sheet.png
    """
    from bolid_sdk import Generator
    from bolid_sdk.errors import BolidError
    from bolid_training.data import load_people
    from bolid_training.evaluate import run
    from bolid_training.evaluate.protocol import trials

    try:
        people = load_people(data, split)
        generator = Generator(bundle)
    except (FileNotFoundError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    chosen = trials(people, count, seed)
    result = {"setup": run.setup(generator, seed) | {"split": split}} | run.evaluate(generator, people, chosen, seed)
    text = json.dumps(result, indent=2)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        run.sheet(generator, people, chosen).save(sheet)
    click.echo(text)
