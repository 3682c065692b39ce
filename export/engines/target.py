"""What engines are built for: the library here, certain GPUs, and ranges of sizes."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from types import ModuleType

from bolid_export.engines.shapes import Range, Shapes, resolve_shapes
from bolid_sdk.backends.cuda_device import open_device
from bolid_sdk.contracts import Sizes
from bolid_sdk.errors import BackendError, InputError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The library of each backend."""

DEFAULT_BATCH = "1:1:4"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What TensorRT engines may be on top; TensorRT-RTX has none of it, at least not without a GPU."""

    version_compatible: bool = False
    """Later versions of the same major one load the engine."""
    hardware_compatible: bool = False
    """All GPUs from Ampere (8.0) on run it, at the price of some speed."""
    refit: bool = False
    """The adapter's weights can be exchanged in the built engine."""

    @property
    def chosen(self) -> list[str]:
        """As the command line spells them."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value]


@dataclass(frozen=True, kw_only=True)
class EngineTarget:
    """`runtime` is the library with its version, `compute_capabilities` such as "8.9", as an engine's key has them."""

    backend: str
    runtime: str
    compute_capabilities: tuple[str, ...]
    shapes: Shapes
    options: BuildOptions = field(default_factory=BuildOptions)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """An EngineTarget as the command line has it, before the model and its sizes are known. Sides in pixels."""

    backend: str
    runtime: str
    compute_capabilities: tuple[str, ...]
    batch: Range
    size: Range | None
    options: BuildOptions

    @classmethod
    def parse(
        cls,
        backend: str,
        compute_capabilities: str | None,
        batch: str | None,
        size: str | None,
        options: BuildOptions | None = None,
    ) -> EngineRequest:
        """Raises BackendError without the library or a GPU that it needs, InputError for what cannot be built."""
        options = options or BuildOptions()
        require_library(backend)
        if backend == "tensorrt-rtx" and options.chosen:
            raise InputError(
                f"{', '.join(options.chosen)} is for --backend tensorrt; TensorRT-RTX builds without a GPU, and cannot "
                "do it then"
            )
        return cls(
            backend=backend,
            runtime=runtime_name(backend) + "+" * options.version_compatible,
            compute_capabilities=_compute_capabilities(backend, compute_capabilities, options),
            batch=Range.parse(DEFAULT_BATCH if batch is None else batch, "--batch"),
            size=None if size is None else Range.parse(size, "--size"),
            options=options,
        )

    def resolve(self, sizes: Sizes) -> EngineTarget:
        """Raises InputError for sides that the model cannot draw."""
        return EngineTarget(
            backend=self.backend,
            runtime=self.runtime,
            compute_capabilities=self.compute_capabilities,
            shapes=resolve_shapes(self.batch, self.size, sizes),
            options=self.options,
        )


def require_library(backend: str) -> ModuleType:
    """The library. Raises BackendError when it is missing."""
    hint = f"pip install 'bolid-sdk[export,{backend}]'"
    if importlib.util.find_spec(MODULES[backend]) is None:
        raise BackendError(f"{backend}, which builds the engines, is not installed: {hint}")
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{backend}, which builds the engines, cannot be imported ({error}): {hint}") from error


def runtime_name(backend: str) -> str:
    """The library and its version: "tensorrt 10.16.1.11"."""
    return f"{backend} {require_library(backend).__version__}"


def _compute_capabilities(backend: str, text: str | None, options: BuildOptions) -> tuple[str, ...]:
    if backend == "tensorrt-rtx":
        return parse_compute_capabilities(text)
    return _own_compute_capability(text, options)


def _own_compute_capability(text: str | None, options: BuildOptions) -> tuple[str, ...]:
    """TensorRT measures kernels on the GPU that it builds for: the one here. Raises BackendError, InputError."""
    try:
        device = open_device(0)
    except BackendError as error:
        raise BackendError(
            f"TensorRT builds engines on the GPU that they are for, and {error}; --backend tensorrt-rtx builds without "
            "one"
        ) from error
    if text is not None and text.strip() != device.capability:
        raise InputError(
            f"--compute-capability {text} is not that of the GPU here, {device}: TensorRT builds only for that one; "
            "leave the option out, or use --backend tensorrt-rtx"
        )
    return ("8.0+",) if options.hardware_compatible else (device.capability,)


def parse_compute_capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.9,12.0" in ascending order, each once. Raises InputError that lists what TensorRT-RTX can build for."""
    known = known_compute_capabilities()
    there_is = f"there is {', '.join(known)}, several separated by commas (an RTX 4090 is 8.9)"
    given = {part.strip() for part in (text or "").split(",")} - {""}
    if not given:
        raise InputError(f"tensorrt-rtx engines are for certain GPUs: name them with --compute-capability; {there_is}")
    if unknown := sorted(given - set(known)):
        raise InputError(f"compute capability {', '.join(unknown)} is unknown; {there_is}")
    return tuple(name for name in known if name in given)


def known_compute_capabilities() -> tuple[str, ...]:
    """What TensorRT-RTX builds for without a GPU, ascending: SM89 is 8.9."""
    import tensorrt_rtx

    # besides these there are NONE, and CURRENT, which asks a GPU
    numbers = [name[2:] for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(map(int, numbers)))
