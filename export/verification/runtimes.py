"""The runtime's libraries that verify an export, and what is accepted of each.

ONNX Runtime computes in float32. OpenVINO computes what only pixels come from in bfloat16, where the processor has it:
8 bits of a number instead of 24. Its measured cosines are 0.99998 and more, its error in a UNet of true size 2.3 %
(docs/architecture.md); networks of random weights whose activations are rounded likewise have a cosine of 0.9995, an
error of 4 %, and a picture at 43 dB. So what float16 graphs are allowed, whose numbers have 11 bits, fits these, too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from bolid_export.precision import Precision
from bolid_export.verification.as_written import AsWritten
from bolid_export.verify import LIMITS, Limits
from bolid_sdk.backends import Backend, open_backend

ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"

BFLOAT16 = LIMITS["fp16"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A backend on this CPU; `limits` for graphs that it computes in float32, `bfloat16` names the others."""

    name: str
    backend: Backend
    limits: Limits
    bfloat16: frozenset[str] = field(default_factory=frozenset)

    def limits_of(self, graph: str) -> Limits:
        """What is accepted of a graph."""
        return loosest(self.limits, BFLOAT16) if graph in self.bfloat16 else self.limits

    @property
    def loop_limits(self) -> Limits:
        """What is accepted of the picture, to which all graphs add their share."""
        return loosest(self.limits, BFLOAT16) if self.bfloat16 else self.limits

    def summary(self, graphs: Collection[str]) -> dict[str, Any]:
        """For the manifest's report: the library, and its limits; `bfloat16` are those of `graphs` that it lowers."""
        summary = {"library": self.backend.description, "limits": asdict(self.limits)}
        if lowered := sorted(self.bfloat16.intersection(graphs)):
            summary |= {"bfloat16": lowered, "bfloat16_limits": asdict(self.loop_limits)}
        return summary


def open_runtime(name: str, precision: Precision, *, few_runs: bool = False) -> Runtime:
    """`few_runs`: of large graphs, which are not worth optimising. Raises BackendError, with how to install it, for a
    library that is missing."""
    as_written = few_runs and name == ONNX_RUNTIME and precision != "int8"
    backend = AsWritten() if as_written else open_backend(name, "cpu")
    return Runtime(name=name, backend=backend, limits=LIMITS[precision], bfloat16=bfloat16_graphs(backend))


def bfloat16_graphs(backend: Backend) -> frozenset[str]:
    """Of the backends, OpenVINO's alone has any."""
    return getattr(backend, "bfloat16_graphs", frozenset())


def loosest(one: Limits, other: Limits) -> Limits:
    """Accepts what either accepts."""
    return Limits(
        cosine=min(one.cosine, other.cosine),
        relative_error=max(one.relative_error, other.relative_error),
        psnr=min(one.psnr, other.psnr),
        ssim=min(one.ssim, other.ssim),
    )
