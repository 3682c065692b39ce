"""TensorRT 10 and 11 and TensorRT-RTX: engines that a bundle brings along, on a GPU, in captured CUDA graphs.

What differs between the three is asked for by name (`hasattr`); everything else is what they share.
"""

from __future__ import annotations

import importlib
import os
import re
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import NO_ENGINES, Array, Backend, Engine, Loop, Tensor, wanted_outputs
from bolid_sdk.backends.cuda_device import Buffer, Device, Graph, Stream, open_device
from bolid_sdk.built_engine import EngineFile, Shape
from bolid_sdk.contracts import GraphSpec, TensorSpec
from bolid_sdk.errors import BackendError, BundleError, InputError

Shapes: TypeAlias = tuple[Shape, ...]
"""Of each input, in the order of the graph's signature."""

MAX_PLANS = 8
"""Shapes of each engine that keep their buffers and captured graph, for every caller at a time."""

CUDA_GRAPHS = "BOLID_CUDA_GRAPHS"
"""Environment variable; 0 launches every kernel by itself, to find out whether a fault lies in captured graphs."""


class TrtTensor:
    """An output on the device. Its memory serves again once nobody holds it."""

    def __init__(self, buffer: Buffer, shape: Shape, dtype: np.dtype[Any], stream: Stream) -> None:
        self.buffer, self.stream = buffer, stream
        self._shape, self._dtype = shape, dtype

    @property
    def shape(self) -> Shape:
        return self._shape

    def numpy(self) -> NDArray[np.float32]:
        self.stream.device.activate()
        host = np.empty(self._shape, self._dtype)
        self.stream.download(host, self.buffer)
        self.stream.synchronize()
        return cast(NDArray[np.float32], host)


@dataclass(kw_only=True)
class Plan:
    """What one set of shapes needs, at addresses that never change: a captured graph repeats them.

    It has a context of its own, as NVIDIA advises for captured graphs: another shape would change what a graph finds.
    """

    context: Any
    inputs: Mapping[str, Buffer]
    outputs: Mapping[str, Buffer]
    shapes: Mapping[str, Shape]
    """Of the outputs."""
    runs: int = 0
    graph: Graph | None = None
    spares: Mapping[str, list[Buffer]] = field(default_factory=dict)
    """Memory of outputs that nobody holds any more."""


class Session:
    """A stream and the plans on it, for one caller at a time. All plans share the memory for activations."""

    def __init__(self, engine: TrtEngine) -> None:
        self.engine, self.stream = engine, engine.device.create_stream()
        self._plans: OrderedDict[Shapes, Plan] = OrderedDict()
        self._workspace: Buffer | None = None

    def plan(self, shapes: Shapes) -> Plan:
        """Raises InputError for shapes that the engine was not built for, BackendError without memory."""
        found = self._plans.get(shapes) or self._new_plan(shapes)
        self._plans[shapes] = found
        self._plans.move_to_end(shapes)
        while len(self._plans) > MAX_PLANS:
            self.stream.synchronize()
            self._plans.popitem(last=False)
        return found

    def execute(self, plan: Plan) -> None:
        """The first run of a plan is its warm-up, the second one captures, all later ones replay."""
        if plan.graph is None and plan.runs > 0 and self.engine.captures:
            plan.graph = self._capture(plan)
        plan.runs += 1
        if plan.graph is not None:
            self.stream.launch(plan.graph)
        else:
            self._enqueue(plan)

    def _enqueue(self, plan: Plan) -> None:
        if not plan.context.execute_async_v3(self.stream.handle):
            raise BackendError(f"{self.engine.name} did not run: {self.engine.log()}")

    def _capture(self, plan: Plan) -> Graph | None:
        try:
            return self.stream.capture(lambda: self._enqueue(plan))
        except BackendError as error:
            self.engine.give_up_captures(error)
            return None

    def _new_plan(self, shapes: Shapes) -> Plan:
        engine, spec = self.engine, self.engine.spec
        context = engine.create_context()
        for tensor, shape in zip(spec.inputs, shapes, strict=True):
            if not context.set_input_shape(tensor.name, shape):
                raise InputError(f"{engine.name} does not take {tensor.name} {list(shape)}: {engine.log()}")
        self._provide_workspace(context)
        outputs = {tensor.name: self._output_shape(context, tensor.name) for tensor in spec.outputs}
        plan = Plan(
            context=context,
            inputs={t.name: self._allocate(t, shape) for t, shape in zip(spec.inputs, shapes, strict=True)},
            outputs={t.name: self._allocate(t, outputs[t.name]) for t in spec.outputs},
            shapes=outputs,
            spares={name: [] for name in outputs},
        )
        for name, buffer in {**plan.inputs, **plan.outputs}.items():
            context.set_tensor_address(name, buffer.address)
        return plan

    def _provide_workspace(self, context: Any) -> None:
        """Grown to the largest plan so far. Graphs hold its address, so growing it ends the plans that there are."""
        needed = max(int(context.update_device_memory_size_for_shapes()), 1)
        if self._workspace is None or self._workspace.size < needed:
            self.stream.synchronize()
            self._plans.clear()
            self._workspace = None  # freed before the larger one is asked for
            self._workspace = self.engine.device.allocate(needed)
        context.set_device_memory(self._workspace.address, self._workspace.size)

    def _output_shape(self, context: Any, name: str) -> Shape:
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=1) < 0:
            raise BackendError(f"{self.engine.name} does not know the shape of {name}: {self.engine.log()}")
        return shape

    def _allocate(self, tensor: TensorSpec, shape: Shape) -> Buffer:
        return self.engine.device.allocate(max(int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize, 1))


class TrtLoop:
    """A session that belongs to this loop while it lives. Constants are uploaded once for each set of shapes."""

    def __init__(
        self, engine: TrtEngine, session: Session, constants: Mapping[str, Array], outputs: Collection[str]
    ) -> None:
        self._engine, self._session, self._constants = engine, session, dict(constants)
        self._outputs = [tensor for tensor in engine.spec.outputs if tensor.name in outputs]
        self._plan: Plan | None = None

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Raises InputError for missing or unknown inputs and unfit shapes, BackendError when the device fails."""
        plan = self._prepare(inputs)
        self._session.execute(plan)
        return {tensor.name: self._output(plan, tensor) for tensor in self._outputs}

    def run_to_host(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, without a copy on the device in between."""
        plan = self._prepare(inputs)
        self._session.execute(plan)
        stream = self._session.stream
        outputs = {t.name: np.empty(plan.shapes[t.name], np.dtype(t.dtype)) for t in self._engine.spec.outputs}
        for name, array in outputs.items():
            stream.download(array, plan.outputs[name])
        stream.synchronize()
        return outputs

    def _prepare(self, inputs: Mapping[str, Tensor | Array]) -> Plan:
        """Fills the input buffers of the plan for these shapes."""
        self._engine.device.activate()
        plan = self._session.plan(self._engine.check_inputs({**self._constants, **inputs}))
        given = dict(inputs) if plan is self._plan else {**self._constants, **inputs}
        self._plan = plan
        # the driver reads pageable memory at some time before `synchronize`: these copies have to live until then
        sources = [self._fill(plan.inputs[tensor.name], given[tensor.name], tensor) for tensor in self._filled(given)]
        if any(source is not None for source in sources):
            self._session.stream.synchronize()
        return plan

    def _filled(self, given: Mapping[str, Tensor | Array]) -> list[TensorSpec]:
        return [tensor for tensor in self._engine.spec.inputs if tensor.name in given]

    def _fill(self, target: Buffer, value: Tensor | Array, tensor: TensorSpec) -> Array | None:
        """The host array that is being read, if any."""
        stream = self._session.stream
        if not isinstance(value, TrtTensor):
            source = np.ascontiguousarray(value, tensor.dtype)
            stream.upload(target, source)
            return source
        if value.stream is not stream:
            value.stream.synchronize()
        stream.copy(target, value.buffer)
        if value.stream is not stream:
            stream.synchronize()
        return None

    def _output(self, plan: Plan, tensor: TensorSpec) -> TrtTensor:
        """A copy on the device, for the next run writes to the same address: microseconds for a latent."""
        spares, source = plan.spares[tensor.name], plan.outputs[tensor.name]
        buffer = spares.pop() if spares else self._engine.device.allocate(source.size)
        self._session.stream.copy(buffer, source)
        output = TrtTensor(buffer, plan.shapes[tensor.name], np.dtype(tensor.dtype), self._session.stream)
        weakref.finalize(output, spares.append, buffer)
        return output


class TrtEngine:
    """A deserialised engine. Callers that run at the same time get a session each, which later callers find again."""

    def __init__(self, backend: TrtBackend, cuda_engine: Any, spec: GraphSpec, file: EngineFile) -> None:
        self.device, self.spec = backend.device, spec
        self._backend, self._cuda_engine, self._file = backend, cuda_engine, file
        self._idle: list[Session] = []
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def captures(self) -> bool:
        """Whether to capture CUDA graphs here; TensorRT-RTX has a strategy of its own for it."""
        return self._backend.captures

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._bind({}).run_to_host(inputs)

    def bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> Loop:
        return self._bind(constants, outputs)

    def _bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> TrtLoop:
        self.device.activate()
        with self._lock:
            session = self._idle.pop() if self._idle else None
        session = session or Session(self)
        loop = TrtLoop(self, session, constants, wanted_outputs(self.spec, outputs))
        # list.append is atomic, so no lock: a finaliser may run while this thread holds it
        weakref.finalize(loop, self._idle.append, session)
        return loop

    def create_context(self) -> Any:
        """With activations in memory of ours, so that plans can share it. Raises BackendError."""
        trt, strategy = self._backend.library, self._backend.library.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self._cuda_engine, "create_runtime_config"):
            config = self._cuda_engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if hasattr(config, "cuda_graph_strategy") and self._backend.cuda_graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        else:
            config = strategy
        with self._lock:
            context = self._cuda_engine.create_execution_context(config)
        if context is None:
            raise BackendError(f"{self.name} cannot be prepared to run on {self.device}: {self.log()}")
        return context

    def check_inputs(self, inputs: Mapping[str, Tensor | Array]) -> Shapes:
        """Raises InputError for missing or unknown inputs and for shapes that the engine was not built for."""
        if set(inputs) != set(self.spec.input_names):
            expected = list(self.spec.input_names)
            raise InputError(f"{self.spec.name} was given the inputs {sorted(inputs)}; expected {expected}")
        shapes = {name: tuple(inputs[name].shape) for name in self.spec.input_names}
        self._file.key.check_shapes(shapes, self.name)
        return tuple(shapes.values())

    def log(self) -> str:
        return str(self._backend.log.last())

    def give_up_captures(self, error: BackendError) -> None:
        self._backend.give_up_captures(f"CUDA graphs of {self.name} cannot be captured, so steps start slower: {error}")


class TrtBackend:
    """One of the two libraries on one GPU. Deserialising runs what an engine contains: its hash is checked first."""

    def __init__(self, library: Any, name: str, device: Device) -> None:
        self.library, self.name, self.device = library, name, device
        self.cuda_graphs = os.environ.get(CUDA_GRAPHS, "1") != "0"
        self.captures = self.cuda_graphs and not hasattr(library, "CudaGraphStrategy")
        self.log = _log(library)
        self._runtime = library.Runtime(self.log)
        self._notices: list[str] = []
        self._lock = Lock()

    @property
    def description(self) -> str:
        return f"{self.runtime} on {self.device}"

    @property
    def runtime(self) -> str:
        """As in an engine's key."""
        return f"{self.name} {self.library.__version__}"

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(self._notices)

    def load(self, path: Path, spec: GraphSpec, engines: Mapping[str, EngineFile] = NO_ENGINES) -> Engine:
        file = engines.get(self.name)
        if file is None:
            raise BundleError(
                f"{path.parent} has no {self.name} engine of {spec.name}: export it with bolid-export --backend "
                f"{self.name} --compute-capability {self.device.capability}, or use backend 'onnxruntime'"
            )
        self.check_engine(file)
        cuda_engine = self._deserialise(file)
        _check_signature(self.library, cuda_engine, spec, file.name)
        return TrtEngine(self, cuda_engine, spec, file)

    def check_engine(self, file: EngineFile) -> None:
        file.key.check_runtime(self.runtime, self.device.capability, file.name)

    def give_up_captures(self, notice: str) -> None:
        self.captures = False
        self._notices.append(notice)

    def _deserialise(self, file: EngineFile) -> Any:
        content = file.read()
        self.device.activate()
        with self._lock:
            self._check_validity(content, file.name)
            # such an engine brings code for the host along: allowed for this one, whose hash is right
            self._runtime.engine_host_code_allowed = file.key.runtime.endswith("+")
            cuda_engine = self._runtime.deserialize_cuda_engine(content)
        if cuda_engine is None:
            raise BundleError(f"{file.name} cannot be loaded by {self.description}: {self.log.last()}")
        return cuda_engine

    def _check_validity(self, content: bytes, name: str) -> None:
        """TensorRT-RTX tells beforehand why an engine cannot run."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(content)
        if validity == self.library.EngineValidity.INVALID:
            known = self.library.EngineInvalidityDiagnostics.__members__.items()
            reasons = [reason for reason, bit in known if int(diagnostics) & int(bit)]
            raise BundleError(
                f"{name} cannot run on {self.device} with {self.runtime}: {', '.join(reasons) or 'no reason given'}; "
                f"export the bundle again here, or use backend 'onnxruntime'"
            )


def open_tensorrt(device: str, threads: int | None) -> Backend:
    """Raises BackendError. `threads` is for CPUs."""
    return _open("tensorrt", "tensorrt", device)


def open_tensorrt_rtx(device: str, threads: int | None) -> Backend:
    """Raises BackendError. `threads` is for CPUs."""
    return _open("tensorrt-rtx", "tensorrt_rtx", device)


def _open(name: str, module: str, device: str) -> Backend:
    """Interprets `device`: "auto", "cuda" or "cuda:N"."""
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"{name} runs on NVIDIA GPUs, not on {device!r}; ask for device='cuda', or onnxruntime")
    # before the library: its Runtime ends the process where there is no driver
    gpu = open_device(int(match[1] or 0))
    return TrtBackend(_import_library(name, module), name, gpu)


def _import_library(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{name} cannot be imported ({error}): pip install 'bolid-sdk[{name}]'") from error


def _log(library: Any) -> Any:
    """The library's last errors instead of lines on stderr: they become part of the exception."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(" ".join(msg.split())[-300:])

        def last(self) -> str:
            return " | ".join(self._errors) or "the library gives no reason"

    return Log()


def _check_signature(trt: Any, cuda_engine: Any, spec: GraphSpec, name: str) -> None:
    """Raises BundleError when names or dtypes differ from the manifest's."""
    found: dict[Any, dict[str, np.dtype[Any]]] = {trt.TensorIOMode.INPUT: {}, trt.TensorIOMode.OUTPUT: {}}
    for i in range(cuda_engine.num_io_tensors):
        tensor = cuda_engine.get_tensor_name(i)
        found[cuda_engine.get_tensor_mode(tensor)][tensor] = np.dtype(trt.nptype(cuda_engine.get_tensor_dtype(tensor)))
    for mode, tensors in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs)):
        expected = {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}
        if found[mode] != expected:
            raise BundleError(
                f"{name} has {mode.name.lower()}s {_signature(found[mode])}; the manifest promises "
                f"{_signature(expected)}: export the bundle again"
            )


def _signature(tensors: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(tensors.items()))
