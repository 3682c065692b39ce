"""What an export would do, before it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bolid_export.engine_target import EngineTarget
from bolid_export.graphs import Graph, bind_graphs
from bolid_export.package import default_sampling
from bolid_export.precision import POLICY
from bolid_export.quantise import GRAPHS as QUANTISED_GRAPHS
from bolid_export.shapes import graph_profile
from bolid_export.sources import Source, model_sizes
from bolid_export.to_tensorrt import engine_file
from bolid_sdk.contracts import Sizes
from bolid_sdk.manifest import capabilities

# In fp32 and fp16 alike, as long as the checkpoint's weights are float16.
BYTES, INT8_BYTES = 2, 1


def plan(source: Source, precision: str, folder: Path, engines: EngineTarget | None = None) -> dict[str, Any]:
    """Target, sizes, sampling defaults, each graph's parameters and approximate bytes, and engines to be built."""
    sizes = model_sizes(source.checkpoint)
    graphs = bind_graphs(source.checkpoint, sizes)
    return {
        "model": source.name,
        "decisions": source.decisions,
        "capabilities": capabilities(graphs, sizes),
        "precision": precision,
        "bundle": str(folder),
        "sizes": sizes.to_dict(),
        "sampling": vars(default_sampling(source.checkpoint)),
        "float32_islands": [name for name in POLICY if name in graphs] if precision == "fp16" else [],
        "graphs": {name: _graph(graph, precision) for name, graph in graphs.items()},
        "engines": _engines(engines, graphs, sizes) if engines else None,
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
    decisions = [f"  {what + ':':<19}{decision}" for what, decision in planned["decisions"].items()]
    beyond = ", ".join(planned["capabilities"]) or "nothing"
    return "\n".join(
        [
            title,
            *rows,
            *(_engine_lines(planned["engines"]) if planned["engines"] else []),
            "decisions:",
            *decisions,
            f"  {'capabilities:':<19}{beyond}, beyond a person and a prompt",
        ]
    )


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


def _graph(graph: Graph, precision: str) -> dict[str, int]:
    parameters = sum(tensor.numel() for tensor in _used(graph).parameters())
    quantised = precision == "int8" and graph.spec.name in QUANTISED_GRAPHS
    return {"parameters": parameters, "bytes": parameters * (INT8_BYTES if quantised else BYTES)}


def _used(graph: Graph) -> Any:
    """Half of an autoencoder, when that is what the graph runs."""
    half = {"vae_encoder": "encoder", "vae_decoder": "decoder"}.get(graph.spec.name)
    return getattr(graph.network, half) if half else graph.network
