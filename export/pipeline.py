"""The stages of an export, in order: open, calibrate, trace, verify, build engines, package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bolid_export.calibrate import PROMPTS, Calibration, calibrate, spread
from bolid_export.engines.target import EngineTarget
from bolid_export.graphs import Graph, bind_graphs
from bolid_export.half import HalfOnFloat32
from bolid_export.int8.quantise import GRAPHS as QUANTISED_GRAPHS
from bolid_export.int8.quantise import quantise
from bolid_export.package import (
    GOLDEN,
    REPORT,
    build_manifest,
    bundle_files,
    default_sampling,
    noise_schedule,
    save_blank,
    save_golden,
    save_tokenizers,
    verified_sampling,
)
from bolid_export.precision import Island, Peaks, Precision, islands, lower, watch_peaks
from bolid_export.report import engine_report, report
from bolid_export.residency import Residency
from bolid_export.scratch import scratch_folder
from bolid_export.sources import Source, model_sizes
from bolid_export.stage_cache import StageCache, open_stage_cache
from bolid_export.to_tensorrt import build_engines
from bolid_export.tracing.ahead import TraceAhead
from bolid_export.tracing.stream import to_onnx, write_onnx
from bolid_export.verification.effort import Effort, choose_effort
from bolid_export.verification.runtimes import ONNX_RUNTIME, Runtime, open_runtime
from bolid_export.verification.scene import condition
from bolid_export.verification.torch_engine import Record, TorchEngine
from bolid_export.verify import (
    LIMITS,
    OneAtATime,
    OutputCheck,
    check_graph,
    check_loop,
    load_engines,
    reference_picture,
    remembered,
    require_passed,
    verification,
)
from bolid_sdk.built_engine import BuiltEngine
from bolid_sdk.bundle import Bundle, write_bundle
from bolid_sdk.contracts import Sizes, graph_specs
from bolid_sdk.schedule import SamplerTable

Progress = Callable[[str], None]

# Ranges need many different activations, the search few: each of its trials runs all of them.
CALIBRATION_RECORDS, SEARCH_RECORDS = 16, 4


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to make and where; `engines` are built ahead of time beside the ONNX graphs.

    `runtimes`: backends of the runtime, each of which verifies every graph and the whole loop.
    """

    folder: Path
    precision: Precision
    licence: str
    overwrite: bool = False
    engines: EngineTarget | None = None
    runtimes: tuple[str, ...] = (ONNX_RUNTIME,)
    cache: bool = False
    """Whether to go on where an export of the same content stopped, and to keep what is traced until this one ends."""
    gate: Callable[[Path], dict[str, Any]] | None = None
    """Sees the finished bundle before it takes its place; what it answers goes into the manifest, what it raises ends
    the export."""


def stage_count(sizes: Sizes, engines: EngineTarget | None = None, gate: bool = False, runtimes: int = 1) -> int:
    """How often `export_bundle` calls its `progress`."""
    graphs = len(graph_specs(sizes))
    return (2 if engines else 1) * graphs + runtimes * (graphs + 1) + 2 + gate


def export_bundle(source: Source, target: Target, progress: Progress = lambda stage: None) -> Bundle:
    """Writes a verified bundle; `progress` is told each stage's name before it starts.

    Raises VerificationError when a gate fails, EngineBuildError when an engine cannot be built, OutputError when the
    folder exists or cannot be written. Either way nothing is left behind.
    """
    sizes = model_sizes(source.checkpoint)
    graphs = bind_graphs(source.checkpoint, sizes)
    cache = open_stage_cache(source, graphs, target.precision) if target.cache else None
    residency = Residency(graphs.values())
    with (
        cache or nullcontext(),
        scratch_folder(target.folder) as folder,
        _ahead(graphs, sizes, target.precision, residency) as ahead,
    ):
        lowers = target.precision == "fp16"
        with _sharing(ahead), residency.automatic(), watch_peaks(g.network for g in graphs.values() if lowers) as peaks:
            calibration = _calibrate(source, graphs, sizes, progress)
        lowered = []
        for name, graph in graphs.items():
            lowering = partial(_lower, graph, calibration.records[name], peaks, target.precision, residency)
            trace = partial(_trace, lowering, ahead, folder, sizes, target.precision)
            lowered.append(_traced(cache, name, folder, progress, trace))
            residency.release(graph)
        checked = _verify(source, graphs, calibration, target, folder, progress)
        engines = _build(graphs, sizes, target, folder, progress)
        progress("packaging")
        checked["effort"] = _effort(source, graphs, sizes).summary()
        checked["islands"] = [asdict(island) for part in lowered for island in part.islands]
        checked["quantised"] = [part.quantised for part in lowered if part.quantised]
        if target.gate:
            progress("asking the gate")
            with tempfile.TemporaryDirectory(prefix="bolid-gate-") as staging:
                staged = replace(target, folder=Path(staging) / "bundle")
                bundle = _package(source, graphs, calibration, staged, folder, checked, engines)
                checked["gate"] = target.gate(bundle.path)
        return _package(source, graphs, calibration, target, folder, checked, engines)


def _calibrate(source: Source, graphs: Mapping[str, Graph], sizes: Sizes, progress: Progress) -> Calibration:
    progress("making reference pictures in PyTorch")
    checkpoint, effort = source.checkpoint, _effort(source, graphs, sizes)
    table, guidance = _table(source, effort), default_sampling(checkpoint).guidance
    made = calibrate(checkpoint, graphs, effort.sizes(sizes), table, guidance, reduced=effort.reduced)
    sampling: dict[str, Any] = {"steps": effort.steps, "guidance": guidance}
    references = [
        reference_picture(checkpoint, graphs, scene, **sampling, records=made.records) for scene in made.scenes
    ]
    return replace(made, references=tuple(references))


def _effort(source: Source, graphs: Mapping[str, Graph], sizes: Sizes) -> Effort:
    return choose_effort(graphs, sizes, pictures=len(PROMPTS), steps=default_sampling(source.checkpoint).steps)


def _table(source: Source, effort: Effort) -> SamplerTable:
    sampling = replace(verified_sampling(source.checkpoint), steps=effort.steps)
    return sampling.table(noise_schedule(source.checkpoint))


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph as it is traced: what stays float32 in it, and what a quantised one is (`Quantised.summary`)."""

    graph: Graph | None
    islands: list[Island]
    quantised: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"islands": [asdict(island) for island in self.islands], "quantised": self.quantised}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lowered:
        """What `to_dict` gave of a graph whose file is all that is left of it."""
        islands = [Island(**island) for island in values["islands"]]
        return cls(graph=None, islands=islands, quantised=values["quantised"])


def _traced(
    cache: StageCache | None, name: str, folder: Path, progress: Progress, trace: Callable[[], Lowered]
) -> Lowered:
    """What `trace` does with a graph, or what it left in the cache in an export that was stopped."""
    known = cache.restore(name, folder) if cache else None
    if known is not None:
        progress(f"tracing {name}, done before")
        return Lowered.from_dict(known)
    progress(f"tracing {name}")
    lowered = trace()
    if cache:
        cache.keep(name, folder, lowered.to_dict())
    return lowered


def _ahead(
    graphs: Mapping[str, Graph], sizes: Sizes, precision: Precision, residency: Residency
) -> AbstractContextManager[TraceAhead | None]:
    """Traces of a large model, the longest first; in fp16 with no islands but what is policy. What int8 will be, nobody
    knows yet."""
    if not residency.large:
        return nullcontext()
    known = {name: graph for name, graph in graphs.items() if precision != "int8" or name not in QUANTISED_GRAPHS}
    longest = sorted(known, key=lambda name: sum(1 for _ in known[name].modules()), reverse=True)
    lowered = {name: lower(known[name], precision, _foreseen(known[name], precision)) for name in longest}
    return TraceAhead(lowered, **_options(sizes, precision))


def _sharing(ahead: TraceAhead | None) -> AbstractContextManager[None]:
    """Leaves a core to the process that traces beside this one, if there is one."""
    return ahead.sharing() if ahead else nullcontext()


def _foreseen(graph: Graph, precision: Precision) -> list[Island]:
    """The islands that a graph has whatever calibration sees."""
    return islands(graph, {}) if precision == "fp16" else []


def _options(sizes: Sizes, precision: Precision) -> dict[str, Any]:
    # fp16 networks have their own islands, the others are float32 whatever they are stored in
    dtype = None if precision == "fp16" else torch.float32
    return {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor, "dtype": dtype}


def _lower(graph: Graph, records: list[Record], peaks: Peaks, precision: Precision, residency: Residency) -> Lowered:
    """One graph in that precision, its weights at rest."""
    if precision == "int8":
        with residency.automatic():
            return _quantise(graph, records)
    found = islands(graph, peaks) if precision == "fp16" else []
    lowered = Lowered(graph=lower(graph, precision, found), islands=found)
    if precision == "fp16":
        # CPU runtimes compute float16 graphs in float32, so only PyTorch shows here what a GPU will do
        with HalfOnFloat32():
            require_passed(check_graph(graph.spec, TorchEngine(lowered.graph), records, LIMITS[precision]))
    return lowered


def _trace(
    lowering: Callable[[], Lowered], ahead: TraceAhead | None, folder: Path, sizes: Sizes, precision: Precision
) -> Lowered:
    """Writes the graph, and gives it up with the memory it holds. `ahead` may have traced it as it was foreseen."""
    with _sharing(ahead):
        part = lowering()
    foreseen = part.quantised is None and part.islands == _foreseen(part.graph, precision)
    if ahead and foreseen and (traced := ahead.result(part.graph.spec.name)):
        write_onnx(traced, part.graph.parameters(), folder)
    else:
        to_onnx(part.graph, folder, **_options(sizes, precision))
    return replace(part, graph=None)


def _quantise(graph: Graph, records: list[Record]) -> Lowered:
    if graph.spec.name not in QUANTISED_GRAPHS:
        return Lowered(graph=graph, islands=[])
    # no record is in both, where there are enough: ranges that fit their own data prove nothing
    calibration = _tensors(graph, records[::2], CALIBRATION_RECORDS)
    held_out = _tensors(graph, records[1::2] or records, SEARCH_RECORDS)
    found = quantise(graph, calibration, held_out)
    return Lowered(graph=found.graph, islands=found.kept, quantised=found.summary())


def _tensors(graph: Graph, records: list[Record], count: int) -> list[tuple[torch.Tensor, ...]]:
    names = graph.spec.input_names
    return [tuple(torch.from_numpy(record.inputs[name]) for name in names) for record in spread(records, count)]


def _verify(
    source: Source,
    graphs: Mapping[str, Graph],
    calibration: Calibration,
    target: Target,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """By the first of the target's runtimes; by `also` the others, if there are any."""
    reduced = _effort(source, graphs, model_sizes(source.checkpoint)).reduced
    runtimes = [open_runtime(name, target.precision, few_runs=reduced) for name in target.runtimes]
    first, *others = [_verify_by(one, source, graphs, calibration, folder, progress) for one in runtimes]
    return {**first, **({"also": others} if others else {})}


def _verify_by(
    runtime: Runtime,
    source: Source,
    graphs: Mapping[str, Graph],
    calibration: Calibration,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    checkpoint = source.checkpoint
    files = {name: folder / f"{name}.onnx" for name in graphs}
    specs = {name: graph.spec for name, graph in graphs.items()}
    effort = _effort(source, graphs, model_sizes(checkpoint))
    engines = remembered((OneAtATime if effort.reduced else load_engines)(files, specs, runtime.backend), specs)
    by = "" if runtime.name == ONNX_RUNTIME else f" by {runtime.name}"
    checks: list[OutputCheck] = []
    for name in sorted(graphs, key="denoiser".__eq__):
        progress(f"verifying {name}{by}")
        if name == "denoiser":
            # the loop goes on with what is loaded then
            for scene in calibration.scenes:
                condition(engines, scene, model_sizes(checkpoint))
        checks += check_graph(specs[name], engines[name], calibration.records[name], runtime.limits_of(name))
    require_passed(checks, library=runtime.backend.description)
    progress(f"verifying the whole loop{by}")
    table, guidance, limits = _table(source, effort), default_sampling(checkpoint).guidance, runtime.loop_limits
    loop = check_loop(checkpoint, engines, graphs, calibration.scenes, table, guidance, limits, calibration.references)
    require_passed(checks, loop, runtime.backend.description)
    return runtime.summary(graphs) | verification(checks, loop)


def _build(
    graphs: Mapping[str, Graph], sizes: Sizes, target: Target, folder: Path, progress: Progress
) -> dict[str, BuiltEngine]:
    """Engines of graphs that are verified already: no GPU is here to run an engine itself."""
    if target.engines is None:
        return {}
    specs = {name: graph.spec for name, graph in graphs.items()}
    return build_engines(specs, sizes, target.engines, target.precision, folder, progress)


def _package(
    source: Source,
    graphs: Mapping[str, Graph],
    calibration: Calibration,
    target: Target,
    folder: Path,
    checked: Mapping[str, Any],
    engines: Mapping[str, BuiltEngine],
) -> Bundle:
    specs = {name: graph.spec for name, graph in graphs.items()}
    weights = {name: sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*")) for name in specs}
    save_golden(calibration.records, folder / GOLDEN)
    save_blank(calibration.records, model_sizes(source.checkpoint), folder)
    save_tokenizers(source.checkpoint, model_sizes(source.checkpoint), folder)
    text = report(source.name, target.precision, checked, weights)
    if target.engines:
        text += engine_report(target.engines, engines, folder)
    (folder / REPORT).write_text(text, encoding="utf-8")
    files = bundle_files(folder)
    manifest = build_manifest(
        source,
        model_sizes(source.checkpoint),
        specs,
        files,
        precision=target.precision,
        licence=target.licence,
        verification=checked,
        engines={name: {engine.key.library: engine} for name, engine in engines.items()},
    )
    return write_bundle(target.folder, manifest, files, overwrite=target.overwrite, link=True)
