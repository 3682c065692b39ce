"""Is int8 worth having? One graph in fp32, bf16 and int8 on OpenVINO, in turns, on a machine that does nothing else.

    python benchmarks/precisions.py engines/avatar engines/avatar-int8 --graph denoiser -o benchmarks/results/int8.json

In turns, because a clock that changes then slows all of them alike: the median of neighbours' ratios is what counts.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
import openvino as ov

from bolid_sdk.bundle import Bundle
from bolid_training.evaluate.provenance import commit, cpu_name

BASELINE = "bf16"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("float_bundle", type=click.Path(path_type=Path))
@click.argument("int8_bundle", type=click.Path(path_type=Path))
@click.option("--graph", default="denoiser", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=30, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("-o", "--out", type=click.Path(path_type=Path))
def main(float_bundle: Path, int8_bundle: Path, graph: str, rounds: int, threads: int | None, out: Path | None) -> None:
    """Times GRAPH of a float32 bundle and of an int8 bundle on the inputs that are stored in the latter."""
    inputs = stored_inputs(Bundle.open(int8_bundle), graph)
    core = ov.Core()
    files = {"fp32": (float_bundle, "f32"), "bf16": (float_bundle, "bf16"), "int8": (int8_bundle, "bf16")}
    requests = {
        name: compiled(core, Bundle.open(bundle), graph, inputs, hint, threads)
        for name, (bundle, hint) in files.items()
    }
    result = {
        "setup": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 2),
            "openvino": ov.__version__,
            "commit": commit(),
            "graph": graph,
            "shapes": {name: list(array.shape) for name, array in inputs.items()},
            "bundles": {name: Bundle.open(bundle).digest for name, (bundle, _) in files.items()},
        },
        "rows": rows(in_turns(requests, rounds)),
        "kernels": {name: kernels(request) for name, request in requests.items()},
    }
    text = json.dumps(result, indent=1)
    if out:
        out.write_text(text + "\n")
    click.echo(text)


def stored_inputs(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    """The inputs that every bundle carries for `bolid-doctor`."""
    prefix = f"{graph}/inputs/"
    with np.load(bundle.file(bundle.manifest.golden), allow_pickle=False) as arrays:
        return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def compiled(
    core: ov.Core, bundle: Bundle, graph: str, inputs: Mapping[str, np.ndarray], hint: str, threads: int | None
) -> ov.InferRequest:
    """A request with its inputs set, compiled for just these shapes as `bolid_sdk.backends.ov` does."""
    model = core.read_model(bundle.file(bundle.manifest.graphs[graph].file))
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", options).create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, ov.Tensor(array.copy()))
    return request


def in_turns(requests: Mapping[str, ov.InferRequest], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run; the first two rounds are warm-up and not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(rounds + 2):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(seconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Medians and quartiles in milliseconds, and how many times as fast as `BASELINE` in the same round."""
    found = []
    for name, times in seconds.items():
        ratios = [base / own for base, own in zip(seconds[BASELINE], times, strict=True)]
        found.append(
            {
                "precision": name,
                "median_ms": round(1000 * median(times), 3),
                "quartiles_ms": [round(1000 * quantiles(times, n=4)[i], 3) for i in (0, 2)],
                f"times_{BASELINE}": round(median(ratios), 3),
                "ratio_quartiles": [round(quantiles(ratios, n=4)[i], 3) for i in (0, 2)],
            }
        )
    return found


def kernels(request: ov.InferRequest) -> dict[str, int]:
    """How many matrix products and convolutions run in which precision."""
    infos = [op.get_rt_info() for op in request.get_compiled_model().get_runtime_model().get_ops()]
    kinds = [(info["layerType"].value, info["runtimePrecision"].value) for info in infos]
    heavy = ("Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")
    return dict(sorted(Counter(f"{kind} {precision}" for kind, precision in kinds if kind in heavy).items()))


if __name__ == "__main__":
    main()
