"""Traces graphs in a process of its own: `python -m bolid_export.tracing.worker FOLDER`, the other side of `ahead`.

Nobody else's files are read. When the exporter is killed its end of our standard input closes: then this process ends
as well, and takes its files along.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import torch
from transformers import PreTrainedModel

from bolid_export.graphs import Graph
from bolid_export.tracing.ahead import claim, request_file, result_file
from bolid_export.tracing.stream import trace_apart


def main(folder: Path) -> None:
    ending = Thread(target=_end_with_exporter, args=(folder,), daemon=True)
    ending.start()
    torch.set_num_threads(1)
    try:
        asked = torch.load(request_file(folder), weights_only=False)
    except FileNotFoundError:
        # the exporter is gone, and what it asked with it: the rest is to follow before this process may end
        ending.join()
        raise
    for name, graph in asked["graphs"].items():
        if claim(folder, name):
            _make_known(graph)
            traced = trace_apart(graph, **asked["options"])
            partial = folder / f"{name}.partial"
            partial.write_bytes(pickle.dumps((traced.model.SerializeToString(), traced.weights)))
            partial.rename(result_file(folder, name))


def _make_known(graph: Graph) -> None:
    """transformers captures hidden states for classes of which a process has made a model; these have come by file."""
    for module in graph.modules():
        if isinstance(module, PreTrainedModel):
            with torch.device("meta"):
                type(module)(module.config)


def _end_with_exporter(folder: Path) -> None:
    # not sys.stdin: a process that ends by itself may not hold its lock
    os.read(0, 1)
    with suppress(OSError):
        for pattern in ("request", "*.claim", "*.partial", "*.result"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)
        folder.rmdir()
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
