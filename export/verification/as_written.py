"""ONNX Runtime without its optimiser: a graph is run as it is written.

For networks of gigabytes that are run a few times. SD1.5's float16 denoiser is optimised in 16 s, with 6.3 GB at the
peak, for runs of 3.0 s; as it is written it loads in 0.6 s, its weights stay in the mapped file, and it runs in 3.0 to
3.8 s with 4.0 GB. int8 needs the optimiser: a Q/DQ pair that is not fused with its layer reaches no integer kernel.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from bolid_sdk.backends.ort import OrtBackend


class AsWritten(OrtBackend):
    """On the CPU. Without memory patterns: with them the same runs reach 5.8 GB."""

    def __init__(self) -> None:
        super().__init__("cpu", 0, None)

    @property
    def description(self) -> str:
        return f"{super().description}, graphs as they are written"

    def _options(self) -> Any:
        options = super()._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_pattern = False
        return options
