"""What the two ResNets (arXiv:1512.03385) among the judges share."""

from transformers import ResNetConfig


def resnet_config(widths: tuple[int, ...], depths: tuple[int, ...], **options: object) -> ResNetConfig:
    """A ResNet of basic blocks: features at 1/4, 1/8, 1/16 and 1/32 of the picture's side."""
    return ResNetConfig(
        embedding_size=widths[0], hidden_sizes=list(widths), depths=list(depths), layer_type="basic", **options
    )
