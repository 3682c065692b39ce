"""What the student is asked for: the v whose x0 is so many times as large, in a step's own terms."""

import pytest
import torch

from bolid_training.stages.contrast import louder


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("gain", [1.0, 1.4])
def test_the_louder_v_has_an_x0_that_is_so_much_larger(alpha, gain):
    generator = torch.Generator().manual_seed(0)
    v, sample = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    found = signal * sample - noise * louder(v, sample, torch.tensor(alpha), gain)
    assert torch.allclose(found, gain * (signal * sample - noise * v), atol=1e-6)
