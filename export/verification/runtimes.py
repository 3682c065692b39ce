"""The runtime's libraries that verify an export, and what is accepted of each.

ONNX Runtime computes in float32. OpenVINO computes what only pixels come from in bfloat16, where the processor has it:
8 bits of a number instead of 24, three less than float16. Measured on a Zen 4: the avatar's denoiser has a cosine of
0.99995 and an error of 1 %, its decoder 2.3 %, the picture 53 dB; a UNet of true size 2.3 %; a tiny one of random
weights 0.9989 and 5.1 %. So a graph is allowed more than in float16, and the picture as much.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bolid_export.precision import Precision
from bolid_export.verification.as_written import AsWritten
from bolid_export.verify import LIMITS, Limits
from bolid_sdk.backends import Backend, open_backend

ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"

BFLOAT16 = replace(LIMITS["fp16"], cosine=0.998, relative_error=8e-2)


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
