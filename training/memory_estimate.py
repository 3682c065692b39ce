"""What a training step, and the encoders before it, need of memory, before any weight is read.

Both are run on fake tensors, which have shapes and types but no data (torch's FakeTensorMode): every operation of
forward and backward is seen, and the bytes that are alive at once are added up. Nothing is measured of the machine, so
the estimate leaves out the libraries themselves (about 1 GB) and what an allocator wastes.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bolid_sdk.contracts import TIME_IDS
from bolid_training.conditions import penultimate_states
from bolid_training.model.base import Base
from bolid_training.stages.fit import FitModule, FitOptions
from bolid_training.userdata.arrays import CHUNK, CROPS_AT_ONCE
from bolid_training.userdata.texts import read_ids

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


def estimate_encoders(base: Base) -> dict[str, float]:
    """Gigabytes of the networks that are asked before the training, one after the other: their weights in float32, and
    the most that they hold beside them."""
    with FakeTensorMode(), torch.no_grad():
        encoders = base.random_encoders()
        vae, vision = encoders["vae"], encoders["image_encoder"]
        towers = [encoders[name] for name in base.family.towers]
        ids = torch.zeros(CHUNK, TEXT_LENGTH, dtype=torch.int64)
        crops = torch.zeros(CROPS_AT_ONCE, 3, base.config.vision_size, base.config.vision_size)
        picture = torch.zeros(1, 3, base.size, base.size)
        needed = {
            "autoencoder": call_bytes([vae], lambda: vae.encode(picture)),
            "text_encoders": call_bytes(towers, lambda: read_ids(towers, [ids] * len(towers))),
            "image_encoder": call_bytes([vision], lambda: penultimate_states(vision, crops)),
        }
    return {name: value / 1e9 for name, value in needed.items()}


def call_bytes(networks: list[nn.Module], call: Callable[[], Any]) -> int:
    """Of the weights, and the most that a call of the networks holds at once beside them."""
    with PeakBytes() as bytes_alive:
        call()
    return bytes_alive.peak + sum(bytes_of(list(network.parameters())) for network in networks)


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
        "encoder_hidden_states": torch.zeros(size, TEXT_LENGTH, config.context_width),
        **fake_added(base, size),
        "patch_tokens": torch.zeros(size, 2 * config.parts, patches, config.patch_width),
        "parts": torch.zeros(size, 2 * config.parts, dtype=torch.int64),
        "image_patch_tokens": torch.zeros(size, patches, config.patch_width),
        "skeleton": torch.zeros(size, 3, side, side),
        "keep_pose": torch.ones(size, dtype=torch.bool),
    }


def fake_added(base: Base, size: int) -> dict[str, Tensor]:
    """What the UNet adds to its timestep."""
    added = {"text_embeds": torch.zeros(size, base.config.pooled_width), "time_ids": torch.zeros(size, TIME_IDS)}
    return {name: added[name] for name in base.family.added}


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
