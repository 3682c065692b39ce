"""Batch norms after training: their statistics have to be those of the weights that are kept."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

STATISTICS_BATCHES = 8  # enough for `settle`


@torch.no_grad()
def settle(module: nn.Module, batches: list[Tensor]) -> None:
    """Leaves `module` in eval mode, its batch norms with statistics of its present weights on `batches` of pixels.

    Those gathered in training are of other weights than the EMA's.
    """
    update_bn(batches, module)
    module.eval()
