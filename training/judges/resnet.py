"""What the two ResNets (arXiv:1512.03385) among the judges share."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from transformers import ResNetConfig

STATISTICS_BATCHES = 8  # enough for `settle`


def resnet_config(widths: tuple[int, ...], depths: tuple[int, ...], **options: object) -> ResNetConfig:
    """A ResNet of basic blocks: features at 1/4, 1/8, 1/16 and 1/32 of the picture's side."""
    return ResNetConfig(
        embedding_size=widths[0], hidden_sizes=list(widths), depths=list(depths), layer_type="basic", **options
    )


@torch.no_grad()
def settle(module: nn.Module, batches: list[Tensor]) -> None:
    """Leaves `module` in eval mode, its batch norms with statistics of its present weights on `batches` of pixels.

    Those gathered in training are of other weights than the EMA's.
    """
    update_bn(batches, module)
    module.eval()
