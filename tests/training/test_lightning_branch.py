"""The branch against diffusers' scheduler, step by step, and how far its gradient reaches."""

import pytest
import torch
from diffusers import DDIMScheduler

from bolid_training.lightning import lightning_sample, lightning_states
from bolid_training.model.checkpoint import build_scheduler
from bolid_training.model.config import AvatarConfig


def scheduler(prediction_type):
    if prediction_type == "v_prediction":
        return build_scheduler(AvatarConfig())
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def network(sample, timestep):
    """Something that depends on both, without weights."""
    return torch.tanh(sample.roll(1, -1) * (1 + timestep[:, None, None, None] / 1000))


NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_the_branch_is_ddim_of_diffusers(prediction_type, steps):
    theirs, sample, expected = scheduler(prediction_type), NOISE.clone(), []
    theirs.set_timesteps(steps)
    for timestep in theirs.timesteps:
        sample = theirs.step(network(sample, timestep.expand(3)), timestep, sample).prev_sample
        expected.append(sample)
    found = list(lightning_states(network, scheduler(prediction_type), NOISE, steps=steps))
    assert len(found) == steps
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).abs().max() < 1e-5


@pytest.mark.parametrize("gradient_steps", [0, 1, 2, 4])
def test_gradient_flows_through_exactly_the_last_steps(gradient_steps):
    """Each step has a weight of its own: those of the last steps get a gradient, the others do not."""
    weights, calls = [torch.ones((), requires_grad=True) for _ in range(4)], iter(range(4))

    def predict(sample, timestep):
        return weights[next(calls)] * network(sample, timestep)

    out = lightning_sample(predict, scheduler("v_prediction"), NOISE, steps=4, gradient_steps=gradient_steps)
    if gradient_steps:
        out.square().sum().backward()
    reached = [weight.grad is not None and bool(weight.grad != 0) for weight in weights]
    assert reached == [False] * (4 - gradient_steps) + [True] * gradient_steps
    assert out.requires_grad == bool(gradient_steps)


def test_the_gradient_is_that_of_finite_differences():
    """Through two steps, in float64; earlier ones are constants, which two steps from their state show."""

    def predict(scale):
        return lambda sample, timestep: scale * network(sample.double(), timestep)

    def last_two(scale):
        """The branch's loss with `scale` in the last two steps only."""
        calls = iter([1.0, 1.0, scale, scale])
        step = lambda sample, timestep: predict(next(calls))(sample, timestep)  # noqa: E731
        return (
            lightning_sample(step, scheduler("v_prediction"), NOISE.double(), steps=4, gradient_steps=2).square().sum()
        )

    scale = torch.tensor(1.0, requires_grad=True)
    branch = lightning_sample(predict(scale), scheduler("v_prediction"), NOISE.double(), steps=4, gradient_steps=2)
    branch.square().sum().backward()
    expected = (last_two(1.01) - last_two(0.99)) / 0.02
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-3)


def test_more_gradient_than_steps_is_an_error():
    with pytest.raises(ValueError, match="5 of 4 steps"):
        lightning_sample(network, scheduler("epsilon"), NOISE, steps=4, gradient_steps=5)
