"""A machine with a GPU that does not exist: CUDA and TensorRT by their Python interfaces, in host memory, recorded.

Device memory is host memory full of NaN, streams are queues that only run when somebody waits, a captured graph repeats
the addresses of its capture, and an "engine" is an ONNX graph run by ONNX Runtime. So what the backend does wrong with
addresses, order or lifetimes shows as a wrong number; what it does too often shows in the record.
"""

# ruff: noqa: N802, N815 - CUDA's names

import ctypes
import enum
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from threading import RLock
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from bolid_export.engines.shapes import Range, graph_profile, resolve_shapes
from bolid_sdk.built_engine import BuiltEngine, EngineKey
from bolid_sdk.bundle import file_sha256
from bolid_sdk.contracts import graph_specs
from bolid_sdk.manifest import GraphEntry

VERSION = "10.16.1.11"
CAPABILITY = "8.9"


class CopyKind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


CaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")


@dataclass(frozen=True)
class Call:
    """What was asked of the device; `size` in bytes, `stream` by number."""

    name: str
    size: int = 0
    stream: int = 0
    kind: str = ""


@dataclass(eq=False)
class FakeStream:
    number: int
    queue: list = field(default_factory=list)
    captured: list | None = None
    running: bool = False

    def __int__(self):
        return self.number


class FakeCuda:
    """`cuda.bindings.runtime`. Functions answer (error, value)."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode

    def __init__(self, devices=1, capability=CAPABILITY, error=0, memory=1 << 30):
        self.devices, self.capability, self.error, self.memory = devices, capability, error, memory
        self.breaks_captures = False
        self.calls, self.blocks, self.streams, self.graphs = [], {}, {}, 0
        self.lock = RLock()

    def count(self, name):
        return sum(call.name == name for call in self.calls)

    def cudaGetErrorName(self, code):
        names = {2: b"cudaErrorMemoryAllocation", 35: b"cudaErrorInsufficientDriver", 901: b"cudaErrorCaptureInvalid"}
        return 0, names[code]

    def cudaGetErrorString(self, code):
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient", 901: b"capture failed"}[code]

    def cudaGetDeviceCount(self):
        return (self.error, None) if self.error else (0, self.devices)

    def cudaGetDeviceProperties(self, index):
        major, minor = self.capability.split(".")
        return 0, SimpleNamespace(name=b"Imaginary GPU", major=int(major), minor=int(minor))

    def cudaSetDevice(self, index):
        return (0,)

    def cudaMalloc(self, size):
        with self.lock:
            if size + sum(block.nbytes for block in self.blocks.values()) > self.memory:
                return 2, None
            block = np.full(size, 0xFF, np.uint8)
            self.blocks[block.ctypes.data] = block
            self.calls.append(Call("malloc", size))
            return 0, block.ctypes.data

    def cudaFree(self, address):
        with self.lock:
            captures = [stream for stream in self.streams.values() if stream.captured is not None]
            assert not captures, "cudaFree ends captures"
            for stream in self.streams.values():
                self._drain(stream)
            self.blocks.pop(address)[:] = 0xFF
            self.calls.append(Call("free"))
            return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        with self.lock:
            stream = FakeStream(len(self.streams) + 1)
            self.streams[stream.number] = stream
            return 0, stream

    def cudaStreamDestroy(self, stream):
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        self.calls.append(Call("copy", size, int(stream), kind.name.removeprefix("cudaMemcpy")))
        if kind is not CopyKind.cudaMemcpyDeviceToHost:
            assert self.block(target).nbytes >= size
        if kind is not CopyKind.cudaMemcpyHostToDevice:
            assert self.block(source).nbytes >= size
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (0,)

    def cudaStreamSynchronize(self, stream):
        with self.lock:
            assert stream.captured is None, "a capture ends here"
            self.calls.append(Call("synchronize", stream=int(stream)))
            self._drain(stream)
            return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert int(stream) != 0
        assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
        stream.captured = []
        self.calls.append(Call("capture", stream=int(stream)))
        return (0,)

    def cudaStreamEndCapture(self, stream):
        captured, stream.captured = stream.captured, None
        return (901, None) if self.breaks_captures else (0, captured)

    def cudaGraphInstantiate(self, graph, flags):
        return 0, tuple(graph)

    def cudaGraphDestroy(self, graph):
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        return (0,)

    def cudaGraphLaunch(self, graph, stream):
        self.calls.append(Call("launch", stream=int(stream)))
        for work in graph:
            self.enqueue(stream, work)
        return (0,)

    def enqueue(self, stream, work):
        (stream.queue if stream.captured is None else stream.captured).append(work)

    def block(self, address):
        """Live memory that was allocated at this very address."""
        return self.blocks[address]

    def _drain(self, stream):
        """In order, even when the garbage collector frees memory in the middle of it."""
        if stream.running:
            return
        stream.running = True
        while stream.queue:
            stream.queue.pop(0)()
        stream.running = False


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Strategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeLogger:
    Severity = Severity


class FakeContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.shapes, self.addresses, self.workspace = {}, {}, None

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self):
        return 64 * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, address, size):
        assert self.engine.cuda.block(address).nbytes >= size >= self.update_device_memory_size_for_shapes()
        self.workspace = address

    def get_tensor_shape(self, name):
        zeros = {t.name: np.zeros(self.shapes[t.name], self.engine.dtypes[t.name]) for t in self.engine.inputs}
        return self.engine.session.run([name], zeros)[0].shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        cuda, engine, addresses, workspace = self.engine.cuda, self.engine, dict(self.addresses), self.workspace
        assert stream_handle != 0, "the default stream"
        inputs = {t.name: self._view(addresses[t.name], t.name, self.shapes[t.name]) for t in engine.inputs}

        def work():
            cuda.block(workspace)
            for name, value in zip(engine.outputs, engine.session.run(list(engine.outputs), inputs), strict=True):
                ctypes.memmove(addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)

        cuda.calls.append(Call("execute", stream=stream_handle, kind=engine.name))
        cuda.enqueue(cuda.streams[stream_handle], work)
        return True

    def _view(self, address, name, shape):
        return self.engine.cuda.block(address)[: self._bytes(name, shape)].view(self.engine.dtypes[name]).reshape(shape)

    def _bytes(self, name, shape):
        return int(np.prod(shape)) * self.engine.dtypes[name].itemsize


class FakeEngine:
    def __init__(self, cuda, content, trt):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.cuda, self.trt = cuda, trt
        self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_modelmeta().graph_name
        self.inputs, self.outputs = self.session.get_inputs(), [t.name for t in self.session.get_outputs()]
        kinds = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
        self.dtypes = {t.name: kinds[t.type] for t in [*self.inputs, *self.session.get_outputs()]}
        self.names = [*(t.name for t in self.inputs), *self.outputs]
        self.num_io_tensors = len(self.names)
        self.contexts = []

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.INPUT

    def get_tensor_dtype(self, name):
        return self.dtypes[name]

    def create_runtime_config(self):
        config = SimpleNamespace(strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        if hasattr(self.trt, "CudaGraphStrategy"):
            config.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        return config

    def create_execution_context(self, config):
        assert config.strategy is Strategy.USER_MANAGED
        self.contexts.append(FakeContext(self, config))
        return self.contexts[-1]


class FakeRuntime:
    def __init__(self, cuda, trt, log):
        self.cuda, self.trt, self.log = cuda, trt, log
        self.engine_host_code_allowed = False
        if hasattr(trt, "EngineValidity"):
            self.get_engine_validity = lambda content: (trt.validity, 2 | 4)

    def deserialize_cuda_engine(self, content):
        self.trt.deserialised.append(content)
        try:
            self.trt.engines.append(FakeEngine(self.cuda, content, self.trt))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no base
            self.log.log(Severity.ERROR, f"not an engine: {type(error).__name__}")
            return None
        return self.trt.engines[-1]


def fake_tensorrt(cuda, rtx):
    trt = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = VERSION
    trt.deserialised, trt.engines, trt.runtimes = [], [], 0
    trt.ILogger, trt.TensorIOMode, trt.ExecutionContextAllocationStrategy = FakeLogger, TensorIOMode, Strategy
    trt.nptype = lambda dtype: dtype
    if rtx:
        trt.CudaGraphStrategy = CudaGraphStrategy
        trt.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"], start=0)
        trt.EngineInvalidityDiagnostics = enum.IntEnum("Diagnostics", {"VERSION": 1, "UNSUPPORTED_CC": 2, "OLD": 4})
        trt.validity = trt.EngineValidity.VALID

    def runtime(log):
        trt.runtimes += 1
        return FakeRuntime(cuda, trt, log)

    trt.Runtime = runtime
    return trt


@dataclass(frozen=True)
class Machine:
    cuda: FakeCuda
    tensorrt: ModuleType
    rtx: ModuleType


@pytest.fixture
def machine(monkeypatch):
    cuda = FakeCuda()
    made = Machine(cuda, fake_tensorrt(cuda, rtx=False), fake_tensorrt(cuda, rtx=True))
    modules = {"tensorrt": made.tensorrt, "tensorrt_rtx": made.rtx}
    for name in ("cuda", "cuda.bindings"):
        modules[name] = ModuleType(name)
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return made


@pytest.fixture(scope="session")
def make_engine_bundle(make_bundle, tiny_files):
    """The tiny bundle with "engines" that the imaginary GPU runs; `changes` are of their keys."""

    def make(*backends, files=None, **changes):
        sizes = make_bundle().manifest.sizes
        shapes = resolve_shapes(Range.parse("1:1:4", "--batch"), Range.parse("64:64:96", "--size"), sizes)
        all_files, graphs = dict(tiny_files), {}
        for name, spec in graph_specs(sizes).items():
            onnx, engines = tiny_files[f"{name}.onnx"], {}
            for backend in backends:
                key = EngineKey(
                    **{
                        "graph_sha256": (file_sha256(onnx),),
                        "shapes": graph_profile(spec, shapes, sizes),
                        "precision": "fp32",
                        "runtime": f"{backend} {VERSION}",
                        "compute_capabilities": (CAPABILITY,),
                        **changes,
                    }
                )
                file = f"{backend}/{name}.engine"
                engines[backend] = BuiltEngine(file=file, key=key)
                all_files[file] = (files or {}).get(name, onnx)
            graphs[name] = GraphEntry(file=f"{name}.onnx", spec=spec, engines=engines)
        return make_bundle(all_files, graphs=graphs)

    return make


@pytest.fixture(scope="session")
def engine_bundle(make_engine_bundle):
    return make_engine_bundle("tensorrt", "tensorrt-rtx")
