"""Gates: every exported graph against PyTorch, and the whole loop against diffusers' UNet and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_export.calibrate import spread
from bolid_export.graphs import Graph
from bolid_export.metrics import cosine, psnr, relative_error, ssim
from bolid_export.precision import Precision
from bolid_export.reference import diffusers_latents
from bolid_export.scene import Scene, condition, decode, noise_source, sample
from bolid_export.sources import model_sizes
from bolid_export.torch_engine import Record, TorchEngine
from bolid_sdk.backends import Engine, open_backend
from bolid_sdk.contracts import GraphSpec
from bolid_sdk.errors import BolidError
from bolid_sdk.sampling import ResolvedSampling
from bolid_sdk.schedule import NoiseSchedule
from bolid_training.model.checkpoint import Checkpoint

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


def load_engines(files: Mapping[str, Path], specs: Mapping[str, GraphSpec]) -> dict[str, Engine]:
    """The exported graphs on the runtime's CPU backend."""
    backend = open_backend("onnxruntime", "cpu")
    return {name: backend.load(file, specs[name]) for name, file in files.items()}


def check_graph(spec: GraphSpec, engine: Engine, records: list[Record], limits: Limits) -> list[OutputCheck]:
    """Compares an engine with PyTorch's recorded answers."""
    pairs = [(engine.run(record.inputs), record.outputs) for record in spread(records, RECORDS)]
    return [
        _check_output(spec.name, name, [(f[name], e[name]) for f, e in pairs], limits) for name in spec.output_names
    ]


def check_loop(
    checkpoint: Checkpoint,
    engines: Mapping[str, Engine],
    graphs: Mapping[str, Graph],
    scenes: tuple[Scene, ...],
    schedule: NoiseSchedule,
    sampling: ResolvedSampling,
    limits: Limits,
) -> LoopCheck:
    """Noise to pixels: the runtime's loop on the exported graphs against the plain diffusers loop."""
    table, sizes = sampling.table(schedule), model_sizes(checkpoint)
    reference = {name: TorchEngine(graph) for name, graph in graphs.items()}
    scores = []
    for scene in scenes:
        noise = noise_source(scene, sizes)
        found = decode(engines, sample(engines, condition(engines, scene, sizes), table, sampling.guidance, noise))
        latents = diffusers_latents(
            checkpoint.unet,
            checkpoint.scheduler,
            condition(reference, scene, sizes),
            next(noise.draws()),
            steps=sampling.steps,
            guidance=sampling.guidance,
        )
        expected = decode(reference, latents)
        scores.append((psnr(found, expected), ssim(found, expected)))
    worst_psnr, worst_ssim = (min(values) for values in zip(*scores, strict=True))
    passed = worst_psnr >= limits.psnr and worst_ssim >= limits.ssim
    return LoopCheck(pictures=len(scenes), steps=sampling.steps, psnr=worst_psnr, ssim=worst_ssim, passed=passed)


def require_passed(graphs: list[OutputCheck], loop: LoopCheck | None = None) -> None:
    """Raises VerificationError that names every gate that failed."""
    failed = [
        f"{c.graph}.{c.output} (cosine {c.cosine:.5f}, error {c.relative_error:.1e})" for c in graphs if not c.passed
    ]
    if loop is not None and not loop.passed:
        failed.append(f"the whole loop (PSNR {loop.psnr:.1f} dB, SSIM {loop.ssim:.4f})")
    if failed:
        raise VerificationError(
            f"the export differs from PyTorch, so nothing was written: {'; '.join(failed)}; try --precision fp32"
        )


def verification(graphs: list[OutputCheck], loop: LoopCheck, limits: Limits) -> dict[str, Any]:
    """The manifest's verification report."""
    return {"limits": asdict(limits), "graphs": [asdict(check) for check in graphs], "loop": asdict(loop)}


def _check_output(
    graph: str, output: str, pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]], limits: Limits
) -> OutputCheck:
    angle = min(cosine(found, expected) for found, expected in pairs)
    relative = max(relative_error(found, expected) for found, expected in pairs)
    return OutputCheck(
        graph=graph,
        output=output,
        cosine=angle,
        max_error=max(float(np.abs(found - expected).max()) for found, expected in pairs),
        relative_error=relative,
        # NaN compares false
        passed=angle >= limits.cosine and relative <= limits.relative_error,
    )
