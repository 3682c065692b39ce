"""From a checkpoint to a verified bundle: trace, lower, compare with PyTorch, package."""
