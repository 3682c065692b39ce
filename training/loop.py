"""The training loop: one for every network of the project.

A `Task` says what is trained, on what, and how it is looked at; the loop does the rest through accelerate: mixed
precision, several processes, EMA, clipping, checkpoints from which a run continues exactly, TensorBoard.
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from bolid_training.data import process_state
from bolid_training.precision import fastest_precision

MATRIX = 16  # rows and columns from which on Muon takes a weight; those of the first and last layers stay AdamW's


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """`batch_size` is a process'; `steps` are optimizer steps; `learning_rate` is the peak after `warmup` steps, from
    where it falls along a cosine to a twentieth. `compile` runs the module through torch.compile: minutes at the start;
    what it brings since `compile_in_place` is not measured. `optimizer`: see `build_optimizer`.

    A step takes `accumulate` batches in each process one after the other: memory of one, gradient of all. Which batches
    they are depends on how many there are in all, not on how they are shared out: one process that accumulates two
    trains as two processes do, and may continue their run."""

    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    accumulate: int = 1
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    mixed_precision: str = field(default_factory=fastest_precision)
    compile: bool = False
    save_minutes: float = 4.0
    validate_every: int = 500
    seed: int = 0


class Task(Protocol):
    """What the loop needs to know of a stage."""

    module: nn.Module

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """Draws a batch. Everything random in it comes from `rng`, which is what makes runs repeatable."""

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar losses; the first is minimised, the others are logged."""

    def validate(self, sheet: Path) -> dict[str, float]:
        """Metrics on validation people, with the EMA weights in place; writes a contact sheet."""

    def save(self, folder: Path) -> None:
        """Writes the trained network, with the EMA weights in place."""

    def load(self, folder: Path) -> None:
        """Begins with the network that `save` wrote instead of a random one."""


@runtime_checkable
class Phased(Protocol):
    """A task whose losses change while it is trained."""

    def reach(self, share: float) -> None:
        """Called before every step with the share of the steps that are done."""


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is intact."""


def train(task: Task, options: LoopOptions) -> None:
    """Trains until `options.steps`, continuing from the newest checkpoint in `options.out`.

    Raises NotFiniteError when a loss is not finite.
    """
    accelerator = Accelerator(
        cpu=process_state().device.type == "cpu",
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.accumulate,
        log_with="tensorboard",
        project_config=ProjectConfiguration(
            project_dir=str(options.out), automatic_checkpoint_naming=True, total_limit=2
        ),
        # some conditions are left out of some steps, and their networks with them
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    _initialise(accelerator, options)
    parameters = [parameter for parameter in task.module.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, options)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, options))
    ema = EMAModel(parameters, decay=options.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    progress = Progress()
    if options.compile:
        compile_in_place(task.module)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    accelerator.register_for_checkpointing(schedule, ema, progress)
    _resume(accelerator, progress, options)
    ema.to(accelerator.device)  # after a checkpoint, too, whose tensors are on the CPU
    _set_learning_rate(schedule, progress.step, options)

    saved = time.monotonic()
    bar = tqdm(
        total=options.steps,
        initial=progress.step,
        desc=options.out.name,
        dynamic_ncols=True,
        smoothing=0.05,
        disable=not accelerator.is_main_process,
    )
    while progress.step < options.steps:
        if isinstance(task, Phased):
            task.reach(progress.step / options.steps)
        values = _step(accelerator, task, module, parameters, optimizer, progress.step, options)
        schedule.step()
        ema.step(parameters)
        progress.step += 1
        bar.update()
        if progress.step % 10 == 0:
            bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})
            accelerator.log({f"train/{name}": value for name, value in values.items()}, step=progress.step)
        if progress.step % options.validate_every == 0 or progress.step == options.steps:
            _validate(accelerator, task, ema, parameters, progress.step, options)
        if progress.step == options.steps or _time_to_save(saved, options):
            _save(accelerator, task, ema, parameters, progress, options)
            saved = time.monotonic()
    bar.close()
    # Before the process group goes: DistributedDataParallel, if it is the last to hold it, takes it down under Python's
    # lock, which Gloo's threads may need to come to their end.
    module, optimizer = accelerator.free_memory(module, optimizer)
    accelerator.end_training()


def compile_in_place(module: nn.Module) -> None:
    """Sends the module's calls through torch.compile."""
    # On CPUs in bfloat16 what a convolution needs in channels last is copied before the gradient of a nearest-neighbour
    # upsampling has been added up: it is 0, and nothing below the last upsampler learns (torch 2.13).
    torch._inductor.config.layout_optimization = False
    module.compile()


def build_optimizer(parameters: list[nn.Parameter], options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW, or Muon (arXiv:2502.16982) for matrices and kernels of convolutions, with AdamW for what is neither.

    Muon's updates are scaled to the size of AdamW's, so both take the same learning rate and weight decay.
    """
    adamw = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "betas": (0.9, 0.99)}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **adamw)
    # takes a second to import
    from bolid_training.muon import FastestMuon

    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        rows = len(parameter) if parameter.ndim > 1 else 1
        groups[min(rows, parameter.numel() // rows) >= MATRIX].append(parameter)
    matrices = {"params": groups[True], "use_muon": True, "use_adjusted_lr": True}
    others = {"params": groups[False], "use_muon": False, **adamw}
    used = [group for group in (matrices, others) if group["params"]]
    return FastestMuon(used, lr=options.learning_rate, weight_decay=options.weight_decay)


def learning_rate_factor(step: int, options: LoopOptions) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Progress:
    """The step counter, as accelerate wants things that are saved."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def _initialise(accelerator: Accelerator, options: LoopOptions) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    if accelerator.is_main_process:
        (options.out / "options.json").write_text(json.dumps(settings, indent=2) + "\n")
    accelerator.init_trackers("tensorboard")


def _resume(accelerator: Accelerator, progress: Progress, options: LoopOptions) -> None:
    with accelerator.main_process_first():
        complete = _drop_unfinished_checkpoints(options.out)
    if not complete:
        return
    newest = max(complete)
    accelerator.load_state(str(complete[newest]))
    accelerator.project_configuration.iteration = newest + 1
    # counts batches, and the run before may have taken another number of them to a step
    accelerator.step = progress.step * options.accumulate
    if progress.step < options.steps:
        accelerator.print(f"continuing {options.out} at step {progress.step}")
    else:
        accelerator.print(f"{options.out} is at step {progress.step} of {options.steps}: nothing is left to train")


def _set_learning_rate(schedule: LambdaLR, step: int, options: LoopOptions) -> None:
    """The options' from `step` on: a checkpoint brings back the rate that its run was given."""
    schedule.base_lrs = [options.learning_rate for _ in schedule.base_lrs]
    for group in schedule.optimizer.param_groups:
        group["initial_lr"] = options.learning_rate
        group["lr"] = options.learning_rate * learning_rate_factor(step, options)


def _drop_unfinished_checkpoints(out: Path) -> dict[int, Path]:
    """The finished checkpoints by number.

    Those that a killed run left half-written go: accelerate refuses to write over them, and counts them among the
    checkpoints for which it deletes older, finished ones.
    """
    found = list((out / "checkpoints").glob("checkpoint_*"))
    complete = {int(folder.name.rpartition("_")[2]): folder for folder in found if (folder / "complete").exists()}
    for folder in set(found) - set(complete.values()):
        shutil.rmtree(folder, ignore_errors=True)
    return complete


def _time_to_save(saved: float, options: LoopOptions) -> bool:
    """By the main process' clock: processes that disagreed would wait for each other for ever."""
    due = [time.monotonic() - saved > 60 * options.save_minutes]
    broadcast_object_list(due)
    return due[0]


def _step(
    accelerator: Accelerator,
    task: Task,
    module: nn.Module,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    options: LoopOptions,
) -> dict[str, float]:
    """One optimizer step; the losses, meant over all batches of all processes, and the gradient's norm."""
    sums: dict[str, float] = {}
    for micro in range(options.accumulate):
        number = micro * accelerator.num_processes + accelerator.process_index
        batch = task.batch(np.random.default_rng([options.seed, step, number]), options.batch_size)
        with accelerator.accumulate(module):
            losses = task.losses(module, batch)
            for name, value in _finite(_mean_values(accelerator, losses)).items():
                sums[name] = sums.get(name, 0.0) + value / options.accumulate
            accelerator.backward(next(iter(losses.values())))
            if accelerator.sync_gradients:
                sums["grad_norm"] = float(accelerator.clip_grad_norm_(parameters, options.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return sums


def _mean_values(accelerator: Accelerator, losses: dict[str, Tensor]) -> dict[str, float]:
    """Over the processes: they have to find a loss that is not finite together, or one would wait for ever."""
    stacked = torch.stack([value.detach().float() for value in losses.values()])
    return dict(zip(losses, accelerator.reduce(stacked, "mean").tolist(), strict=True))


def _finite(values: dict[str, float]) -> dict[str, float]:
    if not all(math.isfinite(value) for value in values.values()):
        raise NotFiniteError(f"loss is not finite: {values}; continue from the last checkpoint with a lower rate")
    return values


def _validate(
    accelerator: Accelerator,
    task: Task,
    ema: EMAModel,
    parameters: list[nn.Parameter],
    step: int,
    options: LoopOptions,
) -> None:
    if not accelerator.is_main_process:
        return
    sheets = options.out / "sheets"
    sheets.mkdir(exist_ok=True)
    # validation's batches have other shapes, for which nothing should be compiled
    with ema_weights(ema, parameters), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        metrics = task.validate(sheets / f"{step:06d}.png")
    accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=step)
    with (options.out / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")
    tqdm.write(f"{options.out.name} {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _save(
    accelerator: Accelerator,
    task: Task,
    ema: EMAModel,
    parameters: list[nn.Parameter],
    progress: Progress,
    options: LoopOptions,
) -> None:
    folder = Path(accelerator.save_state())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "complete").touch()
        with ema_weights(ema, parameters):
            task.save(options.out / "model")


class ema_weights:  # noqa: N801 - reads as a with statement
    """Puts the EMA weights into `parameters` inside a `with`, and the trained ones back after it."""

    def __init__(self, ema: EMAModel, parameters: list[nn.Parameter]):
        self.ema, self.parameters = ema, parameters

    def __enter__(self) -> None:
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)

    def __exit__(self, *exc: object) -> None:
        self.ema.restore(self.parameters)
