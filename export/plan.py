"""What an export would do, before it does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bolid_export.calibrate import PROMPTS
from bolid_export.engines.shapes import graph_profile
from bolid_export.engines.target import EngineTarget
from bolid_export.estimate import estimate, work_of
from bolid_export.graphs import Graph, bind_graphs
from bolid_export.int8.quantise import GRAPHS as QUANTISED_GRAPHS
from bolid_export.package import default_sampling
from bolid_export.precision import POLICY, Precision
from bolid_export.room import available_memory, existing, gigabytes, temporary_folder
from bolid_export.scratch import scratch_place
from bolid_export.sources import Source, model_sizes
from bolid_export.to_tensorrt import engine_file
from bolid_export.verification.effort import choose_effort
from bolid_sdk.contracts import Sizes
from bolid_sdk.manifest import capabilities

HALF, FLOAT, INT8 = 2, 4, 1
"""Bytes of a weight on disk. In fp32 as well, weights that are float16 stay so (`bolid_export.tracing.compact`)."""

BESIDE_WEIGHTS = 20 * 10**6
"""Nodes of the graphs, stored answers, tokenizers: a bound, the avatar's are 4 MB."""

LOOKED_AT = 4096
"""Values of a tensor that tell whether it is float16: of one that is not, hardly any fit."""


def plan(
    source: Source,
    precision: Precision,
    folder: Path,
    engines: EngineTarget | None = None,
    *,
    runtimes: tuple[str, ...] = ("onnxruntime",),
    gate: bool = False,
) -> dict[str, Any]:
    """Target, sizes, sampling defaults, each graph's parameters and approximate bytes, and engines to be built; how it
    will be verified; the disk it needs, by folder, and estimates of its time and memory."""
    sizes, sampling = model_sizes(source.checkpoint), default_sampling(source.checkpoint)
    graphs = bind_graphs(source.checkpoint, sizes)
    effort = choose_effort(graphs, sizes, pictures=len(PROMPTS), steps=sampling.steps)
    described = {name: _graph(graph, precision) for name, graph in graphs.items()}
    return {
        "model": source.name,
        "decisions": source.decisions,
        "capabilities": capabilities(graphs, sizes),
        "precision": precision,
        "bundle": str(folder),
        "sizes": sizes.to_dict(),
        "sampling": vars(sampling),
        "float32_islands": [name for name in POLICY if name in graphs] if precision == "fp16" else [],
        "graphs": described,
        "engines": _engines(engines, graphs, sizes) if engines else None,
        "verified_by": runtimes,
        "effort": effort.summary(),
        "estimate": estimate(work_of(graphs, sizes, effort, precision)).to_dict(),
        "available_memory_bytes": available_memory(),
        "disk": _disk(folder, sum(graph["bytes"] for graph in described.values()), engines is not None, gate),
    }


def plan_text(planned: dict[str, Any]) -> str:
    """The plan for a terminal."""
    rows = [
        f"  {name:<17}{graph['parameters'] / 1e6:8.2f} M parameters{graph['bytes'] / 1e6:9.1f} MB"
        for name, graph in planned["graphs"].items()
    ]
    total = sum(graph["bytes"] for graph in planned["graphs"].values()) / 1e6
    engines = " and engines" if planned["engines"] else ""
    title = (
        f"{planned['model']} in {planned['precision']} would be written to {planned['bundle']}, about "
        f"{total:.0f} MB{engines}:"
    )
    return "\n".join(
        [
            title,
            *rows,
            *(_engine_lines(planned["engines"]) if planned["engines"] else []),
            "needed:",
            *_line_each(_needed(planned)),
            "decisions:",
            *_line_each(planned["decisions"] | _own_decisions(planned)),
        ]
    )


def _line_each(said: Mapping[str, str]) -> list[str]:
    return [f"  {what + ':':<19}{text}" for what, text in said.items()]


def _needed(planned: dict[str, Any]) -> dict[str, str]:
    guess = planned["estimate"]
    about = f"within a factor of {guess['within_a_factor_of']}"
    besides = [name for name in ("openvino",) if name in planned["verified_by"]]
    besides += ["the engines"] if planned["engines"] else []
    time = f"about {_duration(guess['seconds'])} on {guess['machine']}, {about}"
    available = planned["available_memory_bytes"]
    here = "" if available is None else f"; {gigabytes(available)} are available here"
    return {
        "time": time + (f", without {' and '.join(besides)}" if besides else ""),
        "memory": f"about {gigabytes(guess['memory_bytes'])}, {about}{here}",
        "disk": ", ".join(f"{gigabytes(count)} in {place}" for place, count in planned["disk"].items()),
    }


def _own_decisions(planned: dict[str, Any]) -> dict[str, str]:
    effort = planned["effort"]
    few = "; no more, since the model is large" if effort["reduced"] else ""
    pictures = f"pictures: {effort['pictures']} of {effort['width']} x {effort['height']}, {effort['steps']} steps{few}"
    beyond = ", ".join(planned["capabilities"]) or "nothing"
    islands = {"float32 islands": ", ".join(planned["float32_islands"])} if planned["float32_islands"] else {}
    return {
        "verified by": ", ".join(planned["verified_by"]),
        "verified with": pictures,
        **islands,
        "capabilities": f"{beyond}, beyond a person and a prompt",
    }


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _disk(folder: Path, graphs: int, engines: bool, gate: bool) -> dict[str, int]:
    """Bytes by folder: what is written before it is verified, and the bundle, which links to it on the same disk."""
    # an engine holds the weights again
    bundle = (2 if engines else 1) * graphs + BESIDE_WEIGHTS
    target, scratch = existing(folder.parent), scratch_place(folder)
    needed = Counter({str(scratch): bundle})
    if scratch.stat().st_dev != target.stat().st_dev:
        needed[str(target)] += bundle
    if gate:
        needed[str(temporary_folder())] += bundle
    return dict(needed)


def _engines(target: EngineTarget, graphs: dict[str, Graph], sizes: Sizes) -> dict[str, Any]:
    return {
        "runtime": target.runtime,
        "options": target.options.chosen,
        "compute_capabilities": target.compute_capabilities,
        "shapes": str(target.shapes),
        "graphs": {
            name: {"file": engine_file(name, target.backend), "shapes": graph_profile(graph.spec, target.shapes, sizes)}
            for name, graph in graphs.items()
        },
    }


def _engine_lines(engines: dict[str, Any]) -> list[str]:
    capabilities = ", ".join(engines["compute_capabilities"])
    title = f"engines of {engines['runtime']} for compute capability {capabilities}, for {engines['shapes']}"
    title += f" ({', '.join(engines['options'])}):" if engines["options"] else ":"
    return [title, *(f"  {graph['file']}" for graph in engines["graphs"].values())]


def _graph(graph: Graph, precision: Precision) -> dict[str, int]:
    weights = list(_used(graph).parameters())
    quantised = precision == "int8" and graph.spec.name in QUANTISED_GRAPHS
    size = sum(tensor.numel() * (INT8 if quantised else _bytes(tensor, precision)) for tensor in weights)
    return {"parameters": sum(tensor.numel() for tensor in weights), "bytes": size}


def _bytes(tensor: Tensor, precision: Precision) -> int:
    if precision == "fp16" or tensor.dtype == torch.float16:
        return HALF
    some = tensor.detach().flatten()[:LOOKED_AT]
    return HALF if torch.equal(some.half().float(), some) else FLOAT


def _used(graph: Graph) -> nn.Module:
    """Half of an autoencoder, when that is what the graph runs."""
    half = {"vae_encoder": "encoder", "vae_decoder": "decoder"}.get(graph.spec.name)
    return getattr(graph.network, half) if half else graph.network
