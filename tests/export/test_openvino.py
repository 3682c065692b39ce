"""`--backend openvino`: the same bundle, verified by OpenVINO as well, and compiled before its first start."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bolid_export import cli, pipeline, to_openvino
from bolid_export.cli import main
from bolid_export.graphs import bind_graphs
from bolid_export.report import report
from bolid_export.sources import default_checkpoint, model_sizes, open_source
from bolid_export.verification.runtimes import BFLOAT16, OPENVINO, Runtime, open_runtime
from bolid_export.verify import LIMITS, Limits, VerificationError, require_passed
from bolid_sdk import backends
from bolid_sdk.backends import ov, ov_compiler
from bolid_sdk.backends.ov import PIXEL_GRAPHS
from bolid_sdk.bundle import Bundle, open_bundle
from bolid_sdk.contracts import graph_specs
from bolid_sdk.errors import BackendError
from bolid_sdk.generator import Generator

ROOT = Path(__file__).parents[2]
TIGHT = Limits(cosine=0.9999, relative_error=0.001, psnr=45, ssim=0.99)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def missing(monkeypatch):
    installed = backends._is_installed
    monkeypatch.setattr(backends, "_is_installed", lambda module: module != "openvino" and installed(module))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def mistake(*arguments):
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    return result.stderr


def test_a_missing_openvino_is_one_line_before_anything_is_read(missing, tmp_path):
    message = mistake("--backend", "openvino", "--model", tmp_path / "none", "-o", tmp_path / "out")
    assert "'openvino' is not installed: pip install 'bolid-sdk[openvino]'" in message


def test_options_of_engines_are_not_for_openvino(tmp_path):
    assert "--batch 2 is for engines" in mistake("--backend", "openvino", "--batch", "2", "-o", tmp_path / "out")


def test_the_command_asks_for_both_libraries(model_folder, tmp_path, monkeypatch):
    targets = []
    monkeypatch.setattr(cli, "_export", lambda source, target, as_json: targets.append(target))
    for backend in ("onnx", "openvino"):
        assert run("--model", model_folder, "--backend", backend, "-o", tmp_path / "out").exit_code == 0
    assert [target.runtimes for target in targets] == [("onnxruntime",), ("onnxruntime", "openvino")]
    assert cli.default_output(model_folder, "int8", "openvino").name == "tiny-int8-openvino"


def test_bfloat16_has_limits_of_its_own(monkeypatch):
    openvino = SimpleNamespace(description="")
    runtime = Runtime(name="openvino", backend=openvino, limits=TIGHT, bfloat16=PIXEL_GRAPHS)
    assert runtime.limits_of("denoiser") == runtime.loop_limits == BFLOAT16
    assert runtime.limits_of("pose_estimator") == TIGHT
    assert runtime.summary(["denoiser", "text_encoder"])["bfloat16"] == ["denoiser"]
    wide = Runtime(name="openvino", backend=openvino, limits=LIMITS["int8"], bfloat16=PIXEL_GRAPHS)
    assert wide.limits_of("denoiser") == LIMITS["int8"]
    plain = Runtime(name="openvino", backend=openvino, limits=TIGHT)
    assert plain.limits_of("denoiser") == plain.loop_limits == TIGHT
    assert plain.summary(["denoiser"]) == {"library": "", "limits": asdict(TIGHT)}


def test_bfloat16_is_what_the_backend_computes_in(monkeypatch):
    assert open_runtime("onnxruntime", "fp32").bfloat16 == frozenset()
    monkeypatch.setattr(ov, "_use_bfloat16", lambda core, precision: True)
    assert open_runtime("openvino", "fp32").bfloat16 == PIXEL_GRAPHS
    monkeypatch.setattr(ov, "_use_bfloat16", lambda core, precision: False)
    assert open_runtime("openvino", "fp32").bfloat16 == frozenset()


def test_a_failed_gate_names_the_library():
    class Failed:
        graph, output, cosine, relative_error, passed = "denoiser", "x0", 0.5, 0.5, False

    with pytest.raises(VerificationError, match=r"run by openvino 2, differs from PyTorch.*denoiser.x0 \(cosine 0.5"):
        require_passed([Failed], library="openvino 2")


@pytest.fixture(scope="module")
def avatar():
    """The embedded bundle's graphs, so that none has to be traced, and what PyTorch answers."""
    source = open_source(default_checkpoint())
    sizes = model_sizes(source.checkpoint)
    graphs = bind_graphs(source.checkpoint, sizes)
    return source, graphs, pipeline._calibrate(source, graphs, sizes, lambda stage: None)


def verify_by_openvino(avatar, stages):
    return pipeline._verify_by(open_runtime(OPENVINO, "fp32"), *avatar, open_bundle().path, stages.append)


def test_openvino_verifies_every_graph_and_the_loop(avatar):
    stages, names = [], list(avatar[1])
    checked = verify_by_openvino(avatar, stages)
    assert checked["library"].startswith("openvino ")
    assert {check["graph"] for check in checked["graphs"]} == set(names)
    assert checked["loop"]["passed"]
    in_turn = [f"verifying {name} by openvino" for name in sorted(names, key="denoiser".__eq__)]
    assert stages == [*in_turn, "verifying the whole loop by openvino"]
    first = {**checked, "library": "onnxruntime 1"}
    first, second = report("avatar", "fp32", {**first, "also": [checked]}, dict.fromkeys(names, 1)).split("\n## ")
    assert "Run by onnxruntime 1: " in first
    assert second.startswith("openvino ")
    assert all(f"\n| {name} " in second for name in names)


def test_a_graph_that_openvino_computes_otherwise_is_refused(avatar, monkeypatch):
    run_loop = ov.OvLoop.run

    def changed(self, inputs):
        outputs = run_loop(self, inputs)
        if self._engine.name == "vae_decoder":
            outputs["pixels"].value.data[:] *= 0.8
        return outputs

    monkeypatch.setattr(ov.OvLoop, "run", changed)
    with pytest.raises(VerificationError, match=r"run by openvino .*vae_decoder\.pixels"):
        verify_by_openvino(avatar, [])


def test_a_first_picture_compiles_nothing(monkeypatch):
    """With the embedded bundle, a stranger's picture and nothing but defaults."""
    bundle, stages = open_bundle(), []
    names = to_openvino.compile_ahead(bundle, stages.append)
    assert stages == [f"compiling {name}" for name in names]
    assert set(bundle.manifest.graphs) - set(names) == {"vae_encoder", "denoiser_shallow"}
    monkeypatch.setattr(ov_compiler.OvCompiler, "_write", None)
    Generator(backend="openvino")(ROOT / "examples" / "ref.png", "standing on a beach", seed=7)


def test_without_a_cache_nothing_is_compiled_ahead(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "file"))
    assert to_openvino.compile_ahead(open_bundle()) == []


def test_what_cannot_be_compiled_ahead_is_a_warning(monkeypatch, capsys):
    def fail(bundle):
        raise BackendError("openvino cannot compile denoiser.onnx: out of memory")

    monkeypatch.setattr(to_openvino, "compile_ahead", fail)
    cli._compile_ahead(open_bundle())
    assert capsys.readouterr().err.startswith("warning: nothing is compiled ahead, the first start will: openvino can")


def test_placeholders_have_the_shapes_of_the_spec(sizes):
    spec = graph_specs(sizes)["denoiser"]
    (axes,) = to_openvino.first_axes("vae_decoder", sizes, open_bundle().manifest.sampling)
    shapes = {name: array.shape for name, array in to_openvino.placeholders(spec, axes).items()}
    assert shapes["sample"] == (1, sizes.latent_channels, 8, 8)
    assert shapes["pose_features_1"][-1] == 4


@pytest.mark.slow
def test_a_whole_export(model_folder, tmp_path, cache):
    folder = tmp_path / "out"
    result = run("--model", model_folder, "--backend", "openvino", "--precision", "fp32", "-o", folder)
    assert result.exit_code == 0, result.output
    assert f"--bundle {folder} --backend openvino" in result.output
    verification = Bundle.open(folder).manifest.verification
    assert [verification["library"].split()[0], *(o["library"].split()[0] for o in verification["also"])] == [
        "onnxruntime",
        "openvino",
    ]
    assert list(cache.rglob("*.blob"))
    assert OPENVINO in (folder / "report.md").read_text()
