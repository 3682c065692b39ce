"""OpenVINO, on the CPU: each graph compiled for the shapes it meets, in bfloat16 where that is safe and supported.

Memory: OpenVINO keeps the constants that it compiled from, in float32, beside the weights that its kernels use. Of a
graph with 120 MB of float16 weights a compiled model holds 420 MB, and 680 while it is written to the cache. One that
is read from a mapped file holds 180: its constants are pages of the file, handed back once they are packed. So a
graph of some size is compiled in a process of its own, and always read back from the cache.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeAlias, cast

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from bolid_sdk.backends import NO_ENGINES, Array, Backend, Engine, Loop, Tensor, wanted_outputs
from bolid_sdk.backends.blobs import TRAILER_BYTES, Blobs, open_blobs
from bolid_sdk.backends.ov_upsampling import split_upsamplers
from bolid_sdk.backends.ov_weights import transpose_weights
from bolid_sdk.built_engine import EngineFile
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError, BundleError, InputError, OutputError

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]

RECYCLED_OUTPUT = "next_sample"
"""Nobody reads a sample once the next but one exists, so its memory serves again."""

PIXEL_GRAPHS = frozenset({"denoiser", "denoiser_shallow", "pose_guider", "vae_decoder"})
"""What only pixels come from may run in bfloat16. Keypoints are measured, identities are stored and shared with other
backends, text runs once a prompt: these stay float32."""

MAX_COMPILED, MAX_COMPILED_LARGE = 8, 2
"""Compiled sizes kept for each graph; a large one is back from the cache in seconds. Two: with and without guidance."""

COMPILED_ELSEWHERE = 1 << 26
"""Bytes of a graph on disk from which on the memory that compiling takes is worth a process."""

LARGE = 1 << 29
"""Bytes of a graph on disk from which on what has been compiled is given up early."""

ONCE_A_PERSON = frozenset({"image_encoder"})
"""Large ones of these do not stay in memory, where they can be read from the cache again."""

PRECISIONS = ("bf16", "f32")

RECIPE = 3
"""How graphs are prepared for OpenVINO: what another recipe compiled is not read from the cache."""

TRIM_SECONDS = 0.05

WORKER = (sys.executable, "-P", "-m", "bolid_sdk.backends.ov")


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
        self._compiled: Any = None
        self._request: Any = None
        self._spares: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Raises InputError for missing or unknown inputs, BackendError for shapes and types that do not fit."""
        self._held |= {name: value if isinstance(value, OvTensor) else _share(value) for name, value in inputs.items()}
        try:
            self._prepare(self._engine.compiled(self._held))
            wanted = [port for port in self._compiled.outputs if port.any_name in self._outputs]
            outputs = {port.any_name: self._bind_output(port) for port in wanted}
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

    def __init__(self, compiler: OvCompiler, spec: GraphSpec) -> None:
        self._compiler, self.spec = compiler, spec
        self._compiled: OrderedDict[Shapes, Future[Any]] = OrderedDict()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self.spec.name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = {name: value.numpy() for name, value in self.bind({}).run(inputs).items()}
        if self._compiler.gives_up:
            self._forget()
        return outputs

    def bind(self, constants: Mapping[str, Array], outputs: Collection[str] | None = None) -> Loop:
        return OvLoop(self, constants, wanted_outputs(self.spec, outputs))

    def _forget(self) -> None:
        with self._lock:
            self._compiled.clear()

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
            while len(self._compiled) > self._compiler.most:
                self._compiled.popitem(last=False)
            return future, known is None

    def _fulfil(self, future: Future[Any], shapes: Shapes) -> None:
        try:
            future.set_result(self._compiler.compile(shapes))
        # Whatever it is, those who wait for this compilation have to hear of it, and the next caller may try again.
        except BaseException as error:
            with self._lock:
                self._compiled.pop(shapes, None)
            future.set_exception(error)
            raise


class OvCompiler:
    """One graph's file, compiled for given shapes, through the cache where there is one."""

    def __init__(self, core: Any, path: Path, spec: GraphSpec, options: Mapping[str, Any], blobs: Blobs | None) -> None:
        self._core, self._path, self._options, self._blobs = core, path, dict(options), blobs
        files = [file for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]
        size = sum(file.stat().st_size for file in files)
        large, self._elsewhere = size >= LARGE, size >= COMPILED_ELSEWHERE
        self._digest = blobs.digest(files) if blobs else ""
        self.most = MAX_COMPILED_LARGE if large else MAX_COMPILED
        self.gives_up = large and blobs is not None and spec.name in ONCE_A_PERSON
        if blobs is None or not blobs.knows(self._digest):
            _check_signature(core.read_model(path), spec, path)

    def compile(self, shapes: Shapes) -> Any:
        """An OpenVINO compiled model."""
        if self._blobs is None:
            return compile_static(self._core, self._path, shapes, self._options)
        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        blob = self._blobs.path(self._digest, shapes, sorted(self._options.items()), ov.__version__, processor, RECIPE)
        found = self._read(blob)
        if found is not None:
            return found
        compiled = self._write(blob, shapes) or self._read(blob)
        return compiled or compile_static(self._core, self._path, shapes, self._options)

    def _read(self, blob: Path) -> Any:
        mapped = self._blobs.open(blob) if self._blobs else None
        if mapped is None:
            return None
        # OpenVINO reads the XML at a blob's end as far as the tensor goes: a trailer may look like a tag to it
        content = np.frombuffer(mapped, np.uint8, count=len(mapped) - TRAILER_BYTES)
        tensor = ov.Tensor(content, shared_memory=True)
        try:
            with _handed_back(mapped):
                compiled = self._core.import_model(tensor, "CPU", self._options)
        except RuntimeError:  # from another build, or damaged: compiled again
            return None
        compiled.file = tensor  # its constants stay where they are
        return compiled

    def _write(self, blob: Path, shapes: Shapes) -> Any:
        """Compiles into the cache. Returns what it compiled where that was here, None where another process did."""
        assert self._blobs is not None
        if self._elsewhere:
            _compile_elsewhere(self._path, blob, shapes, self._options, self._blobs)
            return None
        compiled = compile_static(self._core, self._path, shapes, self._options)
        _store(compiled, blob, self._blobs)
        return compiled


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


def compile_static(core: Any, path: Path, shapes: Shapes, options: Mapping[str, Any]) -> Any:
    """The graph of an ONNX file, compiled for these shapes alone."""
    model = core.read_model(path)
    transpose_weights(model)
    split_upsamplers(model)
    model.reshape({name: list(shape) for name, shape in shapes})
    return core.compile_model(model, "CPU", dict(options))


def _store(compiled: Any, blob: Path, blobs: Blobs) -> None:
    # a full disk costs time at the next start, not this picture
    with suppress(OutputError):
        blobs.write(blob, compiled.export_model().getbuffer())


def _compile_elsewhere(path: Path, blob: Path, shapes: Shapes, options: Mapping[str, Any], blobs: Blobs) -> None:
    """In a process of its own, whose memory goes with it. Raises BackendError."""
    request = {"path": str(path), "blob": str(blob), "shapes": shapes, "options": options, "limit": blobs.limit}
    worker = subprocess.run(
        WORKER, input=json.dumps(request), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if worker.returncode:
        raise BackendError(f"openvino cannot compile {path.name}: {worker.stdout.strip()[-300:] or worker.returncode}")


@contextmanager
def _handed_back(mapped: mmap.mmap) -> Iterator[None]:
    """Inside, pages of the file that have been read leave the process again; what is still needed is read again."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        yield
        return
    done = Event()

    def hand_back() -> None:
        while not done.wait(TRIM_SECONDS):
            mapped.madvise(mmap.MADV_DONTNEED)

    thread = Thread(target=hand_back, name="bolid-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        mapped.madvise(mmap.MADV_DONTNEED)


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


def main(request: Mapping[str, Any]) -> None:
    """What `_compile_elsewhere` asks for."""
    shapes = tuple((name, tuple(shape)) for name, shape in request["shapes"])
    blob = Path(request["blob"])
    compiled = compile_static(ov.Core(), Path(request["path"]), shapes, request["options"])
    _store(compiled, blob, Blobs(folder=blob.parent, limit=request["limit"]))


if __name__ == "__main__":
    main(json.load(sys.stdin))
