"""Traced graphs of an export that did not come to its end, for the next one that would trace the same.

They lie in the user's cache, in a folder named by the sha256 of all that a trace follows from: weights, configuration,
precision, versions, our own code. An export that ends, well or refused, forgets them. What is found is verified like
what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from transformers import CLIPTokenizer

from bolid_export.graphs import Graph
from bolid_export.package import default_sampling, tool_versions
from bolid_export.precision import Precision
from bolid_export.sources import Source, model_sizes
from bolid_export.verify import VerificationError
from bolid_sdk.backends.blobs import parse_limit
from bolid_sdk.errors import OutputError
from bolid_sdk.files import atomic_file, cache_folder

CODE = ("bolid_sdk", "bolid_export", "bolid_training.model")
"""Packages that a trace follows from."""


class StageCache:
    """Of one export; `folder` is named by its content. What cannot be written is not kept, and traced again.

    As a context it forgets everything at the end of the block, unless that was stopped: what verification has refused
    would be refused again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> StageCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, VerificationError):
            self.forget()

    def restore(self, graph: str, folder: Path) -> dict[str, Any] | None:
        """Puts the files of a graph into `folder`. Returns what was kept beside them, or None: it was not."""
        try:
            kept = json.loads(self._marker(graph).read_text(encoding="utf-8"))
            for name, size in kept["files"].items():
                if (self._folder / name).stat().st_size != size:
                    return None
                _place(self._folder / name, folder / name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return kept["beside"]

    def keep(self, graph: str, folder: Path, beside: Mapping[str, Any]) -> None:
        """Keeps the files of a graph, and JSON beside them. The marker comes last: without it there is nothing."""
        files = sorted(folder.glob(f"{graph}.onnx*"))
        with suppress(OSError, OutputError):
            self._folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                _place(file, self._folder / file.name)
            sizes = {file.name: file.stat().st_size for file in files}
            with atomic_file(self._marker(graph)) as marker:
                marker.write(json.dumps({"files": sizes, "beside": beside}).encode())

    def forget(self) -> None:
        """Deletes all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _marker(self, graph: str) -> Path:
        return self._folder / f"{graph}.json"


def open_stage_cache(source: Source, graphs: Mapping[str, Graph], precision: Precision) -> StageCache:
    """That of an export of `graphs`, before anything has changed them.

    Other exports' graphs are deleted, the oldest first, until the limit in BOLID_CACHE_LIMIT is kept. Raises InputError
    for a limit that is no size.
    """
    folder = cache_folder() / "export" / content_digest(source, graphs, precision)
    trim(folder.parent, parse_limit(os.environ.get("BOLID_CACHE_LIMIT")), keep=folder)
    return StageCache(folder)


def content_digest(source: Source, graphs: Mapping[str, Graph], precision: Precision) -> str:
    """sha256 over everything that traces follow from: of one graph, calibration sees all networks."""
    checkpoint = source.checkpoint
    tokenizers = [checkpoint.tokenizer, checkpoint.tokenizer_2]
    about = {
        "precision": precision,
        "sizes": model_sizes(checkpoint).to_dict(),
        "tools": tool_versions(),
        "code": code_digest(),
        "graphs": {name: [repr(graph), _config(graph.network)] for name, graph in graphs.items()},
        "sampling": vars(default_sampling(checkpoint)),
        "scheduler": _config(checkpoint.scheduler),
        "tokenizers": [_content(tokenizer) for tokenizer in tokenizers if tokenizer],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in _tensors(graphs):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().reshape(-1).data)
    return digest.hexdigest()[:32]


def code_digest() -> str:
    """sha256 over our own source files."""
    digest = hashlib.sha256()
    for package in CODE:
        folder = Path(str(import_module(package).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def trim(folder: Path, limit: int, *, keep: Path) -> None:
    """Deletes the oldest of the folders in `folder`, but `keep`, until they have at most `limit` bytes."""
    others = sorted(_ages(other for other in folder.glob("*") if other != keep), reverse=True)
    total = 0
    for _, other in others:
        total += sum(_sizes(other.glob("*")))
        if total > limit:
            shutil.rmtree(other, ignore_errors=True)


def _ages(folders: Iterable[Path]) -> Iterator[tuple[float, Path]]:
    """Without those that another export has deleted meanwhile."""
    for folder in folders:
        with suppress(OSError):
            yield folder.stat().st_mtime, folder


def _sizes(files: Iterable[Path]) -> Iterator[int]:
    """Likewise."""
    for file in files:
        with suppress(OSError):
            yield file.stat().st_size


def _tensors(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once: graphs share some."""
    seen = set()
    for name, graph in graphs.items():
        for part, tensor in (*graph.named_parameters(), *graph.named_buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{name}.{part}", tensor


def _config(configured: Any) -> dict[str, Any]:
    """Without what its libraries note beside it: folders, and names in the order of a set."""
    config = getattr(configured, "config", {})
    values = config if isinstance(config, Mapping) else config.to_dict()
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _content(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Without what its last call has left in it."""
    return {**json.loads(tokenizer.backend_tokenizer.to_str()), "padding": None, "truncation": None}


def _place(file: Path, target: Path) -> None:
    """A link where both are on one disk, else a copy; either takes no other's place before it is whole."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            os.link(file, part)
        except OSError:
            shutil.copyfile(file, part)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
