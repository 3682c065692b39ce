"""`bolid-train`: data, the stages of the avatar, and the checkpoint put together from them.

Commands import what they need: `bolid-train --help` should not wait for PyTorch.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from bolid_training.avatars.cli import data as data_command
from bolid_training.recipes import methods
from bolid_training.recipes.avatar import JUDGES, STAGES
from bolid_training.userdata.cli import fit as fit_command

RUNS = Path("runs/avatar")
DATA = Path("runs/people")
RECIPES = STAGES | JUDGES


class FitByDefault(click.Group):
    """Options without a command are `fit`'s: `bolid-train --model DIR --data DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["fit", *args]
        return super().parse_args(ctx, args)


@click.group(cls=FitByDefault, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Trains BoLID. The adapter on a Stable Diffusion of your own, with your pictures:

    \b
      bolid-train --model DIR --data DIR     see `bolid-train fit --help`

    For the embedded avatar, from nothing:

    \b
      bolid-train data --out runs/people     render people (CC0, synthetic)
      bolid-train profile unet               what a step reaches of this machine
      bolid-train stage clip                 tokenizer and CLIP
      bolid-train stage vae                  autoencoder
      bolid-train stage pose                 12 keypoints
      bolid-train stage decoder              the autoencoder's alone, judged and read by others
      bolid-train stage unet                 the text-to-image base
      bolid-train stage clip_text            a text tower that knows pictures, for L_CLIP
      bolid-train stage reid                 who it is, for losses on finished pictures
      bolid-train stage words                identity tokens that speak as the text encoder does
      bolid-train stage adapter              BoLID on the frozen base
      bolid-train stage lightning            both in four steps without guidance
      bolid-train stage refine               ... taught by finished pictures
      bolid-train stage contrast             ... its first guesses made stronger
      bolid-train stage energy               ... as different as the data's
      bolid-train stage guider               ... in poses nearer to the skeletons
      bolid-train stage clothes              ... in the reference's clothes
      bolid-train assemble                   one diffusers folder of all that
      bolid-export --precision fp16          engines for the SDK

    \b
    And the networks that `bolid-eval` asks, which have no part in the avatar:

    \b
      bolid-train stage judge_identity       who it is
      bolid-train stage judge_pose           where the keypoints are
      bolid-train stage judge_clip           whether it is what the prompt says
      bolid-train keep-judges

    Every stage continues where it was interrupted.
    """


main.add_command(data_command, "data")
main.add_command(fit_command, "fit")


@main.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--data", type=click.Path(path_type=Path), default=DATA, show_default=True, help="Made by `data`.")
@click.option(
    "--more-data", type=click.Path(path_type=Path), multiple=True, help="Another data set to train on, beside that one."
)
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True, help="All stages' output.")
@click.option("--steps", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--batch-size", type=click.IntRange(2), help="Instead of the recipe's.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Instead of the recipe's.")
@click.option("--limit", type=click.IntRange(2), help="Train on the first so many pictures only.")
@click.option("--warm", is_flag=True, help="Begin with RUNS/NAME/model, not with random weights: see `unpack`.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--recipe",
    type=click.Choice(list(methods.RECIPES)),
    help="Of `adapter` or its `words`: the method. Goes to RUNS/RECIPE.",
)
@click.option("--pose-guider", type=click.Choice(get_args(methods.PoseGuiderUse)), help="Instead of the recipe's.")
@click.option("--undistilled", is_flag=True, help="The recipe's lightning branch draws with the base itself.")
@click.option("--compile", is_flag=True, help="Through torch.compile; needs a C++ compiler.")
def stage(
    name: str,
    data: Path,
    more_data: tuple[Path, ...],
    runs: Path,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    limit: int | None,
    warm: bool,
    seed: int,
    recipe: str | None,
    pose_guider: methods.PoseGuiderUse | None,
    undistilled: bool,
    compile: bool,
) -> None:
    """Trains one stage, or continues it, on the CPU, whatever GPU there may be.

    In several processes, each with batches of its own:

    \b
      OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m bolid_training stage unet --batch-size 8
    """
    from bolid_training.loop import LoopOptions, NotFiniteError, train
    from bolid_training.memory import keep_freed_memory
    from bolid_training.stages.tasks import build_task

    given = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    numbers = replace(RECIPES[name], **{option: value for option, value in given.items() if value is not None})
    method = chosen_method(name, recipe, pose_guider, undistilled)
    run = methods.words_run(method) if name == "words" else recipe or name
    options = LoopOptions(out=runs / run, seed=seed, compile=compile, **vars(numbers))
    keep_freed_memory()
    try:
        task = build_task(name, data, runs, limit, recipe=method, more_data=more_data)
        if warm:
            task.load(options.out / "model")
        train(task, options)
    except OSError as error:
        raise click.UsageError(str(error)) from error
    except NotFiniteError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--data", type=click.Path(path_type=Path), default=DATA, show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), help="Instead of the recipe's.")
@click.option("--recipe", type=click.Choice(list(methods.RECIPES)), help="Of `adapter`: the method, in its last phase.")
@click.option("--undistilled", is_flag=True, help="The recipe's lightning branch draws with the base itself.")
def profile(name: str, data: Path, runs: Path, batch_size: int | None, recipe: str | None, undistilled: bool) -> None:
    """Measures a stage's step before a long run: samples a second, and the share of the machine's conv peak."""
    from bolid_training.loop import Phased
    from bolid_training.memory import keep_freed_memory
    from bolid_training.profile import profile_task
    from bolid_training.stages.tasks import build_task

    keep_freed_memory()
    try:
        task = build_task(name, data, runs, limit=2000, recipe=chosen_method(name, recipe, None, undistilled))
        if isinstance(task, Phased):
            task.reach(1.0)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    measured = profile_task(task, batch_size or RECIPES[name].batch_size)
    click.echo(json.dumps({name: round(value, 3) for name, value in measured.items()}, indent=2))


@main.command()
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="[default: training/weights/avatar, or RUNS/{RECIPE,guided}/checkpoint]",
)
@click.option("--recipe", type=click.Choice(list(methods.RECIPES)), help="With this method's adapter.")
@click.option("--guider/--no-guider", default=None, help="Whether skeletons guide through the base's T2I-Adapter.")
@click.option(
    "--few-steps", is_flag=True, help="The method in four steps without guidance, with the LoRA of `lightning`."
)
@click.option(
    "--guided",
    is_flag=True,
    help="What the few steps are compared with: the base reads the adapter's tokens as its text, with guidance.",
)
@click.option(
    "--pose-scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Puts a pose scale that has proved better into the guider's weights, beside what is in them.",
)
def assemble(
    runs: Path,
    out: Path | None,
    recipe: str | None,
    guider: bool | None,
    few_steps: bool,
    guided: bool,
    pose_scale: float,
) -> None:
    """Puts the stages' networks together into one diffusers folder, weights in float16.

    A method that was trained without the base's pose guider is assembled without it, unless --guider asks for it: the
    guider is the base's and fits every method, as plain T2I-Adapters do.
    """
    from bolid_training.assemble import assemble_checkpoint

    if recipe is None and (guider is not None or few_steps):
        raise click.UsageError("--guider, --no-guider and --few-steps are for a recipe: name one with --recipe")
    method = chosen_method("adapter", recipe, None if guider is None else "frozen" if guider else "off", False)
    if recipe and guided:
        raise click.UsageError("--guided is for the model without a --recipe: methods sample with guidance anyway")
    if method and method.pose_guider == "off" and pose_scale != 1:
        raise click.UsageError(f"--pose-scale {pose_scale} is for a pose guider, which {recipe} has only with --guider")
    kept = runs / "guided" / "checkpoint" if guided else Path("training/weights/avatar")
    out = out or (runs / recipe / "checkpoint" if recipe else kept)
    try:
        size = assemble_checkpoint(runs, out, recipe=method, few_steps=few_steps, guided=guided, pose_scale=pose_scale)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps({"checkpoint": str(out), "megabytes": round(size / 1e6, 1)}))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default=Path("training/weights/avatar"))
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
def unpack(checkpoint: Path, runs: Path) -> None:
    """Takes a checkpoint apart into RUNS/STAGE/model: train any stage on from there with `stage NAME --warm`."""
    from bolid_training.assemble import unpack_checkpoint

    try:
        unpack_checkpoint(checkpoint, runs)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error


@main.command()
@click.argument("trained", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--before", type=click.Path(path_type=Path), required=True, help="The base that TRAINED was trained on.")
@click.option("--after", type=click.Path(path_type=Path), required=True, help="That base, having gone on.")
def rebase(trained: Path, out: Path, before: Path, after: Path) -> None:
    """Moves an adapter, or a few-step student with its LoRA, along with its base that has been trained on.

    What began as a copy of the base moves as far as the base has: a start for `stage refine`, which mends the rest.

    \b
      bolid-train rebase runs/before/refine/model runs/avatar/lightning/model \
          --before runs/before/unet/model --after runs/avatar/unet/model
    """
    from bolid_training.rebase import rebase as move

    try:
        move(trained, out, before, after)
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error


@main.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice([*STAGES, *methods.RECIPES]))
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("training/weights/stages"), show_default=True)
def keep(names: tuple[str, ...], runs: Path, out: Path) -> None:
    """Keeps finished stages' and methods' networks, weights in float16, for another machine to go on with.

    \b
      bolid-train keep clip vae pose
      cp -r training/weights/stages/. runs/avatar      there: then `stage unet`
    """
    from bolid_training.assemble import keep_stages

    try:
        size = keep_stages(names, runs, out)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps({"kept": list(names), "megabytes": round(size / 1e6, 1)}))


@main.command()
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("training/weights/judges"), show_default=True)
def keep_judges(runs: Path, out: Path) -> None:
    """Keeps the trained judges for `bolid-eval`, weights in float16."""
    from bolid_training.judges import panel

    try:
        sizes = panel.keep_judges(runs, out)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps({name: {"megabytes": round(size / 1e6, 1)} for name, size in sizes.items()}))


def chosen_method(
    name: str, recipe: str | None, pose_guider: methods.PoseGuiderUse | None, undistilled: bool
) -> methods.Recipe | None:
    """The recipe of that name with what was said otherwise on the command line. Raises click.UsageError."""
    if recipe is None:
        if pose_guider or undistilled:
            raise click.UsageError("--pose-guider and --undistilled change a recipe: name one with --recipe")
        return None
    if name not in ("words", "adapter"):
        raise click.UsageError(f"--recipe {recipe} is a method of the stage `adapter`, not of `{name}`")
    chosen = methods.RECIPES[recipe]
    if name == "words" and not chosen.words:
        raise click.UsageError(f"--recipe {recipe} does not begin with `stage words`: there is nothing to train")
    if undistilled:
        chosen = replace(chosen, branch=replace(chosen.branch, distilled=False))
    return replace(chosen, pose_guider=pose_guider) if pose_guider else chosen
