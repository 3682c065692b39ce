"""An engine that was built ahead of time from a bundle's ONNX graph, and what it was built for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from bolid_sdk.errors import BundleError, InputError

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, optimal and largest shape of each input."""


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine depends on. When one of them differs, it is not the engine that is needed."""

    graph_sha256: tuple[str, ...]
    """Of the ONNX file, then of its external tensors."""
    shapes: Profile
    precision: str
    runtime: str
    """The library that built it, with its version. Only that version loads it; with a "+" behind it, so do later
    versions of the same major one."""
    compute_capabilities: tuple[str, ...]
    """GPU architectures, such as "8.9"; "8.0+" are that one and all later ones."""

    @property
    def digest(self) -> str:
        """sha256 of all of it, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def require(self, needed: EngineKey, engine: str) -> None:
        """Raises BundleError with what `engine` was built for, what is needed, and what to do."""
        differences = [
            f"{name} is {getattr(self, name)!r}, expected {getattr(needed, name)!r}"
            for name in (field.name for field in fields(self))
            if getattr(self, name) != getattr(needed, name)
        ]
        if differences:
            raise BundleError(
                f"{engine} was built for something else: {'; '.join(differences)}; export the bundle again with "
                f"bolid-export --backend {self.library}, or run its ONNX graphs"
            )

    @property
    def library(self) -> str:
        """The backend that it is for: `runtime` without the version."""
        return self.runtime.partition(" ")[0]

    def check_runtime(self, runtime: str, compute_capability: str, engine: str) -> None:
        """Raises BundleError unless `engine` loads in that library (and version), on a GPU of that capability."""
        if not _same_or_later(self.runtime, runtime):
            raise BundleError(
                f"{engine} was built by {self.runtime}, here is {runtime}: install the version that built it, export "
                f"the bundle again with {self._command(compute_capability)}, or use backend 'onnxruntime'"
            )
        if not any(_covers(built, compute_capability) for built in self.compute_capabilities):
            raise BundleError(
                f"{engine} was built for compute capability {', '.join(self.compute_capabilities)}, this GPU has "
                f"{compute_capability}: export the bundle again with {self._command(compute_capability)}, or use "
                "backend 'onnxruntime'"
            )

    def check_shapes(self, shapes: Mapping[str, Shape], engine: str) -> None:
        """Raises InputError for the first input whose shape lies outside what `engine` was built for."""
        for name, shape in shapes.items():
            smallest, _, largest = self.shapes[name]
            if len(shape) != len(smallest) or any(
                not low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)
            ):
                raise InputError(
                    f"{engine} was built for {name} from {list(smallest)} to {list(largest)}, it was given "
                    f"{list(shape)}: ask for fewer pictures at once (max_batch) or another size, or export the bundle "
                    f"again with bolid-export --backend {self.library} and a wider --batch or --size"
                )

    def _command(self, compute_capability: str) -> str:
        return f"bolid-export --backend {self.library} --compute-capability {compute_capability}"


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """`file` is relative to the bundle, whose `files` have its size and sha256."""

    file: str
    key: EngineKey
    build: Mapping[str, Any] = field(default_factory=dict)
    """Informative: `seconds` and the builder's `peak_bytes` of memory."""

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "key": self.key.digest, **asdict(self.key), "build": dict(self.build)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BuiltEngine:
        """Raises TypeError, ValueError or KeyError for what `to_dict` does not write, BundleError for a wrong key."""
        rest = {name: value for name, value in values.items() if name not in ("file", "key", "build")}
        key = EngineKey(
            **{
                **rest,
                "graph_sha256": tuple(rest["graph_sha256"]),
                "shapes": {name: _profile(shapes) for name, shapes in rest["shapes"].items()},
                "compute_capabilities": tuple(rest["compute_capabilities"]),
            }
        )
        if key.digest != values["key"]:
            raise BundleError(f"{values['file']} has the key {values['key']!r}, its parts give {key.digest}")
        return cls(file=values["file"], key=key, build=values.get("build", {}))


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """A built engine where it lies."""

    path: Path
    sha256: str
    key: EngineKey

    @property
    def name(self) -> str:
        """For messages: "tensorrt-rtx/denoiser.engine"."""
        return f"{self.path.parent.name}/{self.path.name}"

    def read(self) -> bytes:
        """The engine's bytes, once their hash is right: deserialising runs what they contain. Raises BundleError."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read ({error.strerror}); copy the bundle again") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise BundleError(
                f"{self.path} has sha256 {found[:16]}…, the manifest says {self.sha256[:16]}…: it was changed after "
                "export and is not loaded; copy or export the bundle again"
            )
        return content


def _same_or_later(built: str, here: str) -> bool:
    """Whether the library `here` loads what `built` names."""
    if not built.endswith("+"):
        return built == here
    library, version = built.removesuffix("+").split(" ")
    other, other_version = here.split(" ")
    oldest, found = _numbers(version), _numbers(other_version)
    return library == other and oldest[0] == found[0] and oldest <= found


def _covers(built: str, capability: str) -> bool:
    return built == capability or (built.endswith("+") and _numbers(built) <= _numbers(capability))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _profile(shapes: list[list[int]]) -> tuple[Shape, Shape, Shape]:
    smallest, optimal, largest = (tuple(int(side) for side in shape) for shape in shapes)
    return smallest, optimal, largest
