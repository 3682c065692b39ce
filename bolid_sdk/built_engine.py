"""An engine that was built ahead of time from a bundle's ONNX graph, and what it was built for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

from bolid_sdk.errors import BundleError

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
    """The library that built it, with its version: only that version loads it."""
    compute_capabilities: tuple[str, ...]
    """GPU architectures, such as "8.9"."""

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
                "bolid-export --backend tensorrt-rtx, or run its ONNX graphs"
            )


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


def _profile(shapes: list[list[int]]) -> tuple[Shape, Shape, Shape]:
    smallest, optimal, largest = (tuple(int(side) for side in shape) for shape in shapes)
    return smallest, optimal, largest
