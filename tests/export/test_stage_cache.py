"""An export that was stopped goes on where it was; nothing but equal content is ever found again."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from bolid_export import pipeline, stage_cache
from bolid_export.pipeline import Lowered, Target, export_bundle
from bolid_export.precision import Island
from bolid_export.stage_cache import StageCache, content_digest, trim
from bolid_export.verify import VerificationError
from bolid_sdk.errors import InputError, OutputError


class Stopped(BaseException):
    """As Ctrl-C, or a signal."""


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "cache" / "digest")


def folder_with(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_onnx", ".onnx")).write_bytes(content)
    return folder


def test_what_was_kept_comes_back(cache, tmp_path):
    traced = folder_with(tmp_path / "traced", net_onnx=b"graph", net_shallow_onnx=b"other")
    (traced / "net.onnx.data").write_bytes(b"weights")
    cache.keep("net", traced, {"islands": [1]})
    target = folder_with(tmp_path / "target")
    assert cache.restore("net_shallow", target) is None
    assert cache.restore("net", target) == {"islands": [1]}
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {
        "net.onnx": b"graph",
        "net.onnx.data": b"weights",
    }
    cache.forget()
    assert cache.restore("net", folder_with(tmp_path / "another")) is None


def test_what_is_damaged_does_not(cache, tmp_path):
    cache.keep("net", folder_with(tmp_path / "traced", net_onnx=b"graph"), {})
    folder = tmp_path / "cache" / "digest"
    target = folder_with(tmp_path / "target")
    marker = (folder / "net.json").read_text()
    for content in ("", "{}", "[]", marker[:-1]):
        (folder / "net.json").write_text(content)
        assert cache.restore("net", target) is None
    (folder / "net.json").write_text(marker)
    assert cache.restore("net", target) == {}
    (folder / "net.onnx").unlink()
    (folder / "net.onnx").write_bytes(b"grap")
    assert cache.restore("net", target) is None


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").touch()
    cache = StageCache(tmp_path / "file" / "digest")
    cache.keep("net", folder_with(tmp_path / "traced", net_onnx=b"graph"), {})
    assert cache.restore("net", tmp_path) is None
    cache.forget()


def test_what_is_refused_or_done_is_forgotten_and_what_is_stopped_is_not(cache, tmp_path):
    traced = folder_with(tmp_path / "traced", net_onnx=b"graph")
    for error, kept in ((Stopped, True), (OutputError, True), (VerificationError, False), (None, False)):
        with suppress(Stopped, OutputError, VerificationError), cache:
            cache.keep("net", traced, {})
            if error:
                raise error("here")
        assert (cache.restore("net", tmp_path) is not None) is kept


def test_files_are_copied_to_another_disk(cache, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    test_what_was_kept_comes_back(cache, tmp_path)


def test_the_oldest_are_given_up(tmp_path):
    for age, name in enumerate(("new", "own", "middle", "old")):
        folder_with(tmp_path / name, a_onnx=b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    trim(tmp_path, 250, keep=tmp_path / "own")
    assert {folder.name for folder in tmp_path.iterdir()} == {"new", "own", "middle"}
    trim(tmp_path, 0, keep=tmp_path / "own")
    assert {folder.name for folder in tmp_path.iterdir()} == {"own"}
    trim(tmp_path / "none", 0, keep=tmp_path)


def test_what_others_delete_meanwhile_is_passed_over(tmp_path):
    folder_with(tmp_path / "old", a_onnx=b"x" * 100)
    (tmp_path / "old" / "deleted.onnx").symlink_to("nowhere")
    (tmp_path / "deleted").symlink_to("nowhere")
    trim(tmp_path, 100, keep=tmp_path / "own")
    assert (tmp_path / "old").exists()
    trim(tmp_path, 99, keep=tmp_path / "own")
    assert not (tmp_path / "old").exists()


def test_the_digest_follows_from_everything(source, graphs, monkeypatch):
    before = content_digest(source, graphs, "fp32")
    assert content_digest(source, graphs, "fp32") == before
    assert content_digest(source, graphs, "fp16") != before
    bias = next(graphs["vae_decoder"].parameters())
    with torch.no_grad():
        bias.view(-1)[0] += 1
        assert content_digest(source, graphs, "fp32") != before
        bias.view(-1)[0] -= 1
    with monkeypatch.context() as patch:
        patch.setattr(stage_cache, "code_digest", lambda: "other code")
        assert content_digest(source, graphs, "fp32") != before
    with monkeypatch.context() as patch:
        patch.setattr(stage_cache, "tool_versions", lambda: {"torch": "3"})
        assert content_digest(source, graphs, "fp32") != before
    assert content_digest(source, {n: g for n, g in graphs.items() if n != "vae_encoder"}, "fp32") != before


DIGEST = """
import sys
from pathlib import Path
from bolid_export.graphs import bind_graphs
from bolid_export.sources import model_sizes, open_source
from bolid_export.stage_cache import content_digest
source = open_source(Path(sys.argv[1]))
print(content_digest(source, bind_graphs(source.checkpoint, model_sizes(source.checkpoint)), "int8"))
"""


@pytest.mark.slow
def test_every_process_finds_the_same_digest(model_folder):
    """Python's sets have another order in each."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, model_folder],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()[-1]
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 32


def test_islands_and_ranges_survive_json():
    island = Island(graph="a", module="b", reason="c")
    lowered = Lowered(graph=None, islands=[island], quantised={"layers": 3})
    assert Lowered.from_dict(json.loads(json.dumps(lowered.to_dict()))) == lowered


def test_a_stopped_export_does_not_trace_again(source, tmp_path, monkeypatch):
    """One graph is traced, the next is not begun; then everything again, without it."""
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "cache"))
    target = Target(folder=tmp_path / "out", precision="fp32", licence="none", cache=True)
    calibrated = pipeline._calibrate
    made = []

    def calibrate_once(*arguments):
        made.append(made[0] if made else calibrated(*arguments))
        return made[0]

    monkeypatch.setattr(pipeline, "_calibrate", calibrate_once)
    stages = []

    def stop_after_one(stage):
        stages.append(stage)
        if stage == "tracing pose_estimator":
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            export_bundle(source, target, stop_after_one)
        monkeypatch.setattr(pipeline, "write_onnx", None)
    assert [stage for stage in stages if stage.startswith("tracing")] == [
        "tracing text_encoder",
        "tracing pose_estimator",
        "tracing text_encoder, done before",
        "tracing pose_estimator",
    ]
    assert not (tmp_path / "out").exists()


def test_a_limit_that_is_no_size(source, monkeypatch, tmp_path):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("BOLID_CACHE_LIMIT", "many")
    target = Target(folder=tmp_path / "out", precision="fp32", licence="none", cache=True)
    with pytest.raises(InputError, match="BOLID_CACHE_LIMIT"):
        export_bundle(source, target)
