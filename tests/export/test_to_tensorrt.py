"""TensorRT-RTX engines are really built, here and without a GPU; what cannot be built is one clear line."""

import importlib.util
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from bolid_export import pipeline, to_tensorrt
from bolid_export.calibrate import Calibration
from bolid_export.cli import default_output, main
from bolid_export.engines.shapes import Range, graph_profile, resolve_shapes
from bolid_export.engines.target import EngineTarget, runtime_name
from bolid_export.pipeline import Target, export_bundle, stage_count
from bolid_export.to_tensorrt import EngineBuildError, build_engine
from bolid_sdk.built_engine import EngineKey
from bolid_sdk.bundle import Bundle, file_sha256
from bolid_sdk.contracts import PARTS, graph_specs

pytest.importorskip("tensorrt_rtx", reason="pip install 'bolid-sdk[tensorrt-rtx]'")

TENSORRT = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")
KEY = EngineKey(
    graph_sha256=("0" * 64,),
    shapes={"x": ((1, 3), (1, 3), (4, 3))},
    precision="fp32",
    runtime="tensorrt-rtx",
    compute_capabilities=("8.9",),
)


def target_for(sizes):
    shapes = resolve_shapes(Range.parse("1:1:2", "--batch"), None, sizes)
    return EngineTarget(
        backend="tensorrt-rtx",
        runtime=runtime_name("tensorrt-rtx"),
        compute_capabilities=("8.9",),
        shapes=shapes,
    )


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def mistake(*arguments):
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    return result.stderr


def tiny_graph(folder, kind="Relu"):
    """An ONNX file of one node."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], "layer/one")], "tiny", [x], [y])
    file = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    return file


@pytest.fixture
def crashing_builder(monkeypatch):
    script = "import os; print('start'); print('building layer 7', flush=True); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(to_tensorrt, "WORKER", (sys.executable, "-c", script))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_avatars_engines_are_built_in_three_minutes(precision, tmp_path, record_property):
    """The whole command, verified, with an engine of every graph, on a machine without a GPU."""
    folder, start, before = tmp_path / "avatar", time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "bolid_export", *TENSORRT, "--precision", precision, "--no-cache", "--json"]
    child = subprocess.run([*command, "-o", folder], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert child.returncode == 0, child.stderr
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("seconds", {"clock": time.monotonic() - start, "processor": processor})
    bundle, printed = Bundle.open(folder), json.loads(child.stdout)["graphs"]
    bundle.verify_hashes()
    for name, graph in bundle.manifest.graphs.items():
        engine = graph.engines["tensorrt-rtx"]
        assert printed[name]["engines"]["tensorrt-rtx"]["key"] == engine.key.digest
        assert file_sha256(folder / graph.file) == engine.key.graph_sha256[0]
        assert engine.key.precision == precision
        assert bundle.manifest.files[engine.file].bytes == (folder / engine.file).stat().st_size > 50_000
        assert engine.build["seconds"] > 0
        assert engine.build["peak_bytes"] is None or 5e7 < engine.build["peak_bytes"] < 2e9
    text = (folder / "report.md").read_text()
    assert f"## {runtime_name('tensorrt-rtx')}" in text
    assert "compute capability 8.9, for batches of 1:1:4, pictures 128 pixels high and 128 wide" in text
    # in float32 the denoiser's has 72 MB
    assert (folder / "tensorrt-rtx" / "denoiser.engine").stat().st_size < 55e6
    # of two processors, since the machine may have other work
    assert processor < 2 * 180


def test_engines_are_for_what_the_runtime_brings(sizes):
    shapes = resolve_shapes(Range.parse("1:2:4", "--batch"), Range.parse("64", "--size"), sizes)
    profiles = {name: graph_profile(spec, shapes, sizes) for name, spec in graph_specs(sizes).items()}
    channels = sizes.latent_channels
    assert profiles["denoiser"]["sample"] == ((1, channels, 8, 8), (2, channels, 8, 8), (4, channels, 8, 8))
    assert [shape[0] for shape in profiles["denoiser"]["encoder_hidden_states"]] == [1, 4, 8]
    assert profiles["denoiser"]["guidance"] == ((1,), (1,), (1,))
    assert [shape[2] for shape in profiles["denoiser"]["pose_features_1"]] == [4, 4, 4]
    # the unconditional prompt beside those of four pictures; one person's crops from one reference to sixteen
    assert [shape[0] for shape in profiles["text_encoder"]["input_ids"]] == [1, 2, 5]
    assert [shape[0] for shape in profiles["image_encoder"]["pixels"]] == [1, PARTS, 16 * PARTS]
    assert [shape[1] for shape in profiles["identity_encoder"]["parts"]] == [PARTS, PARTS, 16 * PARTS]


def test_native_sides_are_the_default_and_may_be_a_range(sizes):
    batch = Range.fixed(1)
    assert resolve_shapes(batch, None, sizes).height == Range.fixed(sizes.native_height)
    assert str(Range.parse("32:64:128", "--size")) == "32:64:128"
    assert str(Range.parse("4", "--batch")) == "4"


def test_engines_are_stages_of_their_own(sizes):
    assert stage_count(sizes, target_for(sizes)) == 3 * len(graph_specs(sizes)) + 3


def test_a_damaged_graph_is_one_clear_error(tmp_path):
    file = tmp_path / "tiny.onnx"
    file.write_bytes(b"garbage" * 100)
    with pytest.raises(EngineBuildError, match=r"refuses tiny, so nothing was written: .*parse the ONNX model"):
        build_engine(file, tmp_path / "tiny.engine", KEY)
    assert list(tmp_path.iterdir()) == [file]


def test_a_refused_operator_is_named_with_its_node(tmp_path):
    with pytest.raises(EngineBuildError, match=r"node layer/one \(Unknown\)"):
        build_engine(tiny_graph(tmp_path, "Unknown"), tmp_path / "tiny.engine", KEY)


def test_what_the_builder_says_only_in_its_log_is_quoted(tmp_path):
    wrong = replace(KEY, shapes={"x": ((1, 4), (1, 4), (4, 4))})
    with pytest.raises(EngineBuildError, match=r"refuses tiny.*: \[E\] .*profile has min=4"):
        build_engine(tiny_graph(tmp_path), tmp_path / "tiny.engine", wrong)


def test_an_engine_is_for_all_the_architectures_that_are_named(tmp_path):
    file = tiny_graph(tmp_path)
    sizes = {}
    for targets in (("8.9",), ("8.9", "12.0")):
        build_engine(file, tmp_path / "tiny.engine", replace(KEY, compute_capabilities=targets))
        sizes[targets] = (tmp_path / "tiny.engine").stat().st_size
    assert sizes["8.9", "12.0"] > sizes["8.9",]


def test_a_crash_of_the_builder_is_an_error_with_its_log(tmp_path, crashing_builder):
    with pytest.raises(EngineBuildError, match=r"crashed \(signal 11\) while it built tiny.*start \| building layer 7"):
        build_engine(tiny_graph(tmp_path), tmp_path / "tiny.engine", KEY)
    assert EngineBuildError.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.onnx"]


def test_a_failing_builder_is_told_from_a_crashing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(to_tensorrt, "WORKER", (sys.executable, "-c", "raise SystemExit('no disk')"))
    with pytest.raises(EngineBuildError, match=r"failed \(exit code 1\).*no disk"):
        build_engine(tiny_graph(tmp_path), tmp_path / "tiny.engine", KEY)


def test_a_crash_leaves_no_bundle_behind(source, sizes, tmp_path, monkeypatch, crashing_builder):
    calibration = Calibration(scenes=(), records={name: [] for name in graph_specs(sizes)})
    monkeypatch.setattr(pipeline, "_calibrate", lambda *_: calibration)
    monkeypatch.setattr(pipeline, "_trace", lambda *_: [])
    monkeypatch.setattr(pipeline, "_verify", lambda *_: {})
    folder = tmp_path / "engines" / "bad"
    target = Target(folder=folder, precision="fp32", licence="none", engines=target_for(sizes))
    with pytest.raises(EngineBuildError, match="text_encoder"):
        export_bundle(source, target)
    assert list(tmp_path.rglob("*")) == []


def test_the_worker_needs_no_pytorch():
    """Its memory is the builder's."""
    script = "import sys, bolid_export.engines.tensorrt_worker; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


def test_the_plan_shows_the_engines(model_folder, tmp_path):
    options = ("--model", model_folder, "-o", tmp_path / "out", "--dry-run", "--batch", "2", *TENSORRT)
    engines = json.loads(run(*options, "--json").stdout)["engines"]
    assert engines["compute_capabilities"] == ["8.9"]
    assert engines["graphs"]["denoiser"]["file"] == "tensorrt-rtx/denoiser.engine"
    assert [shape[0] for shape in engines["graphs"]["denoiser"]["shapes"]["identity_tokens"]] == [2, 4, 4]
    assert "tensorrt-rtx/vae_decoder.engine" in run(*options).output
    assert not (tmp_path / "out").exists()


def test_help_teaches_engines():
    text = " ".join(run("--help").output.split())
    assert "--compute-capability 8.9,12.0" in text
    assert "[default: 1:1:4]" in text


def test_unusable_options_are_one_line(model_folder, tmp_path):
    options = ("--model", model_folder, "-o", tmp_path / "out")
    rtx = ("--backend", "tensorrt-rtx")
    assert "9.9 is unknown; there is 7.5, 8.0, 8.6, 8.9" in mistake(*options, *rtx, "--compute-capability", "9.9,8.9")
    assert "name them with --compute-capability" in mistake(*options, *rtx)
    assert "name them with --compute-capability" in mistake(*options, *rtx, "--compute-capability", ",")
    assert "add --backend tensorrt-rtx" in mistake(*options, "--compute-capability", "8.9")
    assert "add --backend tensorrt-rtx" in mistake(*options, "--batch", "4")
    for batch in ("4:1:1", "0", "1:2", "one", "1:1:4:4", ""):
        assert "expected MIN:OPT:MAX" in mistake(*options, *TENSORRT, "--batch", batch)
    for size in ("63", "32:64:4096", "8"):
        assert "does not fit the model; expected multiples" in mistake(*options, *TENSORRT, "--size", size)


def test_a_missing_library_is_one_line_with_its_command(model_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "tensorrt" in name else find(name))
    assert "pip install 'bolid-sdk[export,tensorrt-rtx]'" in mistake("--model", model_folder, *TENSORRT)


def test_engines_have_a_folder_of_their_own(tmp_path):
    assert default_output(None, "fp32", "tensorrt-rtx").name == "avatar-fp32-tensorrt-rtx"
    assert default_output(tmp_path / "anna", "fp16", "tensorrt-rtx").name == "anna-fp16-tensorrt-rtx"
