"""Traces one graph in a process of its own: `python -m bolid_export.trace_worker REQUEST RESULT`.

REQUEST is what `bolid_export.trace_ahead` saves, RESULT a pickle of what it reads; nobody else's files are read.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from bolid_export.stream import trace_apart


def main(request: str, result: str) -> None:
    torch.set_num_threads(1)
    asked = torch.load(request, weights_only=False)
    traced = trace_apart(asked["graph"], **asked["options"])
    Path(result).write_bytes(pickle.dumps((traced.model.SerializeToString(), traced.weights)))


if __name__ == "__main__":
    main(*sys.argv[1:])
