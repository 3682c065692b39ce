"""Gates: every exported graph against PyTorch, and the whole loop against diffusers' UNet and scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_export.calibrate import spread
from bolid_export.graphs import Graph, denoiser_network
from bolid_export.memory import give_back_memory
from bolid_export.precision import Precision
from bolid_export.sources import Model, model_sizes
from bolid_export.verification.metrics import cosine, psnr, relative_error, ssim
from bolid_export.verification.reference import diffusers_latents
from bolid_export.verification.remembered import Remembered
from bolid_export.verification.scene import Scene, condition, decode, noise_source, picture
from bolid_export.verification.torch_engine import Record, TorchEngine
from bolid_sdk.backends import Backend, Engine, open_backend
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BolidError
from bolid_sdk.schedule import SamplerTable
from bolid_training.model.schedulers import without_noise

# More records of one graph show nothing new, and the denoiser has forty.
RECORDS = 6


class VerificationError(BolidError):
    """An exported graph does not do what the checkpoint does: our failure."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is accepted: of each graph's outputs, and of the picture (dB, [0, 1])."""

    cosine: float
    relative_error: float
    psnr: float
    ssim: float


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(cosine=0.99999, relative_error=1e-3, psnr=45.0, ssim=0.995),
    "fp16": Limits(cosine=0.999, relative_error=5e-2, psnr=35.0, ssim=0.97),
    # the largest error of a rounded graph is that of one pixel; cosines and the picture say more. The avatar has 42 dB
    # and 0.98; untrained networks, whose pictures are noise, 33 dB and 0.94
    "int8": Limits(cosine=0.995, relative_error=0.25, psnr=30.0, ssim=0.9),
}


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """The worst agreement of one output over the records."""

    graph: str
    output: str
    cosine: float
    max_error: float
    relative_error: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class LoopCheck:
    """The worst agreement of a finished picture over the scenes."""

    pictures: int
    steps: int
    psnr: float
    ssim: float
    passed: bool


def load_engines(
    files: Mapping[str, Path], specs: Mapping[str, GraphSpec], backend: Backend | None = None
) -> dict[str, Engine]:
    """The exported graphs on a backend that runs ONNX graphs on the CPU; ONNX Runtime if none is given."""
    backend = backend or open_backend("onnxruntime", "cpu")
    return {name: backend.load(file, specs[name]) for name, file in files.items()}


class OneAtATime(Mapping[str, Engine]):
    """The same for graphs of gigabytes: each is loaded when it is asked for, and the one before it given up."""

    def __init__(self, files: Mapping[str, Path], specs: Mapping[str, GraphSpec], backend: Backend) -> None:
        self._files, self._specs, self._backend = files, specs, backend
        self._loaded: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._loaded:
            self._loaded.clear()
            give_back_memory()
            self._loaded = load_engines({name: self._files[name]}, self._specs, self._backend)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def remembered(engines: Mapping[str, Engine], specs: Mapping[str, GraphSpec]) -> dict[str, Engine]:
    """Those of `engines`, each asked for at its first run, and run on the same inputs only once."""
    return {name: Remembered(spec, partial(engines.__getitem__, name)) for name, spec in specs.items()}


def check_graph(spec: GraphSpec, engine: Engine, records: list[Record], limits: Limits) -> list[OutputCheck]:
    """Compares an engine with PyTorch's recorded answers."""
    pairs = [(engine.run(record.inputs), record.outputs) for record in spread(records, RECORDS)]
    return [
        _check_output(spec.name, name, [(f[name], e[name]) for f, e in pairs], limits) for name in spec.output_names
    ]


def check_loop(
    checkpoint: Model,
    engines: Mapping[str, Engine],
    graphs: Mapping[str, Graph],
    scenes: tuple[Scene, ...],
    table: SamplerTable,
    guidance: float,
    limits: Limits,
    references: Sequence[NDArray[np.float32]] = (),
) -> LoopCheck:
    """Noise to pixels: the runtime's loop on the exported graphs against the plain diffusers loop.

    `references`: a `reference_picture` of each scene, where they have been made before.
    """
    sizes = model_sizes(checkpoint)
    references = references or [
        reference_picture(checkpoint, graphs, scene, steps=table.steps, guidance=guidance) for scene in scenes
    ]
    found = [picture(engines, scene, sizes, table, guidance) for scene in scenes]
    pairs = list(zip(found, references, strict=True))
    worst_psnr = float(np.min([psnr(*pair) for pair in pairs]))
    worst_ssim = float(np.min([ssim(*pair) for pair in pairs]))
    passed = worst_psnr >= limits.psnr and worst_ssim >= limits.ssim
    return LoopCheck(pictures=len(scenes), steps=table.steps, psnr=worst_psnr, ssim=worst_ssim, passed=passed)


def reference_picture(
    checkpoint: Model,
    graphs: Mapping[str, Graph],
    scene: Scene,
    *,
    steps: int,
    guidance: float,
    records: dict[str, list[Record]] | None = None,
) -> NDArray[np.float32]:
    """PyTorch's pixels for the scene, at the noise that the runtime draws.

    `records`: what PyTorch's graphs have answered before; what they answer now is added.
    """
    sizes = model_sizes(checkpoint)
    records = {} if records is None else records
    engines: dict[str, Engine] = {
        name: Remembered(graph.spec, partial(TorchEngine, graph), records.setdefault(name, []))
        for name, graph in graphs.items()
    }
    latents = diffusers_latents(
        denoiser_network(checkpoint),
        without_noise(checkpoint.scheduler),
        condition(engines, scene, sizes),
        next(noise_source(scene, sizes).draws()),
        steps=steps,
        guidance=guidance,
        hot_layers=graphs["denoiser"].hot_layers,
    )
    return decode(engines, latents)


def require_passed(graphs: list[OutputCheck], loop: LoopCheck | None = None, library: str = "") -> None:
    """Raises VerificationError that names every gate that failed, and the library that ran the graphs."""
    failed = [
        f"{c.graph}.{c.output} (cosine {c.cosine:.5f}, error {c.relative_error:.1e})" for c in graphs if not c.passed
    ]
    if loop is not None and not loop.passed:
        failed.append(f"the whole loop (PSNR {loop.psnr:.1f} dB, SSIM {loop.ssim:.4f})")
    if failed:
        export = f"the export, run by {library}," if library else "the export"
        raise VerificationError(
            f"{export} differs from PyTorch, so nothing was written: {'; '.join(failed)}; try --precision fp32"
        )


def verification(graphs: list[OutputCheck], loop: LoopCheck) -> dict[str, Any]:
    """What the manifest's report says of one library."""
    return {"graphs": [asdict(check) for check in graphs], "loop": asdict(loop)}


def _check_output(
    graph: str, output: str, pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]], limits: Limits
) -> OutputCheck:
    # NumPy's min and max, unlike Python's, keep a NaN, and no NaN passes
    angle = float(np.min([cosine(found, expected) for found, expected in pairs]))
    relative = float(np.max([relative_error(found, expected) for found, expected in pairs]))
    return OutputCheck(
        graph=graph,
        output=output,
        cosine=angle,
        max_error=float(np.max([np.abs(found - expected).max() for found, expected in pairs])),
        relative_error=relative,
        passed=angle >= limits.cosine and relative <= limits.relative_error,
    )
