"""What runs the graphs: one contract, one file for each backend, and the choice among those that are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.built_engine import EngineFile
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError

Array: TypeAlias = NDArray[Any]

NO_ENGINES: Mapping[str, EngineFile] = {}


class Tensor(Protocol):
    """A value on a backend's device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> NDArray[np.float32]:
        """A copy on the host."""


class Loop(Protocol):
    """One caller's repeated runs of an engine. It belongs to that caller: other threads make their own."""

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Runs the graph with the bound constants and these inputs. Outputs stay on the device.

        `next_sample` may be overwritten two runs later; every other output keeps its value.
        """


class Engine(Protocol):
    """A loaded graph. Safe to share between threads."""

    @property
    def spec(self) -> GraphSpec:
        """Its name, inputs and outputs."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once, host to host."""

    def bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> Loop:
        """Uploads what stays the same over a loop; `outputs` are those that its runs give, all of them without."""


def wanted_outputs(spec: GraphSpec, outputs: Collection[str] | None) -> tuple[str, ...]:
    """The graph's outputs that are among `outputs`, in its own order; all of them for None."""
    return tuple(name for name in spec.output_names if outputs is None or name in outputs)


class Backend(Protocol):
    """A library on a device. Its constructor takes (device, threads) and raises BackendError."""

    @property
    def description(self) -> str:
        """Library, version and device, for people."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the choice of device."""

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        """The graph of the ONNX file `path`, or what was built from it: `engines` by the backend that they are for.

        Raises BundleError when the file is damaged, has another signature or was built for something else,
        BackendError when it cannot run.
        """


class EngineBackend(Protocol):
    """What an ahead-of-time backend is on top of a Backend: its engines are for one version of a library, on certain
    devices."""

    def check_engine(self, file: EngineFile) -> None:
        """Raises BundleError, with what was found, what is here and what to do, when the engine is for others."""


@dataclass(frozen=True, kw_only=True)
class BackendEntry:
    """Where a backend lives and how to get it."""

    name: str
    module: str
    needs: str
    install: str
    also_needs: tuple[str, ...] = ()
    factory: str = "open_backend"
    """A function of `module`: (device, threads) -> Backend."""
    ahead_of_time: bool = False
    """Runs only engines that a bundle brings along, no ONNX graphs."""

    @property
    def installed(self) -> bool:
        return all(_is_installed(module) for module in (self.needs, *self.also_needs))

    def open(self, device: str, threads: int | None) -> Backend:
        """Raises BackendError."""
        factory = getattr(self._import(), self.factory)
        return cast(Callable[[str, int | None], Backend], factory)(device, threads)

    def _import(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        # libraries fail as they like: with a missing shared object, for another NumPy, for this processor
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"{self.name} is installed but cannot be imported ({error}); install it again: {self.install}"
            ) from error


BACKENDS: tuple[BackendEntry, ...] = (
    BackendEntry(
        name="onnxruntime",
        module="bolid_sdk.backends.ort",
        needs="onnxruntime",
        install="pip install onnxruntime (or onnxruntime-gpu)",
    ),
    BackendEntry(
        name="openvino",
        module="bolid_sdk.backends.ov",
        needs="openvino",
        install="pip install 'bolid-sdk[openvino]'",
    ),
    BackendEntry(
        name="tensorrt",
        module="bolid_sdk.backends.trt",
        needs="tensorrt",
        also_needs=("cuda.bindings",),
        install="pip install 'bolid-sdk[tensorrt]'",
        factory="open_tensorrt",
        ahead_of_time=True,
    ),
    BackendEntry(
        name="tensorrt-rtx",
        module="bolid_sdk.backends.trt",
        needs="tensorrt_rtx",
        also_needs=("cuda.bindings",),
        install="pip install 'bolid-sdk[tensorrt-rtx]'",
        factory="open_tensorrt_rtx",
        ahead_of_time=True,
    ),
)
"""In the order in which `auto` tries them, after those for which a bundle brings engines along."""


def open_backend(
    name: str | None = None, device: str = "auto", threads: int | None = None, *, built: Collection[str] = ()
) -> Backend:
    """Opens the backend `name`, or with None the first that is installed and works on `device`.

    `device` is "auto", "cpu", "cuda" or "cuda:N". `built` are backends for which a bundle has engines: without a name
    these are tried first, and it is a notice when they do not work. Raises BackendError that names what there is and
    how to install it.
    """
    if threads is not None and threads < 1:
        raise BackendError(f"threads={threads} is unusable; expected at least 1, or None for one a core")
    if name is not None:
        return _entry(name).open(device, threads)
    failures: dict[str, str] = {}
    for entry in _candidates(device, built):
        try:
            return _with_notices(_opened(entry, device, threads), [failures[b] for b in built if b in failures])
        except BackendError as error:
            failures[entry.name] = f"{entry.name}: {error}"
    reasons = f" ({'; '.join(failures.values())})" if failures else ""
    raise BackendError(f"no backend works on device {device!r}{reasons}; {_what_there_is()}")


@dataclass(frozen=True, kw_only=True)
class _Noticed:
    """A backend, with something to say about why it is this one."""

    backend: Backend
    reasons: tuple[str, ...]

    @property
    def description(self) -> str:
        return self.backend.description

    @property
    def notices(self) -> tuple[str, ...]:
        return (*self.reasons, *self.backend.notices)

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        return self.backend.load(path, spec, engines)


def _with_notices(backend: Backend, failures: list[str]) -> Backend:
    if not failures:
        return backend
    reasons = tuple(f"the bundle's engines are not used, {failure}" for failure in failures)
    return _Noticed(backend=backend, reasons=reasons)


def _candidates(device: str, built: Collection[str]) -> list[BackendEntry]:
    """Those that have engines, unless the CPU was asked for; then those that read ONNX graphs and are installed."""
    first = [entry for entry in BACKENDS if entry.name in built and device != "cpu"]
    return first + [entry for entry in BACKENDS if not entry.ahead_of_time and entry.installed]


def _opened(entry: BackendEntry, device: str, threads: int | None) -> Backend:
    if not entry.installed:
        raise BackendError(f"not installed: {entry.install}")
    return entry.open(device, threads)


def _is_installed(module: str) -> bool:
    """Like find_spec, which raises when a parent is missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _entry(name: str) -> BackendEntry:
    found = [entry for entry in BACKENDS if entry.name == name]
    if not found:
        raise BackendError(f"unknown backend {name!r}; {_what_there_is()}")
    if not found[0].installed:
        raise BackendError(f"backend {name!r} is not installed: {found[0].install}; {_what_there_is()}")
    return found[0]


def _what_there_is() -> str:
    installed = [entry.name for entry in BACKENDS if entry.installed]
    others = [f"{entry.name} ({entry.install})" for entry in BACKENDS if not entry.installed]
    available = f"installed: {', '.join(installed) or 'none'}"
    return f"{available}; to be had: {', '.join(others)}" if others else available
