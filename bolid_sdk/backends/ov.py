"""OpenVINO, on the CPU: each graph compiled for the shapes it meets, in bfloat16 where that is safe and supported."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias, cast

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from bolid_sdk.backends import NO_ENGINES, Array, Backend, Engine, Loop, Tensor
from bolid_sdk.built_engine import EngineFile
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError, BundleError, InputError

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]

RECYCLED_OUTPUT = "next_sample"
"""Nobody reads a sample once the next but one exists, so its memory serves again."""

PIXEL_GRAPHS = frozenset({"denoiser", "denoiser_shallow", "pose_guider", "vae_decoder"})
"""What only pixels come from may run in bfloat16. Keypoints are measured, identities are stored and shared with other
backends, text runs once a prompt: these stay float32."""

MAX_COMPILED = 8
"""Compiled sizes kept for each graph."""


class OvTensor:
    """An OpenVINO tensor behind the Tensor protocol. Keeps the NumPy array whose memory it shares, if any."""

    def __init__(self, value: Any, owner: Array | None = None) -> None:
        self.value, self._owner = value, owner

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def numpy(self) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self.value.data.copy())


class OvLoop:
    """An infer request of its own; inputs and outputs are shared with the runtime, never copied."""

    def __init__(self, engine: OvEngine, constants: Mapping[str, Array]) -> None:
        self._engine = engine
        self._held = {name: _share(array) for name, array in constants.items()}
        self._compiled: Any = None
        self._request: Any = None
        self._spares: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Raises InputError for missing or unknown inputs, BackendError for shapes and types that do not fit."""
        self._held |= {name: value if isinstance(value, OvTensor) else _share(value) for name, value in inputs.items()}
        try:
            self._prepare(self._engine.compiled(self._held))
            outputs = {port.any_name: self._bind_output(port) for port in self._compiled.outputs}
            for name, tensor in self._held.items():
                self._request.set_tensor(name, tensor.value)
            self._request.infer()
        except RuntimeError as error:
            raise BackendError(f"openvino cannot run {self._engine.name}: {_reason(error)}") from error
        if RECYCLED_OUTPUT in outputs:
            self._spares.append(outputs[RECYCLED_OUTPUT])
        return {name: OvTensor(value) for name, value in outputs.items()}

    def _prepare(self, compiled: Any) -> None:
        if compiled is not self._compiled:
            self._compiled, self._request, self._spares = compiled, compiled.create_infer_request(), []

    def _bind_output(self, port: Any) -> Any:
        recycled = port.any_name == RECYCLED_OUTPUT and len(self._spares) == 2
        tensor = self._spares.pop(0) if recycled else ov.Tensor(port.element_type, port.shape)
        self._request.set_tensor(port.any_name, tensor)
        return tensor


class OvEngine:
    """A graph and the sizes it has been compiled for. Safe to share between threads."""

    def __init__(self, core: Any, model: Any, spec: GraphSpec, options: Mapping[str, Any]) -> None:
        self._core, self._model, self.spec, self._options = core, model, spec, options
        self._compiled: OrderedDict[Shapes, Future[Any]] = OrderedDict()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self.spec.name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.bind({}).run(inputs).items()}

    def bind(self, constants: Mapping[str, Array]) -> Loop:
        return OvLoop(self, constants)

    def compiled(self, inputs: Mapping[str, Tensor]) -> Any:
        """The model for these shapes; two callers that ask at once share one compilation. Raises InputError."""
        if set(inputs) != set(self.spec.input_names):
            expected = list(self.spec.input_names)
            raise InputError(f"{self.name} was given the inputs {sorted(inputs)}; expected {expected}")
        shapes = tuple((name, inputs[name].shape) for name in self.spec.input_names)
        future, ours = self._claim(shapes)
        if ours:
            self._fulfil(future, shapes)
        return future.result()

    def _claim(self, shapes: Shapes) -> tuple[Future[Any], bool]:
        """The future of a compilation, and whether the caller has to carry it out."""
        with self._lock:
            known = self._compiled.get(shapes)
            future = self._compiled[shapes] = known or Future()
            self._compiled.move_to_end(shapes)
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return future, known is None

    def _fulfil(self, future: Future[Any], shapes: Shapes) -> None:
        try:
            model = self._model.clone()
            model.reshape({name: list(shape) for name, shape in shapes})
            future.set_result(self._core.compile_model(model, "CPU", dict(self._options)))
        # Whatever it is, those who wait for this compilation have to hear of it, and the next caller may try again.
        except BaseException as error:
            with self._lock:
                self._compiled.pop(shapes, None)
            future.set_exception(error)
            raise


class OvBackend:
    """The CPU plugin. Compiled graphs are cached on disk, keyed by OpenVINO: content, shapes, options and version."""

    def __init__(self, threads: int | None) -> None:
        self._core, self._threads = ov.Core(), threads
        self._bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._cache, self.notices = _cache_folder()

    @property
    def description(self) -> str:
        precision = "bfloat16" if self._bfloat16 else "float32"
        return f"openvino {ov.__version__.partition('-')[0]} on cpu, {precision}"

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise BundleError(
                f"{path} cannot be loaded by {self.description}: {_reason(error)}; check the bundle with bolid-doctor"
            ) from error
        _check_signature(model, spec, path)
        return OvEngine(self._core, model, spec, self._options(spec.name))

    def _options(self, graph: str) -> dict[str, Any]:
        precision = "bf16" if self._bfloat16 and graph in PIXEL_GRAPHS else "f32"
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        if self._cache is not None:
            options["CACHE_DIR"] = str(self._cache)
        return options


def open_backend(device: str, threads: int | None) -> Backend:
    """Interprets `device`: "auto" or "cpu". Raises BackendError."""
    if device not in ("auto", "cpu"):
        raise BackendError(f"openvino runs on the CPU here, not on {device!r}; ask for device='cpu', or onnxruntime")
    return OvBackend(threads)


def _share(array: Any) -> OvTensor:
    # OpenVINO shares only memory that it could write to.
    owner = np.require(array, requirements=["C", "W"])
    return OvTensor(ov.Tensor(owner, shared_memory=True), owner)


def _cache_folder() -> tuple[Path | None, tuple[str, ...]]:
    """BOLID_CACHE_DIR, or the user's cache folder; None and a notice where it cannot be written."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bolid-sdk"
    folder = Path(os.environ.get("BOLID_CACHE_DIR") or user).expanduser() / "openvino" / ov.__version__
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder, ()
    except (OSError, RuntimeError) as error:
        return None, (f"compiled graphs are not cached: {error}; set BOLID_CACHE_DIR to a writable folder",)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[-300:] or type(error).__name__


def _check_signature(model: Any, spec: GraphSpec, path: Path) -> None:
    for kind, found, expected in (
        ("inputs", model.inputs, spec.input_names),
        ("outputs", model.outputs, spec.output_names),
    ):
        names = [port.any_name for port in found]
        if set(names) != set(expected):
            raise BundleError(
                f"{path.name} has the {kind} {names}; the manifest promises {list(expected)}: export the bundle again"
            )
