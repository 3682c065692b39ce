"""Compiles graphs for OpenVINO's CPU plugin, each for given shapes, through the cache where there is one.

Memory: OpenVINO keeps the constants that it compiled from, in float32, beside the weights that its kernels use. Of a
graph with 120 MB of float16 weights a compiled model holds 420 MB, and 680 while it is written to the cache. One that
is read from a mapped file holds 180: its constants are pages of the file, handed back once they are packed. So a
graph of some size is compiled in a process of its own, and always read back from the cache. The same process looks
whether it is the graph that the bundle promises: reading 990 MB of int8 weights leaves 2.2 GB behind.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino as ov

from bolid_sdk.backends.blobs import TRAILER_BYTES, Blobs
from bolid_sdk.backends.ov_geglu import split_geglu
from bolid_sdk.backends.ov_invariants import split_invariants
from bolid_sdk.backends.ov_transposition import transpose_weights
from bolid_sdk.backends.ov_upsampling import split_upsamplers
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BackendError, BundleError, OutputError

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
Part: TypeAlias = Literal["whole", "once", "step"]

COMPILED_ELSEWHERE = 1 << 25
"""Bytes of a graph on disk from which on the memory that compiling takes is worth a process."""

STEPPED = frozenset({"denoiser", "denoiser_shallow"})
"""Graphs that run many times with the same tokens."""

TOKENS = frozenset({"encoder_hidden_states", "identity_tokens", "image_tokens"})

TOKENS_ONCE = 1 << 26
"""Bytes of a stepped graph on disk from which on what it makes of its tokens is worth a graph of its own. At 256 px
that is 12 of 434 ms a step in bfloat16, 12 of 299 in int8, of SD1.5; of the embedded model nothing that shows."""

RECIPE = 5
"""How graphs are prepared for OpenVINO: what another recipe compiled is not read from the cache."""

TRIM_SECONDS = 0.05

OTHER_GRAPH = 3
"""The worker's exit code for a graph that is not what the bundle promises."""

WORKER = (sys.executable, "-P", "-m", "bolid_sdk.backends.ov_compiler")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """OpenVINO's compiled models: `step` runs each time; `once`, where there is one, when its inputs have changed.

    The outputs of `once` are inputs of `step`.
    """

    step: Any
    once: Any = None


class OvCompiler:
    """One graph's file, compiled for given shapes, through the cache where there is one."""

    def __init__(self, core: Any, path: Path, spec: GraphSpec, options: Mapping[str, Any], blobs: Blobs | None) -> None:
        self._core, self._path, self._spec, self._options, self._blobs = core, path, spec, dict(options), blobs
        files = [file for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]
        self.size = sum(file.stat().st_size for file in files)
        self._elsewhere = blobs is not None and self.size >= COMPILED_ELSEWHERE
        self._tokens_once = self.size >= TOKENS_ONCE and spec.name in STEPPED
        self._digest = blobs.digest(files) if blobs else ""
        if not self._elsewhere and not (blobs and blobs.knows(self._digest)):
            _check_signature(core.read_model(path), path, spec.input_names, spec.output_names)

    @property
    def caches(self) -> bool:
        """Whether what it compiles is kept on disk."""
        return self._blobs is not None

    def compile(self, shapes: Shapes) -> Compiled:
        if not self._tokens_once:
            return Compiled(step=self._compile("whole", shapes))
        return Compiled(step=self._compile("step", shapes), once=self._compile("once", shapes))

    def _compile(self, part: Part, shapes: Shapes) -> Any:
        if self._blobs is None:
            return compile_static(self._core, self._path, part, shapes, self._options)
        blob = self._blob(self._blobs, part, shapes)
        compiled = self._read(blob) or self._write(blob, part, shapes) or self._read(blob)
        return compiled or compile_static(self._core, self._path, part, shapes, self._options)

    def _blob(self, blobs: Blobs, part: Part, shapes: Shapes) -> Path:
        # what is made of the tokens is the same for pictures of all sizes
        seen = [(name, shape) for name, shape in shapes if part != "once" or name in TOKENS]
        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        options = sorted(self._options.items())
        return blobs.path(self._digest, part, seen, options, ov.__version__, processor, RECIPE)

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

    def _write(self, blob: Path, part: Part, shapes: Shapes) -> Any:
        """Compiles into the cache. Returns what it compiled where that was here, None where another process did."""
        assert self._blobs is not None
        if self._elsewhere:
            _compile_elsewhere(self._path, self._spec, blob, part, shapes, self._options, self._blobs)
            return None
        compiled = compile_static(self._core, self._path, part, shapes, self._options)
        _store(compiled, blob, self._blobs)
        return compiled


def compile_static(core: Any, path: Path, part: Part, shapes: Shapes, options: Mapping[str, Any]) -> Any:
    """The graph of an ONNX file, or this part of it, compiled for these shapes alone."""
    return _compile(core, core.read_model(path), part, shapes, options)


def _compile(core: Any, model: Any, part: Part, shapes: Shapes, options: Mapping[str, Any]) -> Any:
    return core.compile_model(prepare(model, part, shapes), "CPU", dict(options))


def prepare(model: Any, part: Part, shapes: Shapes) -> Any:
    """What is compiled of an OpenVINO model, which is used up: this part, of these shapes, without needless work."""
    model.reshape({name: list(shape) for name, shape in shapes})
    if part != "whole":
        once, step = split_invariants(model, TOKENS)
        model = once if part == "once" else step
    transpose_weights(model)
    split_geglu(model)
    split_upsamplers(model)
    return model


def _store(compiled: Any, blob: Path, blobs: Blobs) -> None:
    # a full disk costs time at the next start, not this picture
    with suppress(OutputError):
        blobs.write(blob, compiled.export_model().getbuffer())


def _compile_elsewhere(
    path: Path, spec: GraphSpec, blob: Path, part: Part, shapes: Shapes, options: Mapping[str, Any], blobs: Blobs
) -> None:
    """In a process of its own, whose memory goes with it. Raises BackendError, BundleError for another graph."""
    files = {"path": str(path), "blob": str(blob), "limit": blobs.limit}
    names = {"inputs": spec.input_names, "outputs": spec.output_names}
    request = {**files, **names, "part": part, "shapes": shapes, "options": options}
    worker = subprocess.run(
        WORKER, input=json.dumps(request), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if worker.returncode == OTHER_GRAPH:
        raise BundleError(worker.stdout.strip())
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


def _check_signature(model: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for kind, found, expected in (("inputs", model.inputs, inputs), ("outputs", model.outputs, outputs)):
        names = [port.any_name for port in found]
        if set(names) != set(expected):
            raise BundleError(
                f"{path.name} has the {kind} {names}; the manifest promises {list(expected)}: export the bundle again"
            )


def main(request: Mapping[str, Any]) -> None:
    """What `_compile_elsewhere` asks for. Raises BundleError."""
    core, path, blob = ov.Core(), Path(request["path"]), Path(request["blob"])
    model = core.read_model(path)
    _check_signature(model, path, request["inputs"], request["outputs"])
    shapes = tuple((name, tuple(shape)) for name, shape in request["shapes"])
    compiled = _compile(core, model, request["part"], shapes, request["options"])
    _store(compiled, blob, Blobs(folder=blob.parent, limit=request["limit"]))


if __name__ == "__main__":
    try:
        main(json.load(sys.stdin))
    except BundleError as error:
        print(error)
        sys.exit(OTHER_GRAPH)
