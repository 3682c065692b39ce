"""ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bolid_sdk.backends import NO_ENGINES, Array, Backend, Engine, Loop, Tensor, wanted_outputs
from bolid_sdk.built_engine import EngineFile
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError, BundleError

RECYCLED_OUTPUT = "next_sample"
"""Nobody reads a sample once the next but one exists, so its memory serves again."""


class OrtTensor:
    """An OrtValue behind the Tensor protocol."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    def numpy(self) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self.value.numpy())


class OrtLoop:
    """An IO binding: constants are uploaded once, and what the loop carries never visits the host."""

    def __init__(self, engine: OrtEngine, constants: Mapping[str, Array], outputs: tuple[str, ...]) -> None:
        self._engine, self._outputs = engine, outputs
        self._binding = engine.session.io_binding()
        # A binding keeps addresses, not references: what it reads has to outlive the run.
        self._held: dict[str, Any] = {}
        self._spares: list[Any] = []
        with _failures_of(engine.name):
            for name, array in constants.items():
                self._bind_input(name, array)

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Raises BackendError."""
        with _failures_of(self._engine.name):
            for name, value in inputs.items():
                self._bind_input(name, value)
            for name in self._outputs:
                self._bind_output(name)
            self._engine.session.run_with_iobinding(self._binding)
            values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        if RECYCLED_OUTPUT in values:
            self._spares.append(values[RECYCLED_OUTPUT])
        return {name: OrtTensor(value) for name, value in values.items()}

    def _bind_input(self, name: str, value: Tensor | Array) -> None:
        held = value.value if isinstance(value, OrtTensor) else self._upload(cast(Array, value))
        self._binding.bind_ortvalue_input(name, held)
        self._held[name] = held

    def _bind_output(self, name: str) -> None:
        if name == RECYCLED_OUTPUT and len(self._spares) == 2:
            self._binding.bind_ortvalue_output(name, self._spares.pop(0))
        else:
            self._binding.bind_output(name, self._engine.device, self._engine.index)

    def _upload(self, array: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._engine.device, self._engine.index)


class OrtEngine:
    """An inference session. ONNX Runtime's sessions may run in several threads at once."""

    def __init__(self, session: Any, spec: GraphSpec, device: str, index: int) -> None:
        self.session, self.spec = session, spec
        self.device, self.index = device, index

    @property
    def name(self) -> str:
        return self.spec.name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError."""
        names = self.spec.output_names
        with _failures_of(self.name):
            return dict(zip(names, self.session.run(list(names), dict(inputs)), strict=True))

    def bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> Loop:
        return OrtLoop(self, constants, wanted_outputs(self.spec, outputs))


class OrtBackend:
    """`device` is "cpu" or "cuda"; `index` counts GPUs."""

    def __init__(self, device: str, index: int, threads: int | None, notices: tuple[str, ...] = ()) -> None:
        self.device, self.index, self.notices = device, index, notices
        self._threads = threads

    @property
    def description(self) -> str:
        place = "cpu" if self.device == "cpu" else f"{self.device}:{self.index}"
        return f"onnxruntime {ort.__version__} on {place}"

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        session = self._session(path)
        _check_signature(session, spec, path)
        self._check_provider(session)
        return OrtEngine(session, spec, self.device, self.index)

    def _session(self, path: Path) -> Any:
        try:
            return ort.InferenceSession(str(path), self._options(), providers=self._providers())
        # ONNX Runtime's exceptions share no base below Exception.
        except Exception as error:
            raise BundleError(
                f"{path} cannot be loaded by {self.description}: {_reason(error)}; check the bundle with bolid-doctor"
            ) from error

    def _options(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin steal the cores from the caller's own work between two pictures.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Signed Q/DQ reaches the integer kernels on x86 only with this.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        return options

    def _providers(self) -> list[Any]:
        if self.device == "cpu":
            return ["CPUExecutionProvider"]
        return [("CUDAExecutionProvider", {"device_id": self.index}), "CPUExecutionProvider"]

    def _check_provider(self, session: Any) -> None:
        """onnxruntime-gpu without a working CUDA runs on the CPU and says nothing."""
        if self.device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not start CUDA device {self.index} and would have used the CPU; check the driver "
                "and the CUDA and cuDNN versions, or ask for device='cpu'"
            )


def open_backend(device: str, threads: int | None) -> Backend:
    """Interprets `device`: "auto", "cpu", "cuda" or "cuda:N". Raises BackendError."""
    if device == "cpu":
        return OrtBackend("cpu", 0, threads)
    if device == "auto":
        return _best(threads)
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N")
    _require_cuda()
    backend = OrtBackend("cuda", int(match[1] or 0), threads)
    _probe(backend)
    return backend


def _best(threads: int | None) -> OrtBackend:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return OrtBackend("cpu", 0, threads)
    backend = OrtBackend("cuda", 0, threads)
    try:
        _probe(backend)
    except BackendError as error:
        return OrtBackend("cpu", 0, threads, notices=(f"running on the CPU: {error}",))
    return backend


def _require_cuda() -> None:
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise BackendError(
            f"this onnxruntime has no CUDA, only {', '.join(available)}; pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu, or ask for device='cpu'"
        )


def _probe(backend: OrtBackend) -> None:
    """Allocates on the GPU: the cheapest thing that fails without a driver."""
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", backend.index)
    except Exception as error:
        raise BackendError(f"CUDA device {backend.index} does not work ({_reason(error)})") from error


def _check_signature(session: Any, spec: GraphSpec, path: Path) -> None:
    for kind, found, expected in (
        ("inputs", session.get_inputs(), spec.input_names),
        ("outputs", session.get_outputs(), spec.output_names),
    ):
        names = [tensor.name for tensor in found]
        if set(names) != set(expected):
            raise BundleError(
                f"{path.name} has the {kind} {names}; the manifest promises {list(expected)}: export the bundle again"
            )


@contextmanager
def _failures_of(graph: str) -> Iterator[None]:
    """Raises BackendError for whatever ONNX Runtime raises inside."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"onnxruntime cannot run {graph}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
