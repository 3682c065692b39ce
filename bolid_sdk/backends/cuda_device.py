"""One CUDA device, by cuda-bindings: memory, copies, streams and captured graphs."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from bolid_sdk.errors import BackendError


class Device:
    """GPU `index`. `runtime` is cuda.bindings.runtime. The current device belongs to a thread: see `activate`."""

    def __init__(self, runtime: Any, index: int) -> None:
        self._cuda, self.index = runtime, index
        self.activate()
        properties = self.check(runtime.cudaGetDeviceProperties(index))
        self.capability = f"{properties.major}.{properties.minor}"
        name = properties.name
        self.name: str = name.decode() if isinstance(name, bytes) else name

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name}, compute capability {self.capability})"

    def check(self, answer: tuple[Any, ...]) -> Any:
        """The value behind a call's error code. Raises BackendError."""
        code, *values = answer
        if int(code):
            raise BackendError(f"CUDA device {self.index} failed: {_describe(self._cuda, code)}")
        return values[0] if values else None

    def activate(self) -> None:
        """To be called wherever another thread may have come in."""
        self.check(self._cuda.cudaSetDevice(self.index))

    def allocate(self, size: int) -> Buffer:
        """Raises BackendError when the memory does not suffice."""
        return Buffer(self, size, int(self.check(self._cuda.cudaMalloc(size))))

    def free(self, address: int) -> None:
        # by a garbage collector, possibly while the driver shuts down: nobody is there to hear of an error
        self._cuda.cudaSetDevice(self.index)
        self._cuda.cudaFree(address)

    def create_stream(self) -> Stream:
        """Never the default stream: that one waits for all others, and cannot be captured."""
        self.activate()
        return Stream(self, self._cuda)


class Buffer:
    """Device memory, freed with the last reference to it."""

    def __init__(self, device: Device, size: int, address: int) -> None:
        self.size, self.address = size, address
        weakref.finalize(self, device.free, address)


class Stream:
    """Work in order. Copies are asynchronous: what they read and write has to live until `synchronize`."""

    def __init__(self, device: Device, runtime: Any) -> None:
        self.device, self._cuda = device, runtime
        self._stream = device.check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        weakref.finalize(self, runtime.cudaStreamDestroy, self._stream)

    @property
    def handle(self) -> int:
        return int(self._stream)

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """`source` is contiguous and of the target's size."""
        self._copy(target.address, source.ctypes.data, source.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        self._copy(target.ctypes.data, source.address, target.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """From one place on the device to another."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, source.size, kind)

    def synchronize(self) -> None:
        """Waits for everything. Raises BackendError for what failed on the way."""
        self.device.check(self._cuda.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what `work` enqueues, without running it. Raises BackendError."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.device.check(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        finally:
            ended = self._cuda.cudaStreamEndCapture(self._stream)
        return Graph(self.device, self._cuda, self.device.check(ended))

    def launch(self, graph: Graph) -> None:
        self.device.check(self._cuda.cudaGraphLaunch(graph.executable, self._stream))

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self.device.check(self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))


class Graph:
    """Captured work that one launch repeats, with the same addresses."""

    def __init__(self, device: Device, runtime: Any, captured: Any) -> None:
        try:
            self.executable = device.check(runtime.cudaGraphInstantiate(captured, 0))
        finally:
            runtime.cudaGraphDestroy(captured)
        weakref.finalize(self, runtime.cudaGraphExecDestroy, self.executable)


def open_device(index: int) -> Device:
    """Asks the driver before anything else does: a library may crash without one. Raises BackendError."""
    runtime = _import_runtime()
    code, count = runtime.cudaGetDeviceCount()
    if int(code) or not count:
        reason = _describe(runtime, code) if int(code) else "the driver finds none"
        raise BackendError(f"no CUDA device works: {reason}; install or update the NVIDIA driver")
    if index >= count:
        raise BackendError(f"there is no CUDA device {index}; there are {count}, counted from 0")
    return Device(runtime, index)


def _import_runtime() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(f"cuda-bindings cannot be imported ({error}): pip install cuda-bindings") from error


def _describe(runtime: Any, code: Any) -> str:
    """ "cudaErrorMemoryAllocation (out of memory)"."""
    texts = (runtime.cudaGetErrorName(code)[1], runtime.cudaGetErrorString(code)[1])
    name, text = (text.decode() if isinstance(text, bytes) else str(text) for text in texts)
    return f"{name} ({text})"
