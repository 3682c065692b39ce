"""Tracing beside other work: it takes one core minutes, and no weights, so another process does it meanwhile."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from bolid_export.graphs import Graph
from bolid_export.tracing.stand_ins import without_weights
from bolid_export.tracing.stream import Traced

# -P: a file of the user's working folder may be called like a module
WORKER = (sys.executable, "-P", "-m", "bolid_export.tracing.worker")

POLL_SECONDS = 0.05


class TraceAhead:
    """Begins at once, with the first of `graphs`; as a context it ends the process with the block.

    `options` are those of `trace_apart`.
    """

    def __init__(self, graphs: Mapping[str, Graph], **options: Any) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="bolid-trace-")
        self._folder, self._names = Path(self._temporary.name), frozenset(graphs)
        bare = {name: without_weights(graph) for name, graph in graphs.items()}
        torch.save({"graphs": bare, "options": options}, request_file(self._folder))
        # the pipe is how it learns that this process has ended, however that came
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*WORKER, self._folder], **streams)

    def __enter__(self) -> TraceAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()
        self._temporary.cleanup()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, what PyTorch runs leaves the process a core, for as long as the process runs.

        Threads wait for one another at every operation, and one that has no core is waited for.
        """
        threads = torch.get_num_threads()

        def share(module: Any, args: Any) -> None:
            wanted = max(1, threads - 1) if self._process.poll() is None else threads
            if torch.get_num_threads() != wanted:
                torch.set_num_threads(wanted)

        hook = register_module_forward_pre_hook(share)
        try:
            yield
        finally:
            hook.remove()
            torch.set_num_threads(threads)

    def begun(self, name: str) -> bool:
        """Whether the process has come to that graph."""
        return claim_file(self._folder, name).exists()

    def result(self, name: str) -> Traced | None:
        """The traced graph, once it is there; None for one that the process has not begun, and does not begin any more.

        None, with a warning, when the process has failed: whoever traces here then will see why.
        """
        if name not in self._names:
            return None
        file, ours = result_file(self._folder, name), claim(self._folder, name)
        while not (ours or file.exists() or self._process.poll()):
            time.sleep(POLL_SECONDS)
        if not file.exists():
            if status := self._process.poll():
                warnings.warn(f"tracing in another process ended with {status}; it is done here", stacklevel=2)
            return None
        content, weights = pickle.loads(file.read_bytes())
        return Traced(model=onnx.ModelProto.FromString(content), weights=weights)


def claim_file(folder: Path, name: str) -> Path:
    """It is there when somebody has begun with a graph."""
    return folder / f"{name}.claim"


def request_file(folder: Path) -> Path:
    """What is to be traced, and how."""
    return folder / "request"


def result_file(folder: Path, name: str) -> Path:
    """Of one graph; it is there when it is whole."""
    return folder / f"{name}.result"


def claim(folder: Path, name: str) -> bool:
    """Whether the caller is the first to ask for a graph, and so the one that traces it."""
    try:
        claim_file(folder, name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
