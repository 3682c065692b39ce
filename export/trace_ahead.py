"""Tracing beside other work: it takes one core a minute and no weights, so another process does it meanwhile."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
import torch

from bolid_export.graphs import Graph
from bolid_export.stand_ins import without_weights
from bolid_export.stream import Traced

# -P: a file of the user's working folder may be called like a module
WORKER = (sys.executable, "-P", "-m", "bolid_export.trace_worker")


class TraceAhead:
    """Begins at once; as a context it ends the process with the block. `options` are those of `trace_apart`."""

    def __init__(self, graph: Graph, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bolid-trace-")
        self._request, self._result = (Path(self._folder.name) / name for name in ("request", "result"))
        torch.save({"graph": without_weights(graph), "options": options}, self._request)
        # the pipe is how it learns that this process has ended, however that came
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*WORKER, self._request, self._result], **streams)

    def __enter__(self) -> TraceAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()
        self._folder.cleanup()

    def result(self) -> Traced | None:
        """Waits. None, with a warning, when that process failed: whoever traces here then will see why."""
        if (status := self._process.wait()) != 0:
            warnings.warn(f"tracing in another process ended with {status}; it is done here again", stacklevel=2)
            return None
        content, weights = pickle.loads(self._result.read_bytes())
        return Traced(model=onnx.ModelProto.FromString(content), weights=weights)
