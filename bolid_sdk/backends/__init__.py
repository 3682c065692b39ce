"""What runs the graphs: one contract, one file for each backend, and the choice among those that are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError

Array: TypeAlias = NDArray[Any]


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

    def bind(self, constants: Mapping[str, Array]) -> Loop:
        """Uploads what stays the same over a loop."""


class Backend(Protocol):
    """A library on a device. Its constructor takes (device, threads) and raises BackendError."""

    @property
    def description(self) -> str:
        """Library, version and device, for people."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the choice of device."""

    def load(self, path: Path, spec: GraphSpec) -> Engine:
        """Raises BundleError when the file is damaged or has another signature, BackendError when it cannot run."""


@dataclass(frozen=True, kw_only=True)
class BackendEntry:
    """Where a backend lives and how to get it."""

    name: str
    module: str
    needs: str
    install: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None

    def open(self, device: str, threads: int | None) -> Backend:
        factory = cast(Callable[[str, int | None], Backend], importlib.import_module(self.module).open_backend)
        return factory(device, threads)


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
)
"""In the order in which `auto` tries them."""


def open_backend(name: str | None = None, device: str = "auto", threads: int | None = None) -> Backend:
    """Opens the backend `name`, or with None the first that is installed and works on `device`.

    `device` is "auto", "cpu", "cuda" or "cuda:N". Raises BackendError that names what there is and how to install it.
    """
    if threads is not None and threads < 1:
        raise BackendError(f"threads={threads} is unusable; expected at least 1, or None for one a core")
    if name is not None:
        return _entry(name).open(device, threads)
    failures = []
    for entry in BACKENDS:
        try:
            if entry.installed:
                return entry.open(device, threads)
        except BackendError as error:
            failures.append(f"{entry.name}: {error}")
    reasons = f" ({'; '.join(failures)})" if failures else ""
    raise BackendError(f"no backend works on device {device!r}{reasons}; {_what_there_is()}")


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
