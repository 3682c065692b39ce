"""The energy score: least where drawings are as different from each other as they are from the truth."""

import pytest
import torch

from bolid_training.stages.energy import energy_score


def normal(mean, spread, seed, count=20_000):
    return mean + spread * torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.5), (0.0, 1.5), (0.3, 1.0)])
def test_drawings_of_another_distribution_score_worse_than_the_truths_own(mean, spread):
    truth = normal(0, 1, seed=0)
    own = energy_score(normal(0, 1, seed=1), normal(0, 1, seed=2), truth)
    other = energy_score(normal(mean, spread, seed=1), normal(mean, spread, seed=2), truth)
    assert other > own + 0.02


def test_of_one_drawing_twice_it_is_the_distance_to_the_truth():
    first, truth = torch.zeros(2, 4, 3, 3), torch.full((2, 4, 3, 3), 5.0)
    assert energy_score(first, first, truth) == pytest.approx(10, abs=0.01)


def test_a_place_that_counts_nothing_is_not_looked_at():
    first, second, truth = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    weight = torch.ones(2, 1, 3, 3)
    weight[..., 0] = 0
    expected = energy_score(first[..., 1:], second[..., 1:], truth[..., 1:])
    assert energy_score(first, second, truth, weight) == pytest.approx(float(expected))


def test_it_has_a_gradient_where_all_are_the_same():
    drawn = torch.zeros(1, 4, 2, 2, requires_grad=True)
    energy_score(drawn, drawn, drawn.detach()).backward()
    assert torch.isfinite(drawn.grad).all()
