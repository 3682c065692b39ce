"""`bolid-doctor` on a bundle with engines: whom they are for, and whether they compute what was stored."""

import json

from click.testing import CliRunner

from bolid_sdk.cli import doctor


def run(*arguments):
    return CliRunner().invoke(doctor, [str(argument) for argument in arguments])


def test_engines_of_this_machine(machine, engine_bundle):
    outcome = run(engine_bundle.path, "--backend", "tensorrt-rtx")
    assert outcome.exit_code == 0, outcome.output
    engines = f"{len(engine_bundle.manifest.graphs)} tensorrt engines, built by tensorrt 10.16.1.11"
    assert f"{engines}, compute capability 8.9: for this machine" in outcome.stdout
    assert "on tensorrt-rtx 10.16.1.11 on cuda:0 (Imaginary GPU" in outcome.stdout
    engine = json.loads(run(engine_bundle.path, "--json").stdout)["bundle"]["engines"]["tensorrt"]["denoiser"]
    assert engine["matches"] is True
    assert engine["key"] == engine_bundle.manifest.graphs["denoiser"].engines["tensorrt"].key.digest


def test_engines_of_another_gpu_are_told_but_do_no_harm_elsewhere(machine, engine_bundle):
    machine.cuda.capability = "12.0"
    outcome = run(engine_bundle.path, "--backend", "onnxruntime", "--device", "cpu")
    assert outcome.exit_code == 0, outcome.output
    assert "compute capability 8.9: NOT for this machine" in outcome.stdout
    outcome = run(engine_bundle.path, "--backend", "tensorrt")
    assert outcome.exit_code == 2
    assert "error: tensorrt/denoiser.engine was built for compute capability 8.9, this GPU has 12.0" in outcome.stdout
    assert machine.tensorrt.deserialised == []


def test_engines_without_a_driver(machine, engine_bundle):
    machine.cuda.error = 35
    outcome = run(engine_bundle.path)
    assert outcome.exit_code == 0, outcome.output
    assert "cannot be checked here (no CUDA device works: cudaErrorInsufficientDriver" in outcome.stdout
    assert "the bundle's engines are not used" in outcome.stdout


def test_a_tampered_engine(machine, make_engine_bundle):
    bundle = make_engine_bundle("tensorrt")
    path = bundle.path / "tensorrt" / "denoiser.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = run(bundle.path)
    assert outcome.exit_code == 2
    assert "changed after export" in outcome.stdout
    assert machine.tensorrt.deserialised == []
