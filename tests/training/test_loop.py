"""The training loop: a run that is interrupted and continued equals one that is not."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.training_utils import EMAModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from bolid_training import loop, muon
from bolid_training.cli import RECIPES, main
from bolid_training.data import process_state
from bolid_training.loop import (
    LoopOptions,
    NotFiniteError,
    build_optimizer,
    compile_in_place,
    learning_rate_factor,
    train,
)
from bolid_training.stages import tasks


class Regression:
    """Fits a linear map; small enough to run hundreds of steps in a second."""

    def __init__(self, break_at: int | None = None, inputs: int = 4, outputs: int = 2):
        torch.manual_seed(0)
        self.module = nn.Linear(inputs, outputs)
        self.truth = torch.arange(float(inputs * outputs)).reshape(inputs, outputs) / (inputs * outputs)
        self.break_at, self.calls, self.saved = break_at, 0, None

    def batch(self, rng, size):
        return {"x": torch.from_numpy(rng.standard_normal((size, len(self.truth)), dtype=np.float32))}

    def losses(self, module, batch):
        self.calls += 1
        loss = (module(batch["x"]) - batch["x"] @ self.truth).square().mean()
        return {"loss": loss * float("nan") if self.calls == self.break_at else loss}

    def validate(self, sheet):
        return {"error": float((self.module.weight.T - self.truth).abs().max())}

    def save(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save(self.module.state_dict(), folder / "weights.pt")


def options(out, **changes):
    base = LoopOptions(
        out=out, steps=40, batch_size=8, learning_rate=0.05, warmup=5, mixed_precision="no", validate_every=20
    )
    return replace(base, **changes)


def run(out, **changes):
    task = Regression()
    train(task, options(out, **changes))
    return task


def test_interrupted_and_continued_equals_uninterrupted(tmp_path):
    whole = run(tmp_path / "whole")
    first = Regression(break_at=26)
    with pytest.raises(NotFiniteError):
        train(first, options(tmp_path / "parts", save_minutes=0))
    second = run(tmp_path / "parts")
    assert second.calls < 40  # it did continue
    assert torch.equal(whole.module.weight, second.module.weight)
    weights = [torch.load(tmp_path / name / "model" / "weights.pt")["weight"] for name in ("whole", "parts")]
    assert torch.equal(*weights)  # the EMA, too
    assert not torch.equal(weights[0], whole.module.weight)


def test_a_finished_run_says_that_it_trains_nothing(tmp_path, capsys):
    run(tmp_path, steps=5)
    again = run(tmp_path, steps=5, learning_rate=1.0)
    assert again.calls == 0
    assert "is at step 5 of 5: nothing is left to train" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [0, 26])
def test_a_checkpoint_left_half_written_is_passed_over(tmp_path, finished):
    """As by a run that was killed while it saved, before or after it had saved whole ones."""
    if finished:
        with pytest.raises(NotFiniteError):
            train(Regression(break_at=finished), options(tmp_path, save_minutes=0))
    numbers = [int(folder.name.rpartition("_")[2]) for folder in (tmp_path / "checkpoints").glob("checkpoint_*")]
    (tmp_path / "checkpoints" / f"checkpoint_{max(numbers, default=-1) + 1}").mkdir(parents=True)
    again = run(tmp_path, save_minutes=0)
    assert again.calls == 40 - max(finished - 1, 0)
    assert len(list((tmp_path / "checkpoints").glob("*/complete"))) == 2


class Placed(EMAModel):
    """Takes no step with weights that have not been sent to the device since they came."""

    placed = False

    def to(self, device=None, dtype=None, non_blocking=False):
        super().to(device, dtype, non_blocking)
        self.placed = True

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.placed = False

    def step(self, parameters):
        assert self.placed
        super().step(parameters)


def test_averaged_weights_of_a_checkpoint_are_sent_to_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EMAModel", Placed)
    for steps in (5, 10):
        run(tmp_path, steps=steps)


@pytest.mark.usefixtures("visible_gpu")
def test_stages_leave_a_gpu_alone(tmp_path, monkeypatch):
    """Their tasks make batches on the CPU, in the precision that is fast there."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    task = Regression()
    settings = LoopOptions(out=tmp_path, steps=2, batch_size=8, learning_rate=0.05)
    train(task, settings)
    assert task.module.weight.device.type == process_state().device.type == "cpu"
    assert settings.mixed_precision == "no"


def test_training_learns_and_reports(tmp_path):
    run(tmp_path, steps=300)
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 300
    assert lines[-1]["error"] < 0.1 < lines[0]["error"]
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path):
    task = Regression(break_at=7)
    with pytest.raises(NotFiniteError, match="not finite"):
        train(task, options(tmp_path, save_minutes=0))
    assert (tmp_path / "model" / "weights.pt").exists()


def test_learning_rate_warms_up_and_falls():
    settings = options("unused", steps=1000, warmup=100)
    factors = [learning_rate_factor(step, settings) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[-1] == pytest.approx(0.05, abs=1e-3)


def test_stages_train_by_their_recipes_and_warm_up_for_a_quarter_at_most(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tasks, "build_task", lambda *given, **named: Regression())
    monkeypatch.setattr(loop, "train", lambda task, options: seen.append(options))
    for name, recipe in RECIPES.items():
        result = CliRunner().invoke(main, ["stage", name, "--runs", str(tmp_path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert vars(recipe).items() <= vars(seen.pop()).items()
        assert recipe.warmup <= recipe.steps / 4


def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_as_adamw_does():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 2, 3))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = build_optimizer(list(module.parameters()), options("unused", optimizer="muon", weight_decay=0.0))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    kernel, *others = ((old - new) / 0.05 for old, new in zip(before, module.parameters(), strict=True))
    sizes = torch.linalg.svdvals(kernel.flatten(1).detach()) / (0.2 * (16 * 9) ** 0.5)
    assert ((sizes > 0.6) & (sizes < 1.3)).all()  # five Newton-Schulz steps come so near to 1
    assert all(torch.allclose(step.abs(), torch.ones_like(step), atol=1e-3) for step in others)


def test_muon_takes_the_same_step_without_bfloat16(monkeypatch):
    steps = []
    for precision in ("bf16", "no"):
        monkeypatch.setattr(muon, "fastest_precision", lambda precision=precision: precision)
        torch.manual_seed(0)
        kernels = [nn.Parameter(torch.randn(shape)) for shape in ((32, 16, 3, 3), (64, 48), (48, 64))]
        before = [kernel.detach().clone() for kernel in kernels]
        optimizer = build_optimizer(kernels, options("unused", optimizer="muon", weight_decay=0.0))
        for kernel in kernels:
            kernel.grad = torch.randn_like(kernel)
        optimizer.step()
        steps.append([old - new.detach() for old, new in zip(before, kernels, strict=True)])
    for emulated, exact in zip(*steps, strict=True):
        assert not torch.equal(emulated, exact)
        assert (emulated - exact).norm() < 0.02 * exact.norm()


def test_muon_continues_where_it_was_interrupted(tmp_path):
    sizes = {"inputs": 24, "outputs": 16}
    whole, broken, second = Regression(**sizes), Regression(break_at=26, **sizes), Regression(**sizes)
    train(whole, options(tmp_path / "whole", optimizer="muon"))
    with pytest.raises(NotFiniteError):
        train(broken, options(tmp_path / "parts", optimizer="muon", save_minutes=0))
    train(second, options(tmp_path / "parts", optimizer="muon"))
    assert second.calls < 40
    assert torch.equal(whole.module.weight, second.module.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_at_the_learning_rate_that_it_is_given(tmp_path, optimizer):
    """As NotFiniteError advises; Muon has two groups here, a matrix and a bias."""
    sizes = {"inputs": 24, "outputs": 16}
    first, second = Regression(break_at=26, **sizes), Regression(**sizes)
    with pytest.raises(NotFiniteError):
        train(first, options(tmp_path, optimizer=optimizer, save_minutes=0))
    train(second, options(tmp_path, optimizer=optimizer, learning_rate=1e-9))
    assert second.calls == 15
    for before, after in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert (before - after).abs().max() < 1e-6


class Wrapped(nn.Module):
    """PyTorch does not compile calls of its own modules, but of those that hold them."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @property
    def weight(self):
        return self.layers[0].weight

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def frames():
    """How many functions PyTorch has compiled."""
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["frames"]
    counter.clear()
    return counter


def test_a_compiled_run_equals_an_eager_one(tmp_path, frames):
    weights = []
    for name, compile in (("eager", False), ("compiled", True)):
        task = Regression()
        task.module = Wrapped(task.module)
        train(task, options(tmp_path / name, steps=5, compile=compile))
        weights.append(task.module.weight)
    assert frames["ok"]
    assert torch.allclose(*weights, atol=1e-6)


def test_gradients_pass_compiled_upsamplers(frames):
    """In bfloat16, with as many channels as are vectorised: there PyTorch 2.13 loses them."""
    torch.manual_seed(0)
    module = Wrapped(nn.Conv2d(128, 128, 1), nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, padding=1))
    x = torch.randn(2, 128, 8, 8)
    gradients = []
    for compiled in (False, True):
        if compiled:
            compile_in_place(module)
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        out.float().square().mean().backward()
        gradients.append(module.weight.grad.clone())
    assert frames["ok"]
    assert torch.allclose(*gradients, rtol=0.02, atol=0.02 * float(gradients[0].abs().max()))


class Stream(Regression):
    """Takes the next samples of one stream, whatever the size of a batch."""

    def __init__(self):
        super().__init__()
        self.samples, self.at = np.random.default_rng(0).standard_normal((400, 4), dtype=np.float32), 0

    def batch(self, rng, size):
        self.at += size
        return {"x": torch.from_numpy(self.samples[self.at - size : self.at])}


def test_accumulated_batches_are_one_larger_batch(tmp_path):
    whole, accumulated = Stream(), Stream()
    train(whole, options(tmp_path / "whole"))
    train(accumulated, options(tmp_path / "accumulated", batch_size=2, accumulate=4))
    assert whole.at == accumulated.at == 320
    assert accumulated.calls == 4 * whole.calls
    assert (whole.module.weight - accumulated.module.weight).abs().max() < 1e-6
    curves = [logged(tmp_path / name) for name in ("whole", "accumulated")]
    assert len(curves[0]) == 4
    assert np.allclose(*curves, atol=1e-6)


def test_a_run_goes_on_with_its_batches_split_otherwise(tmp_path):
    """From an odd step, which is no multiple of the new number of batches."""
    whole, first, second = Stream(), Stream(), Stream()
    train(whole, options(tmp_path / "whole"))
    first.break_at, second.at = 26, 25 * 8
    with pytest.raises(NotFiniteError):
        train(first, options(tmp_path / "parts", save_minutes=0))
    train(second, options(tmp_path / "parts", batch_size=4, accumulate=2))
    assert second.calls == 2 * 15
    assert (whole.module.weight - second.module.weight).abs().max() < 1e-6


def logged(out):
    """The loss of every tenth step, of a run and of those that continued it."""
    folder = next(out.rglob("events.out.tfevents*")).parent
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars("train/loss")]


TWO_PROCESSES = """
import sys
from pathlib import Path
import numpy as np, torch
from bolid_training.data import cached
from bolid_training.loop import LoopOptions, train

class Regression:
    def __init__(self):
        self.offsets = cached(Path(sys.argv[1] + ".npy"), lambda piece: np.zeros((4, 1), np.float32), 4)
        torch.manual_seed(0)
        self.module = torch.nn.ModuleList([torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)])
        self.module.forward = lambda x: self.module[0](x)  # the second is left out of every step
    def batch(self, rng, size):
        return {"x": torch.from_numpy(rng.standard_normal((size, 4), dtype=np.float32))}
    def losses(self, module, batch):
        return {"loss": (module(batch["x"]) - batch["x"].sum(-1, keepdim=True)).square().mean()}
    def validate(self, sheet):
        return {"error": float((self.module[0].weight - 1).abs().max())}
    def save(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save(self.module.state_dict(), folder / "weights.pt")

train(Regression(), LoopOptions(out=Path(sys.argv[1]), steps=int(sys.argv[2]), batch_size=8, learning_rate=0.05,
                                warmup=5, mixed_precision="no", validate_every=20, save_minutes=0.001,
                                accumulate=int(sys.argv[3])))
"""


@pytest.mark.slow
def test_two_processes_train_one_network_and_continue(tmp_path):
    """As one process does that accumulates two batches: the same batches in all, hence the same loss curve."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    for steps in (100, 200):
        subprocess.run([*launch, str(tmp_path / "two"), str(steps), "1"], env=environment, check=True, timeout=900)
        alone = [sys.executable, str(script), str(tmp_path / "one"), str(steps), "2"]
        subprocess.run(alone, env=environment, check=True, timeout=900)
    lines = [json.loads(line) for line in (tmp_path / "two" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 201, 20))  # one process reports
    assert lines[-1]["error"] < 0.1 < lines[0]["error"]
    curves = [logged(tmp_path / name) for name in ("one", "two")]
    assert len(curves[0]) == 20
    assert np.allclose(*curves, rtol=1e-4)
    weights = [torch.load(tmp_path / name / "model" / "weights.pt") for name in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-5 for name in weights[0])
