"""What an export would do, before it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bolid_export.graphs import Graph, bind_graphs
from bolid_export.package import default_sampling
from bolid_export.precision import POLICY
from bolid_export.sources import Source, model_sizes

# In either precision, as long as the checkpoint's weights are float16.
BYTES = 2


def plan(source: Source, precision: str, folder: Path) -> dict[str, Any]:
    """Target, sizes, sampling defaults, and each graph's parameters and approximate bytes."""
    sizes = model_sizes(source.checkpoint)
    graphs = bind_graphs(source.checkpoint, sizes)
    return {
        "model": source.name,
        "precision": precision,
        "bundle": str(folder),
        "sizes": sizes.to_dict(),
        "sampling": vars(default_sampling(source.checkpoint)),
        "float32_islands": [name for name in POLICY if name in graphs] if precision == "fp16" else [],
        "graphs": {name: _graph(graph) for name, graph in graphs.items()},
    }


def plan_text(planned: dict[str, Any]) -> str:
    """The plan for a terminal."""
    rows = [
        f"  {name:<17}{graph['parameters'] / 1e6:8.2f} M parameters{graph['bytes'] / 1e6:9.1f} MB"
        for name, graph in planned["graphs"].items()
    ]
    total = sum(graph["bytes"] for graph in planned["graphs"].values()) / 1e6
    title = (
        f"{planned['model']} in {planned['precision']} would be written to {planned['bundle']}, about {total:.0f} MB:"
    )
    return "\n".join([title, *rows])


def _graph(graph: Graph) -> dict[str, int]:
    parameters = sum(tensor.numel() for tensor in _used(graph).parameters())
    return {"parameters": parameters, "bytes": parameters * BYTES}


def _used(graph: Graph) -> Any:
    """Half of an autoencoder, when that is what the graph runs."""
    half = {"vae_encoder": "encoder", "vae_decoder": "decoder"}.get(graph.spec.name)
    return getattr(graph.network, half) if half else graph.network
