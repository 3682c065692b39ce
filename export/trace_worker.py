"""Traces one graph in a process of its own: `python -m bolid_export.trace_worker REQUEST RESULT`.

REQUEST is what `bolid_export.trace_ahead` saves, RESULT a pickle of what it reads; nobody else's files are read. When
the exporter is killed its end of our standard input closes: then this process ends as well, and takes both along.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import torch

from bolid_export.stream import trace_apart


def main(request: str, result: str) -> None:
    files = Path(request), Path(result)
    Thread(target=_end_with_exporter, args=(files,), daemon=True).start()
    torch.set_num_threads(1)
    asked = torch.load(request, weights_only=False)
    traced = trace_apart(asked["graph"], **asked["options"])
    Path(result).write_bytes(pickle.dumps((traced.model.SerializeToString(), traced.weights)))


def _end_with_exporter(files: tuple[Path, Path]) -> None:
    # not sys.stdin: a process that ends by itself may not hold its lock
    os.read(0, 1)
    for file in files:
        file.unlink(missing_ok=True)
    with suppress(OSError):
        files[0].parent.rmdir()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
