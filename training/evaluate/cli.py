"""`bolid-eval`: how well a bundle keeps people it has never seen, their pose and their clothes."""

import json
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead of the embedded one.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("runs/people"), show_default=True)
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--people", "count", type=click.IntRange(2), default=200, show_default=True)
@click.option("--pictures-per-person", "pictures", type=click.IntRange(1), default=1, show_default=True)
@click.option("--judges", type=click.Path(path_type=Path), default=Path("training/weights/judges"), show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Draw reference | pose | 4 seeds for ten people.")
def main(
    bundle: Path | None,
    data: Path,
    split: str,
    count: int,
    pictures: int,
    judges: Path,
    seed: int,
    out: Path | None,
    sheet: Path | None,
) -> None:
    """Generates pictures of test people through the SDK, the pose kept, in another place, and has them judged.

    The judges are networks that have no part in the model: `bolid-train stage judge_identity` and so on.

    \b
      bolid-eval --people 400 --pictures-per-person 3 -o docs/results/avatar.json --sheet docs/images/sheet.png
    """
    from bolid_sdk import Generator
    from bolid_sdk.errors import BolidError
    from bolid_training.data import load_people
    from bolid_training.evaluate import run
    from bolid_training.evaluate.pictures import sheet as draw_sheet
    from bolid_training.evaluate.protocol import trials
    from bolid_training.judges.panel import load_judges

    try:
        people = load_people(data, split)
        panel = load_judges(judges)
        generator = Generator(bundle)
    except (FileNotFoundError, BolidError) as error:
        raise click.UsageError(str(error)) from error
    chosen = trials(people, count, seed, pictures)
    measured = run.evaluate(generator, panel, people, chosen, seed)
    result = {"setup": run.setup(generator, panel, seed) | {"split": split}} | measured
    text = json.dumps(result, indent=2)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(generator, people, chosen).save(sheet)
    click.echo(text)
