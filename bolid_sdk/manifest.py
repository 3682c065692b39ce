"""`manifest.json`: what a bundle says about itself."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_type_hints

from bolid_sdk.built_engine import BuiltEngine
from bolid_sdk.contracts import GraphSpec, Sizes, TensorSpec, graph_specs
from bolid_sdk.errors import BolidError, BundleError
from bolid_sdk.sampling import ResolvedSampling
from bolid_sdk.schedule import NoiseSchedule

SCHEMA = 1

EXPECTED = {int: "a whole number", float: "a finite number", str: "text"}
LARGEST: Mapping[Any, float] = {int: sys.maxsize, float: sys.float_info.max}
"""Python reads whole numbers of any size, and infinity and NaN, which are no JSON."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """`file` is the ONNX graph, `data` its external tensors, all relative to the bundle; `spec` its signature.

    `engines` are built from it ahead of time, by the backend they are for.
    """

    file: str
    data: tuple[str, ...] = ()
    spec: GraphSpec
    engines: Mapping[str, BuiltEngine] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file, *self.data)

    def to_dict(self) -> dict[str, Any]:
        engines = {backend: engine.to_dict() for backend, engine in self.engines.items()}
        return {
            "file": self.file,
            "data": list(self.data),
            "inputs": [tensor.to_dict() for tensor in self.spec.inputs],
            "outputs": [tensor.to_dict() for tensor in self.spec.outputs],
            # manifests without engines stay as they were before there were any
            **({"engines": engines} if engines else {}),
        }


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """CLIP's `tokenizer.json`, as the tokenizers library writes it and bolid_sdk/clip_tokenizer.py reads it."""

    file: str
    pad_id: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in `manifest.json`. `files` covers all files of the bundle but the manifest itself."""

    name: str
    family: str
    precision: str
    licence: str
    sizes: Sizes
    noise_schedule: NoiseSchedule
    sampling: ResolvedSampling
    graphs: Mapping[str, GraphEntry]
    tokenizer: TokenizerEntry
    tokenizer_2: TokenizerEntry | None = None
    """Of the second text tower, where it differs (`sizes.token_inputs`)."""
    zero_unconditional: bool = False
    """What the unconditional branch reads as text: zeros, or the empty prompt."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    """Normalisation of the image encoder's pixels, for channels in [0, 1]."""
    pose_threshold: float = 0.3
    """Below this mean confidence of the 12 keypoints there is nobody in the picture."""
    latent: Mapping[str, Any] = field(default_factory=dict)
    """Informative: the scaling factor and shift that the VAE graphs contain."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    golden: str | None = None
    """An .npz of stored inputs and outputs, `<graph>/inputs/<name>` and `<graph>/outputs/<name>`, for bolid-doctor."""
    blank_patch_tokens: str | None = None
    """A .npy, float32 [1, P, D], of what the image encoder sees in a blank picture, which guidance needs; without one
    it is encoded."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizers(self) -> dict[str, TokenizerEntry]:
        """By the text encoder's input."""
        second = {"input_ids_2": self.tokenizer_2} if self.tokenizer_2 else {}
        return {"input_ids": self.tokenizer, **second}

    @property
    def encodes_nobody(self) -> bool:
        """Whether the image encoder has to run for the unconditional branch."""
        return self.sizes.patch_tokens > 1 and self.blank_patch_tokens is None

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the bundle can do beyond a person and a prompt.

        pose_estimation, pose, image_prompt, caching, encode, size_conditioning (it is told how large a picture was),
        orthogonal (PuLID's attention modes), loras (a request may bring some).
        """
        return capabilities(self.graphs, self.sizes)

    @property
    def engine_backends(self) -> tuple[str, ...]:
        """Backends for which every graph has an engine."""
        built = [set(graph.engines) for graph in self.graphs.values()]
        return tuple(sorted(set.intersection(*built))) if built else ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "family": self.family,
            "precision": self.precision,
            "licence": self.licence,
            "capabilities": list(self.capabilities),
            "sizes": self.sizes.to_dict(),
            "latent": dict(self.latent),
            "noise_schedule": self.noise_schedule.to_dict(),
            "sampling": asdict(self.sampling),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "pose_threshold": self.pose_threshold,
            "tokenizer": asdict(self.tokenizer),
            # manifests of one text tower stay as they were before there were two
            **({"tokenizer_2": asdict(self.tokenizer_2)} if self.tokenizer_2 else {}),
            **({"zero_unconditional": True} if self.zero_unconditional else {}),
            "graphs": {name: graph.to_dict() for name, graph in self.graphs.items()},
            "golden": self.golden,
            # manifests of before there were any stay as they were
            **({"blank_patch_tokens": self.blank_patch_tokens} if self.blank_patch_tokens else {}),
            "files": {name: asdict(entry) for name, entry in sorted(self.files.items())},
            "sources": dict(self.sources),
            "tools": dict(self.tools),
            "verification": dict(self.verification),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """Raises BundleError naming the field that is missing, superfluous or unusable."""
        if not isinstance(values, dict):
            raise BundleError("manifest.json is no JSON object; export the bundle again")
        if values.get("schema") != SCHEMA:
            raise BundleError(
                f"manifest.json has schema {values.get('schema')!r}; this version reads {SCHEMA}: export the bundle "
                "again or install the version of bolid-sdk that wrote it"
            )
        rest = {name: value for name, value in values.items() if name not in ("schema", "capabilities")}
        try:
            return cls._parse(rest)
        except BolidError as error:
            raise BundleError(f"manifest.json is unusable: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"manifest.json is unusable: {reason}; export the bundle again") from error

    @classmethod
    def _parse(cls, values: dict[str, Any]) -> Manifest:
        _check_scalars("it", cls, values)
        _check_scalars("sizes", Sizes, values["sizes"])
        _check_scalars("noise_schedule", NoiseSchedule, values["noise_schedule"])
        for name in ("tokenizer", "tokenizer_2"):
            _check_scalars(name, TokenizerEntry, values.get(name, {}))
        for name, entry in values["files"].items():
            _check_scalars(f"files[{name!r}]", FileEntry, entry)
        parsed = {
            **values,
            "sizes": Sizes.from_dict(values["sizes"]),
            "noise_schedule": NoiseSchedule.from_dict(values["noise_schedule"]),
            "sampling": ResolvedSampling(**values["sampling"]),
            "tokenizer": TokenizerEntry(**values["tokenizer"]),
            "tokenizer_2": TokenizerEntry(**values["tokenizer_2"]) if "tokenizer_2" in values else None,
            "graphs": {name: _graph(name, entry) for name, entry in values["graphs"].items()},
            "files": {_safe(name): FileEntry(**entry) for name, entry in values["files"].items()},
            "image_mean": _three(values["image_mean"]),
            "image_std": _three(values["image_std"]),
            "pose_threshold": _threshold(values["pose_threshold"]),
        }
        manifest = cls(**parsed)
        manifest.check()
        return manifest

    def check(self) -> None:
        """Whether all parts agree: graphs with sizes, references with files. Raises BundleError."""
        specs = graph_specs(self.sizes)
        for name, spec in specs.items():
            if spec.required and name not in self.graphs:
                raise BundleError(f"the bundle has no graph {name!r}, which every bundle needs; export it again")
        for name, entry in self.graphs.items():
            if name not in specs:
                raise BundleError(f"graph {name!r} is unknown for these sizes; expected some of {', '.join(specs)}")
            _check_tensors(name, "inputs", entry.spec.inputs, specs[name].inputs)
            _check_tensors(name, "outputs", entry.spec.outputs, specs[name].outputs)
        if len(self.tokenizers) != self.sizes.token_inputs:
            raise BundleError(
                f"the bundle has {len(self.tokenizers)} tokenizers for {self.sizes.token_inputs} inputs of its text "
                "encoder; export it again"
            )
        for file in self._references():
            if file not in self.files:
                raise BundleError(f"{file} is used but not listed under files; export the bundle again")
        for entry in self.graphs.values():
            self._check_engines(entry)

    def _check_engines(self, graph: GraphEntry) -> None:
        """Whether engines were built from the graph that lies beside them."""
        sha256 = tuple(self.files[file].sha256 for file in graph.files)
        for engine in graph.engines.values():
            engine.key.require(replace(engine.key, graph_sha256=sha256, precision=self.precision), engine.file)

    def _references(self) -> list[str]:
        graphs = [file for graph in self.graphs.values() for file in graph.files]
        engines = [engine.file for graph in self.graphs.values() for engine in graph.engines.values()]
        tokenizers = [tokenizer.file for tokenizer in self.tokenizers.values()]
        arrays = [file for file in (self.golden, self.blank_patch_tokens) if file]
        return [*graphs, *engines, *tokenizers, *arrays]


def capabilities(graphs: Collection[str], sizes: Sizes) -> tuple[str, ...]:
    """What graphs of these names and sizes can do beyond a person and a prompt."""
    present = {
        "pose_estimation": "pose_estimator" in graphs,
        "pose": "pose_guider" in graphs or sizes.identity_net,
        "image_prompt": "image_projector" in graphs,
        "caching": "denoiser_shallow" in graphs,
        "encode": "vae_encoder" in graphs,
        "size_conditioning": bool(sizes.time_ids),
        "orthogonal": bool(sizes.vision_states),
        "loras": bool(sizes.lora_rank),
    }
    return tuple(name for name, there in present.items() if there)


def _check_scalars(where: str, kind: type[Any], values: Mapping[str, Any]) -> None:
    """Raises BundleError for the first number or text that is not what the field of the dataclass `kind` holds."""
    for name, hint in get_type_hints(kind).items():
        if hint in EXPECTED and name in values and not _fits(values[name], hint):
            raise BundleError(
                f"{where} has {name}={values[name]!r}; expected {EXPECTED[hint]}: export the bundle again"
            )


def _fits(value: Any, hint: type[Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float if hint is float else hint):
        return False
    return hint is str or abs(value) <= LARGEST[hint]


def _threshold(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise BundleError(f"pose_threshold is {value}; expected a number from 0 to 1: export the bundle again")
    return float(value)


def _graph(name: str, values: dict[str, Any]) -> GraphEntry:
    spec = GraphSpec(name=name, inputs=_tensors(values["inputs"]), outputs=_tensors(values["outputs"]))
    engines = {backend: BuiltEngine.from_dict(engine) for backend, engine in values.get("engines", {}).items()}
    return GraphEntry(file=values["file"], data=tuple(values.get("data", ())), spec=spec, engines=engines)


def _tensors(values: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=v["name"], dtype=v["dtype"], shape=tuple(v["shape"])) for v in values)


def _check_tensors(graph: str, kind: str, found: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]) -> None:
    by_name = {tensor.name: tensor for tensor in found}
    names = [tensor.name for tensor in expected]
    if set(by_name) != set(names):
        raise BundleError(f"{graph} has the {kind} {sorted(by_name)}; expected {names}: export the bundle again")
    for tensor in expected:
        other = by_name[tensor.name]
        if other.dtype != tensor.dtype or not _shapes_agree(other.shape, tensor.shape):
            raise BundleError(
                f"{graph}: {tensor.name} is {other.dtype} {list(other.shape)}; expected {tensor.dtype} "
                f"{list(tensor.shape)}: export the bundle again"
            )


def _shapes_agree(found: tuple[int | str, ...], expected: tuple[int | str, ...]) -> bool:
    """Fixed axes are equal, dynamic ones stay dynamic under whatever name."""
    return len(found) == len(expected) and all(
        isinstance(one, str) if isinstance(other, str) else one == other
        for one, other in zip(found, expected, strict=True)
    )


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise BundleError(f"{name!r} leaves the bundle's folder; every file has to lie inside it")
    return name
