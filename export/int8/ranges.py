"""Ranges of what layers read, from running a network: histograms that stream, so that no activation is kept.

The first pass over the data finds the largest magnitude of each input channel, the second a histogram of each layer's
input up to it. A layer's step is the one that loses least of its input (mean squared error of rounding and clipping),
which may be far from the largest value: one in a million must not cost the others a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bolid_export.int8.quantised import LEVELS

Runs: TypeAlias = Sequence[Callable[[], Any]]

BINS = 4096
CANDIDATES = torch.linspace(0.1, 1.0, 91)
"""Clipping points that are tried, as fractions of the largest magnitude."""


def channel_peaks(layers: Mapping[str, nn.Module], runs: Runs) -> dict[str, Tensor]:
    """Largest magnitude [in] of each input channel of each layer over all runs. Layers that never ran are missing."""
    peaks: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor) -> None:
        found = _by_channel(layers[name], x).abs().amax(1)
        peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

    _run(layers, runs, watch)
    return peaks


def input_scales(layers: Mapping[str, nn.Module], peaks: Mapping[str, Tensor], runs: Runs) -> dict[str, float]:
    """The best step of each layer's input; `peaks` as `channel_peaks` finds them on the same runs."""
    tops = {name: max(float(peak.max()), 1e-12) for name, peak in peaks.items()}
    histograms = {name: torch.zeros(BINS, dtype=torch.float64) for name in tops}

    def watch(name: str, x: Tensor) -> None:
        histograms[name] += torch.histc(x.detach().float().abs(), BINS, 0.0, tops[name])

    _run(layers, runs, watch)
    return {name: best_step(histogram, tops[name]) for name, histogram in histograms.items()}


def best_step(histogram: Tensor, top: float) -> float:
    """The step of least squared error for magnitudes in [0, top] with this `histogram` [BINS]."""
    centres = (torch.arange(len(histogram)) + 0.5) * (top / len(histogram))
    steps = (CANDIDATES * top / LEVELS)[:, None]
    errors = (steps * (centres / steps).round().clamp(max=LEVELS) - centres) ** 2
    return float(steps[(errors.double() @ histogram).argmin()])


def _by_channel(layer: nn.Module, x: Tensor) -> Tensor:
    """[in, everything else]."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    return x.detach().float().movedim(axis, 0).flatten(1)


@torch.no_grad()
def _run(layers: Mapping[str, nn.Module], runs: Runs, watch: Callable[[str, Tensor], None]) -> None:
    with _hooks(layers, watch):
        for run in runs:
            run()


@contextmanager
def _hooks(layers: Mapping[str, nn.Module], watch: Callable[[str, Tensor], None]) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
