"""The search for layers that int8 hurts: each is tried alone, and the worst for their work stay float32.

Rounding errors of different layers are nearly independent, so their squares add up: that predicts how many layers have
to go, and the network is measured once again for certainty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

from torch import Tensor, nn

from bolid_export.graphs import Graph

Sample = tuple[Tensor, ...]

SHORTLIST = 48
"""The layers whose own outputs suffer most are tried: each trial is a run of the network."""

STEP = 4
"""Layers that go at once when the prediction was too hopeful."""


def sensitive_layers(
    graph: Graph,
    candidates: Mapping[str, nn.Module],
    work: Mapping[str, float],
    samples: Sequence[Sample],
    budget: float,
) -> tuple[dict[str, str], float]:
    """Names and reasons of the `candidates` (int8 modules by path in the network) that stay float32; the error left.

    Errors are `output_error` of the whole graph on `samples`. Stops when the error is within `budget`, or nothing of
    the shortlist is left; then the caller's gates decide.
    """
    expected = [graph(*sample) for sample in samples]

    def error(names: list[str]) -> float:
        with installed(graph.network, {name: candidates[name] for name in names}):
            return output_error([graph(*sample) for sample in samples], expected)

    everything = error(list(candidates))
    if everything <= budget:
        return {}, everything
    alone = {name: error([name]) for name in _shortlist(graph, candidates, samples[0])}
    order = sorted(alone, key=lambda name: alone[name] ** 2 / work[name], reverse=True)
    count = _predicted(everything, [alone[name] for name in order], budget)
    while (left := error([name for name in candidates if name not in order[:count]])) > budget and count < len(order):
        count = min(count + STEP, len(order))
    kept = order[:count]
    return {name: f"in int8 it alone moves the output by {100 * alone[name]:.1f} %" for name in kept}, left


def output_error(found: Sequence[Sample], expected: Sequence[Sample]) -> float:
    """Root mean square error of all samples together in units of the deviation, of the worst output."""
    errors = []
    for found_runs, expected_runs in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        pairs = list(zip(found_runs, expected_runs, strict=True))
        noise = sum(float((f - e).square().sum()) for f, e in pairs)
        signal = sum(float((e - e.mean()).square().sum()) for _, e in pairs)
        errors.append((noise / max(signal, 1e-12)) ** 0.5)
    return max(errors)


def multiply_adds(graph: Graph, layers: Mapping[str, nn.Module], sample: Sample) -> dict[str, float]:
    """Those of each layer (linear or convolution) in one run."""
    work: dict[str, float] = {}

    def count(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        work[name] = work.get(name, 0.0) + output.numel() / module.weight.shape[0] * module.weight.numel()

    with _hooks(layers, count):
        graph(*sample)
    return work


@contextmanager
def installed(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """`modules` in the place of those of the same names."""
    before = {name: network.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            network.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            network.set_submodule(name, module)


def _shortlist(graph: Graph, candidates: Mapping[str, nn.Module], sample: Sample) -> list[str]:
    errors: dict[str, float] = {}

    def compare(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        errors[name] = output_error([(candidates[name](*args),)], [(output,)])

    with _hooks({name: graph.network.get_submodule(name) for name in candidates}, compare):
        graph(*sample)
    return sorted(errors, key=errors.__getitem__, reverse=True)[:SHORTLIST]


def _predicted(everything: float, alone: list[float], budget: float) -> int:
    """How many of the first have to go, at least one, so that the squares of the others fit."""
    left = (everything**2 - gone for gone in accumulate(error**2 for error in alone))
    return next((count for count, rest in enumerate(left, 1) if rest <= budget**2), len(alone))


@contextmanager
def _hooks(layers: Mapping[str, nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    """`hook(name, module, args, output)` after each run of a layer."""
    handles = [
        layer.register_forward_hook(lambda module, args, output, name=name: hook(name, module, args, output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
