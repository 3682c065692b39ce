"""What compare.py and the systems say to each other: a line of JSON for a picture, a line of JSON for its time.

Nothing here is imported from outside the standard library: a peer's environment has nothing of ours.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PROMPT = "a person standing on a beach at sunset, red shirt, blue trousers"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A square picture of `size` pixels; `guidance` of 1 is one branch, more are two."""

    size: int
    steps: int
    batch: int = 1
    guidance: float = 1.0
    seed: int = 7


def serve(draw: Callable[[Request], dict[str, Any] | None]) -> None:
    """Answers requests with seconds and peak memory, beside what `draw` returns. Libraries may not write between."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = Request(**json.loads(line))
        start = time.perf_counter()
        try:
            more = draw(request) or {}
            answer = {"seconds": time.perf_counter() - start, "rss_mb": peak_mb(), **more}
        except Exception as error:  # noqa: BLE001 - whatever a peer cannot do is a result
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


def peak_mb() -> int:
    """Largest resident memory so far, as Linux counts it."""
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - no imports more than needed
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM:"))
