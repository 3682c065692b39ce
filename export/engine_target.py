"""What engines are built for: the library here, the GPUs of others, and ranges of sizes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from bolid_export.shapes import Range, Shapes, resolve_shapes
from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import BackendError, InputError

BACKEND = "tensorrt-rtx"
DEFAULT_BATCH = "1:1:4"


@dataclass(frozen=True, kw_only=True)
class EngineTarget:
    """`runtime` is the library with its version; `compute_capabilities` are such as "8.9"."""

    runtime: str
    compute_capabilities: tuple[str, ...]
    shapes: Shapes


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """An EngineTarget as the command line has it, before the model and its sizes are known. Sides in pixels."""

    runtime: str
    compute_capabilities: tuple[str, ...]
    batch: Range
    size: Range | None

    @classmethod
    def parse(cls, compute_capabilities: str | None, batch: str | None, size: str | None) -> EngineRequest:
        """Raises BackendError without the library, InputError for what cannot be built."""
        return cls(
            runtime=require_library(),
            compute_capabilities=parse_compute_capabilities(compute_capabilities),
            batch=Range.parse(DEFAULT_BATCH if batch is None else batch, "--batch"),
            size=None if size is None else Range.parse(size, "--size"),
        )

    def resolve(self, sizes: Sizes) -> EngineTarget:
        """Raises InputError for sides that the model cannot draw."""
        shapes = resolve_shapes(self.batch, self.size, sizes)
        return EngineTarget(runtime=self.runtime, compute_capabilities=self.compute_capabilities, shapes=shapes)


def require_library() -> str:
    """The library and its version. Raises BackendError when it is missing."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise BackendError(
            "tensorrt-rtx, which builds the engines, is not installed: pip install 'bolid-sdk[export,tensorrt-rtx]'"
        )
    import tensorrt_rtx

    return f"{BACKEND} {tensorrt_rtx.__version__}"


def parse_compute_capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.9,12.0" in ascending order, each once. Raises InputError that lists what the library can build for."""
    known = known_compute_capabilities()
    there_is = f"there is {', '.join(known)}, several separated by commas (an RTX 4090 is 8.9)"
    given = {part.strip() for part in (text or "").split(",")} - {""}
    if not given:
        raise InputError(f"{BACKEND} engines are for certain GPUs: name them with --compute-capability; {there_is}")
    if unknown := sorted(given - set(known)):
        raise InputError(f"compute capability {', '.join(unknown)} is unknown; {there_is}")
    return tuple(name for name in known if name in given)


def known_compute_capabilities() -> tuple[str, ...]:
    """What the library builds for without a GPU, ascending: SM89 is 8.9."""
    import tensorrt_rtx

    # besides these there are NONE, and CURRENT, which asks a GPU
    numbers = [name[2:] for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(map(int, numbers)))
