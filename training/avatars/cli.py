"""`bolid-train data`: makes the synthetic data set."""

from __future__ import annotations

import os
from pathlib import Path

import click
from tqdm import tqdm

from bolid_training.avatars.dataset import OtherSettingsError, check_settings, missing, write_dataset
from bolid_training.avatars.shards import SPLITS, Settings


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the data set.")
@click.option("--identities", type=click.IntRange(min=1), default=6000, show_default=True, help="People.")
@click.option("--views", type=click.IntRange(1, 1000), default=8, show_default=True, help="Pictures of each person.")
@click.option(
    "--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="Side of a picture, pixels."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default="processors")
@click.option("--splits", default=",".join(SPLITS), show_default=True, help="Which splits to make, with commas.")
def data(out: Path, identities: int, views: int, size: int, seed: int, workers: int, splits: str) -> None:
    """Make pictures of synthetic people with captions, keypoints and segmentation, as webdataset shards.

    Interrupted runs go on where they stopped; the same settings give the same files whatever the number of workers.
    """
    wanted = _parse_splits(splits)
    settings = Settings(identities=identities, views=views, size=size, seed=seed)
    try:
        check_settings(out, settings)
    except OtherSettingsError as error:
        raise click.UsageError(str(error)) from error
    total = sum(shard.pictures for shard in missing(out, settings, wanted))
    with tqdm(total=total, unit="picture", smoothing=0.05) as bar:
        card = write_dataset(
            out, settings, workers=workers, splits=wanted, progress=lambda done: bar.update(done - bar.n)
        )
    counts = ", ".join(f"{split} {entry['pictures']}" for split, entry in card["splits"].items())
    click.echo(f"{out}: {counts}{'' if card['complete'] else ' (planned; other splits are still to be made)'}")


def _parse_splits(text: str) -> tuple[str, ...]:
    wanted = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [split for split in wanted if split not in SPLITS]
    if unknown or not wanted:
        raise click.BadParameter(f"unknown split {', '.join(unknown) or text!r}; there are {', '.join(SPLITS)}")
    return wanted


if __name__ == "__main__":
    data()
