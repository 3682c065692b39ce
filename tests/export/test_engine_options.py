"""What is asked of TensorRT's builder, of which there is none here: on an imaginary one, and without a GPU."""

import enum
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from bolid_export.cli import main
from bolid_export.engines import target as engine_target
from bolid_export.engines import tensorrt_worker
from bolid_export.engines.refit import refittable_weights
from bolid_export.engines.target import BuildOptions, EngineRequest
from bolid_export.to_tensorrt import timing_cache
from bolid_sdk.backends.cuda_device import open_device
from bolid_sdk.built_engine import EngineKey
from bolid_sdk.errors import BackendError, InputError

ROOT = Path(__file__).parents[2]
OPTIONS = {"version_compatible": False, "hardware_compatible": False, "refit": False}


class Levels(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class OldLevels(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1


def tensorrt(levels=Levels, typed=True):
    flags = enum.Enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1} if typed else {"OTHER": 0})
    flags.__int__ = lambda flag: flag.value
    builder_flags = enum.Enum("BuilderFlag", ["TF32", "VERSION_COMPATIBLE", "REFIT_INDIVIDUAL"])
    return SimpleNamespace(
        NetworkDefinitionCreationFlag=flags, HardwareCompatibilityLevel=levels, BuilderFlag=builder_flags
    )


class Config:
    """Of the builder; refuses a timing cache that says so."""

    def __init__(self):
        self.flags, self.profiles, self.cache = {"TF32"}, [], None
        self.hardware_compatibility_level = Levels.NONE

    def clear_flag(self, flag):
        self.flags.remove(flag.name)

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content, serialize=lambda: b"measured")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache.content
        return cache.content != b"of another GPU"


class Builder:
    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        shapes = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))


def config(trt, **options):
    request = {"shapes": {"x": ((1,), (2,), (4,))}, "compute_capabilities": ["8.9"], "options": OPTIONS | options}
    return tensorrt_worker._config(trt, Builder(), request)


@pytest.fixture
def gpu(monkeypatch):
    """TensorRT, and a GPU of 8.9."""
    library = ModuleType("tensorrt")
    library.__spec__, library.__version__ = ModuleSpec("tensorrt", None), "10.16.1.11"
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    device = SimpleNamespace(capability="8.9")
    monkeypatch.setattr(engine_target, "open_device", lambda index: device)


def test_networks_are_strongly_typed_where_that_is_a_choice():
    assert tensorrt_worker._network_flags(tensorrt()) == 2
    assert tensorrt_worker._network_flags(tensorrt(typed=False)) == 0


def test_an_engine_is_for_all_gpus_of_its_compute_capability():
    made = config(tensorrt())
    assert made.hardware_compatibility_level is Levels.SAME_COMPUTE_CAPABILITY
    assert made.flags == set()  # no TF32
    assert made.profiles == [{"x": ((1,), (2,), (4,))}]
    assert config(tensorrt(OldLevels)).hardware_compatibility_level is Levels.NONE


def test_compatible_engines():
    made = config(tensorrt(), version_compatible=True, hardware_compatible=True)
    assert made.hardware_compatibility_level is Levels.AMPERE_PLUS
    assert made.flags == {"VERSION_COMPATIBLE"}


def test_the_timing_cache_goes_from_build_to_build(tmp_path):
    file = tmp_path / "tensorrt" / "a.timing"
    assert tensorrt_worker._load_timing_cache(Config(), None) is None
    for before in (None, b"measured", b"of another GPU"):
        if before is not None:
            file.write_bytes(before)
        cache = tensorrt_worker._load_timing_cache(Config(), str(file))
        assert cache.content == (before if before == b"measured" else b"")
        tensorrt_worker._save_timing_cache(cache, str(file))
        assert file.read_bytes() == b"measured"
    assert list(file.parent.iterdir()) == [file]


def test_a_timing_cache_that_cannot_be_written_costs_nothing_else(tmp_path, capsys):
    (tmp_path / "file").touch()
    tensorrt_worker._save_timing_cache(SimpleNamespace(serialize=lambda: b""), str(tmp_path / "file" / "a.timing"))
    assert "cannot be written" in capsys.readouterr().err


def test_weights_are_made_refittable_one_by_one():
    made = Config()
    tensorrt_worker._make_refittable(tensorrt(), None, made, [])
    assert "REFIT_INDIVIDUAL" not in made.flags
    network = SimpleNamespace(mark_weights_refittable=lambda name: name != "lost")
    tensorrt_worker._make_refittable(tensorrt(), network, made, ["one"])
    assert "REFIT_INDIVIDUAL" in made.flags
    with pytest.raises(tensorrt_worker.RefusalError, match="made refittable: lost"):
        tensorrt_worker._make_refittable(tensorrt(), network, made, ["one", "lost"])


def test_the_adapters_weights_are_found():
    """Those of the embedded bundle, by their sizes: keys and values of both branches, in each of seven layers."""
    file = ROOT / "engines" / "avatar" / "denoiser.onnx"
    weights = {weight.name: list(weight.dims) for weight in onnx.load(file).graph.initializer}
    names = refittable_weights(file)
    assert len(names) == 7 * 2 * 2
    assert {weights[name][0] for name in names} == {192}  # from the width of identity tokens
    whole = refittable_weights(ROOT / "engines" / "avatar" / "image_projector.onnx")
    assert any("layers.0" in name for name in whole)
    assert refittable_weights(ROOT / "engines" / "avatar" / "text_encoder.onnx") == []


def test_quantised_weights_are_found(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"], "w/DequantizeLinear"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "attn2.processor.identity.to_k_ip/MatMul"),
        helper.make_node("MatMul", ["y", "plain"], ["z"], "attn2.to_out/MatMul"),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xz")
    weights = [
        helper.make_tensor("w8", TensorProto.INT8, [2, 2], [1] * 4),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("plain", TensorProto.FLOAT, [2, 2], [1.0] * 4),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "denoiser", [x], [z], weights)), tmp_path / "denoiser.onnx")
    assert refittable_weights(tmp_path / "denoiser.onnx") == ["w8", "scale"]


def test_a_target_is_the_gpu_that_is_here(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path))
    request = EngineRequest.parse("tensorrt", None, None, None)
    assert (request.runtime, request.compute_capabilities) == ("tensorrt 10.16.1.11", ("8.9",))
    both = BuildOptions(version_compatible=True, hardware_compatible=True)
    request = EngineRequest.parse("tensorrt", "8.9", None, None, both)
    assert (request.runtime, request.compute_capabilities) == ("tensorrt 10.16.1.11+", ("8.0+",))
    key = EngineKey(
        graph_sha256=(), shapes={}, precision="fp16", runtime=request.runtime, compute_capabilities=("8.9",)
    )
    assert timing_cache(key) == tmp_path / "tensorrt" / "tensorrt-10.16.1.11+-8.9.timing"
    assert timing_cache(replace(key, runtime="tensorrt-rtx 1.7")) is None
    with pytest.raises(InputError, match=r"--compute-capability 12.0 is not that of the GPU here"):
        EngineRequest.parse("tensorrt", "12.0", None, None)


def test_tensorrt_without_a_gpu_says_what_builds_without_one(gpu, monkeypatch):
    monkeypatch.setattr(engine_target, "open_device", open_device)
    with pytest.raises(BackendError, match=r"on the GPU that they are for, and .*tensorrt-rtx builds without one"):
        EngineRequest.parse("tensorrt", None, None, None)


def mistake(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    return result.stderr


def test_a_missing_library_is_one_line_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    find = engine_target.importlib.util.find_spec
    missing = {"tensorrt"}
    monkeypatch.setattr(
        engine_target.importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest)
    )
    assert "tensorrt, which builds the engines, is not installed: pip install 'bolid-sdk[export,tensorrt]'" in mistake(
        "--backend", "tensorrt"
    )


def test_options_of_tensorrt_alone(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'bolid-sdk[tensorrt-rtx]'")
    rtx = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")
    for option in ("--refit", "--version-compatible", "--hardware-compatible"):
        assert f"{option} is for --backend tensorrt;" in mistake(*rtx, option, "-o", str(Path(tmp_path) / "x"))
        assert f"{option} is for engines" in mistake(option)
