"""OpenVINO, on the CPU: each graph compiled for the shapes it meets, in bfloat16 where that is safe and supported."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from bolid_sdk.backends import NO_ENGINES, Array, Backend, Engine, Loop, Tensor, wanted_outputs
from bolid_sdk.backends.blobs import open_blobs
from bolid_sdk.backends.ov_compiler import Compiled, OvCompiler, Shapes
from bolid_sdk.built_engine import EngineFile
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError, BundleError, InputError

RECYCLED_OUTPUT = "next_sample"
"""Nobody reads a sample once the next but one exists, so its memory serves again."""

PIXEL_GRAPHS = frozenset({"denoiser", "denoiser_shallow", "pose_guider", "vae_decoder"})
"""What only pixels come from may run in bfloat16. Keypoints are measured, identities are stored and shared with other
backends, text runs once a prompt: these stay float32."""

MAX_COMPILED, MAX_COMPILED_LARGE = 8, 2
"""Compiled sizes kept for each graph; a large one is back from the cache in seconds. Two: with and without guidance."""

LARGE = 1 << 29
"""Bytes of a graph on disk from which on what has been compiled is given up early."""

ONCE_A_PERSON = frozenset({"image_encoder"})
"""Large ones of these do not stay in memory, where they can be read from the cache again."""

PRECISIONS = ("bf16", "f32")


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
    """An infer request of its own; inputs and outputs are shared with the runtime, never copied.

    An output that nobody wants is computed all the same, into one place that belongs to the request.
    """

    def __init__(self, engine: OvEngine, constants: Mapping[str, Array], outputs: Collection[str]) -> None:
        self._engine, self._outputs = engine, outputs
        self._held = {name: _share(array) for name, array in constants.items()}
        self._unset: dict[str, OvTensor] = {}  # what the request has not been told yet: a run may fail before
        self._compiled: Compiled | None = None
        self._request: Any = None
        self._spares: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Raises InputError for missing or unknown inputs, BackendError for shapes and types that do not fit."""
        changed = {name: value if isinstance(value, OvTensor) else _share(value) for name, value in inputs.items()}
        self._held |= changed
        self._unset |= changed
        try:
            compiled = self._engine.compiled(self._held)
            self._prepare(compiled)
            wanted = [port for port in compiled.step.outputs if port.any_name in self._outputs]
            outputs = {port.any_name: self._bind_output(port) for port in wanted}
            self._request.infer()
        except RuntimeError as error:
            raise BackendError(f"openvino cannot run {self._engine.name}: {_reason(error)}") from error
        if RECYCLED_OUTPUT in outputs:
            self._spares.append(outputs[RECYCLED_OUTPUT])
        return {name: OvTensor(value) for name, value in outputs.items()}

    def _prepare(self, compiled: Compiled) -> None:
        """Sets the inputs that have changed, and what is computed of them."""
        if compiled is not self._compiled:
            self._compiled, self._request, self._spares = compiled, compiled.step.create_infer_request(), []
            self._unset = dict(self._held)
        _set_inputs(self._request, compiled.step, self._unset)
        if compiled.once is not None and any(port.get_names() & self._unset.keys() for port in compiled.once.inputs):
            request = compiled.once.create_infer_request()
            _set_inputs(request, compiled.once, self._held)
            request.infer()
            for port in compiled.once.outputs:
                self._request.set_tensor(port.any_name, request.get_tensor(port))
        self._unset = {}

    def _bind_output(self, port: Any) -> Any:
        recycled = port.any_name == RECYCLED_OUTPUT and len(self._spares) == 2
        tensor = self._spares.pop(0) if recycled else ov.Tensor(port.element_type, port.shape)
        self._request.set_tensor(port.any_name, tensor)
        return tensor


class OvEngine:
    """A graph and the sizes it has been compiled for. Safe to share between threads."""

    def __init__(self, compiler: OvCompiler, spec: GraphSpec) -> None:
        self._compiler, self.spec = compiler, spec
        large = compiler.size >= LARGE
        self._most = MAX_COMPILED_LARGE if large else MAX_COMPILED
        self._gives_up = large and compiler.caches and spec.name in ONCE_A_PERSON
        self._compiled: OrderedDict[Shapes, Future[Compiled]] = OrderedDict()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self.spec.name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = {name: value.numpy() for name, value in self.bind({}).run(inputs).items()}
        if self._gives_up:
            self._forget()
        return outputs

    def bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> Loop:
        return OvLoop(self, constants, wanted_outputs(self.spec, outputs))

    def _forget(self) -> None:
        with self._lock:
            self._compiled.clear()

    def compiled(self, inputs: Mapping[str, Tensor]) -> Compiled:
        """The model for these shapes; two callers that ask at once share one compilation. Raises InputError."""
        if set(inputs) != set(self.spec.input_names):
            expected = list(self.spec.input_names)
            raise InputError(f"{self.name} was given the inputs {sorted(inputs)}; expected {expected}")
        shapes = tuple((name, inputs[name].shape) for name in self.spec.input_names)
        future, ours = self._claim(shapes)
        if ours:
            self._fulfil(future, shapes)
        return future.result()

    def _claim(self, shapes: Shapes) -> tuple[Future[Compiled], bool]:
        """The future of a compilation, and whether the caller has to carry it out."""
        with self._lock:
            known = self._compiled.get(shapes)
            future = self._compiled[shapes] = known or Future()
            self._compiled.move_to_end(shapes)
            while len(self._compiled) > self._most:
                self._compiled.popitem(last=False)
            return future, known is None

    def _fulfil(self, future: Future[Compiled], shapes: Shapes) -> None:
        try:
            future.set_result(self._compiler.compile(shapes))
        # Whatever it is, those who wait for this compilation have to hear of it, and the next caller may try again.
        except BaseException as error:
            with self._lock:
                self._compiled.pop(shapes, None)
            future.set_exception(error)
            raise


class OvBackend:
    """The CPU plugin."""

    def __init__(self, threads: int | None, precision: str | None = None) -> None:
        self._core, self._threads = ov.Core(), threads
        self._bfloat16 = _use_bfloat16(self._core, precision)
        self._blobs, self.notices = open_blobs(ov.__version__)

    @property
    def description(self) -> str:
        precision = "bfloat16" if self._bfloat16 else "float32"
        return f"openvino {ov.__version__.partition('-')[0]} on cpu, {precision}"

    @property
    def bfloat16_graphs(self) -> frozenset[str]:
        """What is computed in bfloat16 here."""
        return PIXEL_GRAPHS if self._bfloat16 else frozenset()

    @property
    def caches(self) -> bool:
        """Whether compiled graphs are kept on disk."""
        return self._blobs is not None

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        try:
            return OvEngine(OvCompiler(self._core, path, spec, self._options(spec.name), self._blobs), spec)
        except (RuntimeError, OSError) as error:
            raise BundleError(
                f"{path} cannot be loaded by {self.description}: {_reason(error)}; check the bundle with bolid-doctor"
            ) from error

    def _options(self, graph: str) -> dict[str, Any]:
        precision = "bf16" if graph in self.bfloat16_graphs else "f32"
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        return options


def open_backend(device: str, threads: int | None) -> Backend:
    """Interprets `device`: "auto" or "cpu". BOLID_PRECISION is bf16 or f32. Raises BackendError."""
    if device not in ("auto", "cpu"):
        raise BackendError(f"openvino runs on the CPU here, not on {device!r}; ask for device='cpu', or onnxruntime")
    return OvBackend(threads, os.environ.get("BOLID_PRECISION") or None)


def _set_inputs(request: Any, model: Any, values: Mapping[str, OvTensor]) -> None:
    """Those that the model reads."""
    for port in model.inputs:
        for name in port.get_names() & values.keys():
            request.set_tensor(port, values[name].value)


def _share(array: Any) -> OvTensor:
    # OpenVINO shares only memory that it could write to.
    owner = np.require(array, requirements=["C", "W"])
    return OvTensor(ov.Tensor(owner, shared_memory=True), owner)


def _use_bfloat16(core: Any, precision: str | None) -> bool:
    """Where the processor has it, unless somebody wants it otherwise. Raises BackendError."""
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision not in (None, *PRECISIONS):
        raise BackendError(f"BOLID_PRECISION={precision!r} is unknown; expected {' or '.join(PRECISIONS)}")
    if precision == "bf16" and not able:
        raise BackendError(
            "BOLID_PRECISION=bf16, but this processor has no bfloat16 arithmetic; use f32, or leave it out"
        )
    return able and precision != "f32"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[-300:] or type(error).__name__
