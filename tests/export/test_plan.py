"""What is said of an export beforehand holds: sizes, and the time and memory of runs that were measured."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bolid_export.estimate import MACHINE, WITHIN, Work, estimate, work_of
from bolid_export.plan import FLOAT, HALF, plan, plan_text
from bolid_export.plan import _bytes as bytes_of
from bolid_export.sources import default_checkpoint, open_source
from bolid_export.verification.effort import choose_effort
from bolid_sdk.bundle import open_bundle

ROWS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "export.json").read_text())["rows"]

WORKS = {
    # as `work_of` counts the checkpoints of benchmarks/true_size.py and true_size_xl.py
    "sd15-taesd": Work(
        graphs=10,
        layers=1436,
        held_bytes=3_793_824_468,
        largest=897_859_524,
        operations=1.471e13,
        precision="fp32",
    ),
    "sd15-ip-adapter-plus": Work(
        graphs=7,
        layers=1358,
        held_bytes=3_592_974_166,
        largest=878_690_244,
        operations=1.440e13,
        precision="fp32",
    ),
    "sdxl-pulid": Work(
        graphs=6,
        layers=2366,
        held_bytes=8_906_418_134,
        largest=2_908_250_884,
        operations=1.906e14,
        precision="fp16",
    ),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['export']}")
def test_estimates_are_within_their_factor_of_what_was_measured(row):
    guess = estimate(replace(WORKS[row["model"]], precision=row["precision"]))
    assert 1 / WITHIN <= guess.seconds / (row["seconds"] - row["engine_seconds"]) <= WITHIN
    assert 1 / WITHIN <= guess.memory_bytes / (row["rss_mb"] << 20) <= WITHIN
    assert row["setup"]["cpu"] in MACHINE
    assert row["setup"]["cores"] == 2


def test_more_work_takes_more():
    work = WORKS["sd15-taesd"]
    small = estimate(work)
    for name in ("graphs", "layers", "held_bytes", "operations"):
        assert estimate(replace(work, **{name: 2 * getattr(work, name)})).seconds > small.seconds
    for name in ("held_bytes", "largest"):
        assert estimate(replace(work, **{name: 2 * getattr(work, name)})).memory_bytes > small.memory_bytes
    assert estimate(replace(work, precision="int8")).seconds > small.seconds


def test_work_is_counted_once_for_shared_weights(graphs, sizes):
    effort = choose_effort(graphs, sizes, pictures=2, steps=12)
    work = work_of(graphs, sizes, effort, "fp32")
    weights = {id(tensor): tensor.numel() for graph in graphs.values() for tensor in graph.parameters()}
    assert work.held_bytes == 4 * sum(weights.values())
    assert sum(tensor.numel() for tensor in graphs["vae_decoder"].parameters()) < work.largest < sum(weights.values())
    assert work.graphs == len(graphs) == 10
    assert work.layers > 100
    assert work_of(graphs, sizes, replace(effort, pictures=4), "fp32").operations == 2 * work.operations


def test_weights_that_are_float16_stay_so_on_disk():
    half = torch.randn(100).half()
    third = torch.full((3,), 1 / 3)
    assert [bytes_of(tensor, "fp32") for tensor in (half, half.float(), third)] == [HALF, HALF, FLOAT]
    assert bytes_of(third, "fp16") == HALF


@pytest.fixture(scope="module")
def avatar():
    return open_source(default_checkpoint())


def test_sizes_are_those_of_the_embedded_bundle(avatar, tmp_path):
    bundle = open_bundle()
    planned = plan(avatar, "fp32", tmp_path / "out")
    for name, graph in planned["graphs"].items():
        # the image encoder's last layer is in its network, but not in its graph
        assert 0.8 * graph["bytes"] <= bundle.manifest.files[f"{name}.onnx"].bytes <= 1.1 * graph["bytes"] + 1e6
    total = sum(file.bytes for file in bundle.manifest.files.values())
    assert total <= planned["disk"][str(tmp_path)] <= 2 * total


def test_the_plan_tells_every_decision_and_what_it_needs(avatar, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    planned = plan(avatar, "fp16", tmp_path / "out", runtimes=("onnxruntime", "openvino"), gate=True)
    lines = {line.strip().partition(":")[0]: line for line in plan_text(planned).splitlines()}
    assert f"on {MACHINE}, within a factor of {WITHIN}, without openvino" in lines["time"]
    assert " GB, within a factor of 2" in lines["memory"]
    assert lines["disk"].endswith(f" in {tmp_path / 'temporary'}")
    assert lines["verified by"].endswith("onnxruntime, openvino")
    assert "2 of 128 x 128, 4 steps" in lines["verified with"]
    assert "identity_encoder" in lines["float32 islands"]
    # what a gate looks at is elsewhere
    assert planned["disk"][str(tmp_path / "temporary")] == planned["disk"][str(tmp_path)]
