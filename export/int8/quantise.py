"""int8 for the layers of a graph that bear it: policy, smoothing, ranges, then a search for the sensitive ones.

Own hooks instead of a library's calibrator: they stream (a UNet needs its weights once and one sample's activations),
they see modules by the names that the report uses, and the result is a PyTorch network, which is searched, verified and
traced like the others. Quantisers of finished ONNX graphs (onnxruntime's, NNCF's) turn tensors of all layers into
outputs to look at, and know a layer as a node.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bolid_export.graphs import Graph
from bolid_export.int8.quantised import quantisable, quantised
from bolid_export.int8.ranges import channel_peaks, input_scales
from bolid_export.int8.sensitivity import Sample, multiply_adds, sensitive_layers
from bolid_export.int8.smoothing import smooth
from bolid_export.precision import Island

GRAPHS = ("denoiser", "denoiser_shallow", "vae_decoder")
"""Where the time goes, and nothing but pixels comes from: keypoints are measured, identities are stored and shared. The
pose guider runs once a picture, and its features reach every step: little to gain, a pose to lose."""

BUDGET = 0.04
"""Error of a graph's worst output that the search aims at, relative to the output's deviation."""

POLICY = {
    r"(^|\.)(conv_in|conv_out)$": "first and last convolution: few channels, little work, and no layer to repair it",
    r"(^|\.)(time_embedding|time_emb_proj|add_embedding)(\.|$)": "time embedding: one row a step",
    r"\.(attn2\.to_[kv]|to_[kv]_ip)$": "reads conditioning tokens: little work, and their range is up to the user",
}

ENDS = ("vae_decoder",)
"""Graphs whose first and last convolution have no telling names."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The graph with `layers` int8 layers; `kept` stayed float32; `work` is the int8 share of the multiply-adds of all
    linear layers and convolutions; `error` is relative, as `BUDGET`."""

    graph: Graph
    layers: int
    kept: list[Island]
    work: float
    error: float

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"graph": self.graph.spec.name, "layers": self.layers, "work": self.work, "error": self.error}


@torch.no_grad()
def quantise(
    graph: Graph, calibration: Sequence[Sample], held_out: Sequence[Sample], budget: float = BUDGET
) -> Quantised:
    """`graph` in int8, a copy that shares what it does not change.

    Ranges come from `calibration`; what the search accepts is measured on `held_out`.
    """
    copied = _sharing(graph)
    runs = [lambda sample=sample: copied(*sample) for sample in calibration]
    layers = {name: module for name, module in copied.network.named_modules() if quantisable(module)}
    peaks = channel_peaks(layers, runs)
    kept = dict(_policy(graph.spec.name, list(peaks)))
    work = multiply_adds(copied, {name: layers[name] for name in peaks}, held_out[0])
    peaks = {name: peak for name, peak in peaks.items() if name not in kept}
    if not graph.hot_layers:  # these read the same activations, and their matrices come too late for the factors
        peaks = smooth(copied.network, peaks)
    scales = input_scales({name: layers[name] for name in peaks}, peaks, runs)
    candidates = {name: quantised(layers[name], scale) for name, scale in scales.items()}
    sensitive, error = sensitive_layers(copied, candidates, work, held_out, budget)
    chosen = {name: module for name, module in candidates.items() if name not in sensitive}
    for name, module in chosen.items():
        copied.network.set_submodule(name, module)
    return Quantised(
        graph=copied,
        layers=len(chosen),
        kept=_islands(graph.spec.name, kept | sensitive),
        work=sum(work[name] for name in chosen) / sum(work.values()),
        error=error,
    )


def _sharing(graph: Graph) -> Graph:
    """A copy with modules of its own and the same tensors: a network need not be in memory twice."""
    return copy.deepcopy(graph, {id(tensor): tensor for tensor in (*graph.parameters(), *graph.buffers())})


def _policy(graph: str, names: Sequence[str]) -> Iterable[tuple[str, str]]:
    """`names` in the order in which they run."""
    ends = {names[0], names[-1]} if graph in ENDS else set()
    for name in names:
        for pattern, reason in POLICY.items():
            if re.search(pattern, name):
                yield name, reason
        if name in ends:
            yield name, next(iter(POLICY.values()))


def _islands(graph: str, reasons: dict[str, str]) -> list[Island]:
    return [Island(graph=graph, module=f"network.{name}", reason=reason) for name, reason in reasons.items()]
