"""The loaded graphs of a bundle: each at most once, when first needed, several side by side."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from bolid_sdk.backends import Backend, Engine
from bolid_sdk.bundle import Bundle
from bolid_sdk.errors import BundleError

PARALLEL_LOADS = 4


class Graphs:
    """Engines by graph name. Safe to share between threads."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._pool = ThreadPoolExecutor(PARALLEL_LOADS, thread_name_prefix="bolid-load")
        self._engines: dict[str, Future[Engine]] = {}
        self._lock = Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._bundle.manifest.graphs

    def __getitem__(self, name: str) -> Engine:
        """Waits for the graph. Raises BundleError or BackendError."""
        return self._request(name).result()

    def preload(self, names: Iterable[str]) -> None:
        """Starts loading in the background, in this order; names that the bundle lacks are passed over."""
        for name in names:
            if name in self:
                self._request(name)

    def _request(self, name: str) -> Future[Engine]:
        if name not in self:
            raise BundleError(f"the bundle {self._bundle.manifest.name!r} has no graph {name!r}; use one that has")
        with self._lock:
            future = self._engines.get(name)
            if future is None or (future.done() and future.exception() is not None):
                future = self._engines[name] = self._pool.submit(self._load, name)
            return future

    def _load(self, name: str) -> Engine:
        return load_graph(self._bundle, self._backend, name)


def load_graph(bundle: Bundle, backend: Backend, name: str) -> Engine:
    """From its ONNX file, or from the engine that the bundle has for this backend. Raises BundleError, BackendError."""
    entry = bundle.manifest.graphs[name]
    return backend.load(bundle.file(entry.file), entry.spec, bundle.engine_files(name))
