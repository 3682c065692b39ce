"""LoRAs as inputs of a graph: y = W x + up down x in every layer that takes them (`bolid_export.sources.hot_layers`).

All layers share two inputs, `lora_down` [sum of in, rank] and `lora_up` [sum of out, rank], of which each reads its
rows. Rows, because they are contiguous: a runtime can read them where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from bolid_sdk.contracts import LoraLayer


@dataclass(frozen=True, kw_only=True)
class HotLayer:
    """A layer at `path` in a graph's network, and where its rows start."""

    path: str
    layer: LoraLayer
    first_input: int
    first_output: int

    def change(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Of features [..., in], or of a convolution's [B, in, h, w]."""
        down = down.narrow(0, self.first_input, self.layer.inputs).to(x.dtype)
        up = up.narrow(0, self.first_output, self.layer.outputs).to(x.dtype)
        if x.dim() == 4:
            return (up @ (down.t() @ x.flatten(2))).unflatten(2, x.shape[2:])
        return (x @ down) @ up.t()


def locate(network: nn.Module, modules: Mapping[str, nn.Module], layers: Sequence[LoraLayer]) -> list[HotLayer]:
    """Those of the layers' `modules` that `network` has, wherever it has them."""
    paths = {id(module): path for path, module in network.named_modules()}
    inputs = accumulate((layer.inputs for layer in layers), initial=0)
    outputs = accumulate((layer.outputs for layer in layers), initial=0)
    return [
        HotLayer(path=paths[id(modules[layer.name])], layer=layer, first_input=first_input, first_output=first_output)
        for layer, first_input, first_output in zip(layers, inputs, outputs, strict=False)
        if id(modules[layer.name]) in paths
    ]


@contextmanager
def loras_applied(network: nn.Module, layers: Sequence[HotLayer], down: Tensor, up: Tensor) -> Iterator[None]:
    """Inside, `network` computes with the LoRAs. By hooks: a layer may be quantised or an island by now."""
    handles = [network.get_submodule(hot.path).register_forward_hook(_adding(hot, down, up)) for hot in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(hot: HotLayer, down: Tensor, up: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + hot.change(args[0], down, up).to(output.dtype)

    return hook
