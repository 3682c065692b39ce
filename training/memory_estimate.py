"""What a training step needs of memory, before any weight is read.

The step is run on fake tensors, which have shapes and types but no data (torch's FakeTensorMode): every operation of
forward and backward is seen, and the bytes that are alive at once are added up. Nothing is measured of the machine, so
the estimate leaves out the libraries themselves (about 1 GB) and what an allocator wastes.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bolid_training.model.base import Base
from bolid_training.stages.fit import FitModule, FitOptions

ADAM_MOMENTS, EMA = 2, 1  # further copies of every trained weight
TEXT_LENGTH = 77


class PeakBytes(TorchDispatchMode):
    """Counts the storages that operations inside the `with` create: `peak` is the most bytes alive at once.

    A view, such as a weight transposed, creates none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.current = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in given:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.current += self.alive[key]
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.current -= self.alive.pop(key, 0)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def estimate_memory(base: Base, options: FitOptions, batch_size: int) -> dict[str, float]:
    """Gigabytes (1e9 bytes) of a process, by what they are for. Accumulated batches cost no more than one."""
    with FakeTensorMode():
        unet = base.random_unet(options.dtype)
        module = FitModule(unet, base.config, gradient_checkpointing=options.gradient_checkpointing)
        batch = fake_batch(base, batch_size)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in module.frozen[0].parameters() if not parameter.requires_grad]
        step = step_bytes(module, batch, module.dtype)
    weights, gradients = bytes_of(trained), bytes_of(trained)
    parts = {
        "frozen_unet": bytes_of(frozen),
        "adapter": weights,
        "gradients": gradients,
        "optimizer_and_ema": (ADAM_MOMENTS + EMA) * weights,
        "activations": max(step - gradients, 0),
    }
    return {name: value / 1e9 for name, value in (parts | {"total": sum(parts.values())}).items()}


def step_bytes(module: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> int:
    """The most that forward and backward hold at once beside weights and batch: activations, and gradients."""
    with PeakBytes() as bytes_alive:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = module(batch).square().mean()
        loss.backward()
    return bytes_alive.peak


def fake_batch(base: Base, size: int) -> dict[str, Tensor]:
    """The largest kind of batch: two references and an image prompt."""
    config, side = base.config, base.size
    patches = (config.vision_size // config.vision_patch) ** 2 + 1
    return {
        "sample": torch.zeros(size, config.latent_channels, side // 8, side // 8),
        "timestep": torch.zeros(size, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(size, TEXT_LENGTH, config.text_width),
        "patch_tokens": torch.zeros(size, 2 * config.parts, patches, config.patch_width),
        "parts": torch.zeros(size, 2 * config.parts, dtype=torch.int64),
        "image_patch_tokens": torch.zeros(size, patches, config.patch_width),
        "skeleton": torch.zeros(size, 3, side, side),
        "keep_pose": torch.ones(size, dtype=torch.bool),
    }


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
