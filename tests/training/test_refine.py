"""What finished pictures teach: colours of parts against a closed form, and which steps are looked at."""

import torch

from bolid_training.avatars.parts import Part
from bolid_training.stages.refine import SEEN, colour_loss, part_masks
from bolid_training.stages.student import one_for_each


def test_colour_loss_is_the_squared_distance_of_mean_colours():
    parts = torch.zeros(2, 16, 16, dtype=torch.uint8)
    parts[:, :8] = int(Part.UPPER)
    truth = torch.zeros(2, 3, 16, 16)
    found = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = colour_loss(found, truth, part_masks(parts.numpy()), torch.tensor([True, False]))
    expected = found[0, :, :8].mean((1, 2)).square().sum()
    assert torch.isclose(loss, expected, rtol=1e-5)


def test_colour_loss_looks_at_parts_that_are_large_enough_to_have_a_colour():
    parts = torch.zeros(1, 16, 16, dtype=torch.uint8)
    parts.view(-1)[: SEEN - 1] = int(Part.LOWER)
    found = torch.ones(1, 3, 16, 16, requires_grad=True)
    loss = colour_loss(found, torch.zeros_like(found), part_masks(parts.numpy()), torch.tensor([True]))
    assert loss == 0
    loss.backward()
    assert not found.grad.any()


def test_each_sample_has_one_of_the_steps_in_turn():
    steps = [(torch.full((3, 1, 2, 2), float(i)), torch.full((3,), 10 * i)) for i in range(2)]
    samples, timesteps = one_for_each(steps)
    assert samples[:, 0, 0, 0].tolist() == [0, 1, 0]
    assert timesteps.tolist() == [0, 10, 0]
