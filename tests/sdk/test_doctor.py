"""`bolid-doctor`: every kind of damage has a message of its own, and stored outputs are compared."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from bolid_sdk import backends
from bolid_sdk import doctor as sdk_doctor
from bolid_sdk.bundle import Bundle
from bolid_sdk.bundle_check import MIN_COSINE, check_bundle, min_cosine
from bolid_sdk.cli import doctor


def run(*arguments):
    return CliRunner().invoke(doctor, [str(argument) for argument in arguments])


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A bundle that may be damaged."""
    shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def text_states(files, factor=1.0):
    """What the tiny text encoder gives for 77 tokens of number 1: its second row, seventy-seven times."""
    row = numpy_helper.to_array(onnx.load(files["text_encoder.onnx"]).graph.initializer[0])[1:2]
    return factor * np.repeat(row, 77, axis=0)[None]


@pytest.fixture
def with_golden(make_bundle, tiny_files, tmp_path):
    """A bundle with these stored outputs of the text encoder."""

    def make(states, **changes):
        arrays = {"inputs/input_ids": np.ones((1, 77), np.int64), "outputs/encoder_hidden_states": states}
        np.savez(tmp_path / "golden.npz", **{f"text_encoder/{name}": array for name, array in arrays.items()})
        return make_bundle({**tiny_files, "golden.npz": tmp_path / "golden.npz"}, golden="golden.npz", **changes)

    return make


def test_a_whole_bundle(tiny_bundle):
    outcome = run(tiny_bundle.path)
    assert outcome.exit_code == 0
    assert f"all well: {len(tiny_bundle.manifest.files)} files match" in outcome.stdout
    assert outcome.stderr == ""
    report = json.loads(run(tiny_bundle.path, "--json", "--backend", "onnxruntime", "--device", "cpu").stdout)
    assert report["ok"]
    assert report["bundle"]["backend"].startswith("onnxruntime")
    assert set(report["bundle"]["graphs"]) == set(tiny_bundle.manifest.graphs)


def test_the_embedded_bundle_computes_what_was_stored():
    report = check_bundle(None, "onnxruntime")
    assert report["problems"] == []
    assert all(graph["golden_cosine"] > 0.99999 for graph in report["graphs"].values())


def test_each_damage_has_its_own_message_and_all_are_told(copy):
    changed = bytearray((copy / "denoiser.onnx").read_bytes())
    changed[-1] ^= 1
    (copy / "denoiser.onnx").write_bytes(changed)
    (copy / "vae_decoder.onnx").write_bytes((copy / "vae_decoder.onnx").read_bytes()[:-1])
    (copy / "tokenizer.json").unlink()
    outcome = run(copy)
    assert outcome.exit_code == 2
    errors = [line for line in outcome.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert f"{copy / 'denoiser.onnx'} has sha256" in outcome.stdout
    assert "changed after export" in outcome.stdout
    assert "vae_decoder.onnx has" in outcome.stdout
    assert "the file was truncated or replaced" in outcome.stdout
    assert "tokenizer.json is missing" in outcome.stdout


def test_links_out_of_the_folder(copy, tiny_bundle):
    (copy / "denoiser.onnx").unlink()
    (copy / "denoiser.onnx").symlink_to(tiny_bundle.path / "denoiser.onnx")
    assert "is a link out of the bundle" in run(copy).stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json; make one"),
        ("{", "is not valid JSON"),
        ("{}", "has schema None"),
        ("[]", "no JSON obj"),
    ],
)
def test_damaged_manifests(copy, content, message):
    (copy / "manifest.json").unlink()
    if content is not None:
        (copy / "manifest.json").write_text(content)
    outcome = run(copy)
    assert outcome.exit_code == 2
    assert message in outcome.stdout


def test_no_bundle_at_all(tmp_path):
    assert "error: no such bundle" in run(tmp_path / "nowhere").stdout


def test_files_that_are_no_part_of_it_are_named(copy):
    (copy / "notes.txt").touch()
    outcome = run(copy)
    assert outcome.exit_code == 0
    assert "not part of it: notes.txt" in outcome.stdout


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (-1.0, 2), (np.nan, 2)])
def test_stored_outputs(with_golden, tiny_files, factor, code):
    outcome = run(with_golden(text_states(tiny_files, factor)).path)
    assert outcome.exit_code == code, outcome.output
    told = "text_encoder: encoder_hidden_states differs from the output stored at export"
    assert (told in outcome.stdout) == (code == 2)


def test_stored_outputs_of_another_shape(with_golden, tiny_files):
    assert run(with_golden(text_states(tiny_files)[:, :5]).path).exit_code == 2


def test_stored_inputs_that_a_graph_refuses_hide_no_other_graph(make_bundle, tiny_files, tmp_path):
    arrays = {"inputs/input_ids": np.ones((1, 5), np.int64), "outputs/encoder_hidden_states": text_states(tiny_files)}
    np.savez(tmp_path / "golden.npz", **{f"text_encoder/{name}": array for name, array in arrays.items()})
    bundle = make_bundle({**tiny_files, "golden.npz": tmp_path / "golden.npz"}, golden="golden.npz")
    outcome = run(bundle.path, "--backend", "onnxruntime")
    assert outcome.exit_code == 2
    assert "onnxruntime cannot run text_encoder: " in outcome.stdout
    assert "denoiser: loads in" in outcome.stdout


def test_the_tolerance_depends_on_the_precision(with_golden, tiny_files):
    """A perturbation of cosine 0.9995 is a fault in fp32, and rounding in fp16."""
    exact = text_states(tiny_files)
    noise = np.random.default_rng(0).standard_normal(exact.shape)
    noise -= exact * (noise * exact).sum() / (exact * exact).sum()
    states = (exact + 0.0316 * noise * np.linalg.norm(exact) / np.linalg.norm(noise)).astype(np.float32)
    for precision, ok in (("fp32", False), ("fp16", True), ("int8", True)):
        assert check_bundle(with_golden(states, precision=precision).path)["ok"] is ok


def test_the_tolerance_is_no_stricter_than_the_export_was(tiny_bundle, make_bundle):
    assert min_cosine(tiny_bundle.manifest) == MIN_COSINE["fp32"]
    lax = make_bundle(precision="int8", verification={"limits": {"cosine": 0.95}})
    assert min_cosine(lax.manifest) == 0.95


@pytest.mark.parametrize("held", ["PK\x03\x04 noise", "noise", "", "array", "text_encoder/beside/pixels", "pixels"])
def test_damaged_stored_outputs(make_bundle, tiny_files, tmp_path, held):
    file = tmp_path / "golden.npz"
    if held == "array":
        with file.open("wb") as open_file:
            np.save(open_file, np.zeros(3))
    elif held.endswith("pixels"):
        np.savez(file, **{held: np.zeros(3)})
    else:
        file.write_bytes(held.encode())
    bundle = make_bundle({**tiny_files, "golden.npz": file}, golden="golden.npz")
    outcome = run(bundle.path)
    assert (outcome.exit_code, type(outcome.exception)) == (2, SystemExit)
    assert "is no file of stored outputs" in outcome.stdout


@pytest.mark.parametrize("stored", [{}, {"outputs/pixels": np.zeros(3)}])
def test_stored_outputs_that_the_graph_does_not_have(make_bundle, tiny_files, tmp_path, stored):
    arrays = {"inputs/input_ids": np.ones((1, 77), np.int64), **stored}
    np.savez(tmp_path / "golden.npz", **{f"text_encoder/{name}": array for name, array in arrays.items()})
    bundle = make_bundle({**tiny_files, "golden.npz": tmp_path / "golden.npz"}, golden="golden.npz")
    outcome = run(bundle.path)
    assert outcome.exit_code == 2
    assert f"outputs {[name[8:] for name in stored]} are stored, it has ['encoder_hidden_states']" in outcome.stdout


@pytest.mark.parametrize("limit", ["0.9", None, [], True, 7])
def test_a_limit_that_is_no_cosine(make_bundle, limit):
    outcome = run(make_bundle(verification={"limits": {"cosine": limit}}).path)
    assert (outcome.exit_code, type(outcome.exception)) == (2, SystemExit)
    assert f"held to a cosine of {limit!r}; expected a number" in outcome.stdout


def test_a_backend_that_is_missing(tiny_bundle):
    outcome = run(tiny_bundle.path, "--backend", "tensorflow")
    assert outcome.exit_code == 2
    assert "error: unknown backend 'tensorflow'; installed: onnxruntime" in outcome.stdout


def test_a_backend_that_is_broken_is_told_and_another_one_runs(tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libcore.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    needs = {"module": "broken_library", "needs": "broken_library"}
    entries = (backends.BackendEntry(name="other", install="pip install other", **needs), *backends.BACKENDS)
    for module in (backends, sdk_doctor):
        monkeypatch.setattr(module, "BACKENDS", entries)
    outcome = run(tiny_bundle.path)
    assert outcome.exit_code == 0, outcome.output
    assert "absent  other: other is installed but cannot be imported (libcore.so" in outcome.stdout


def test_a_graph_that_does_not_load_hides_no_other(make_bundle, tiny_files, tmp_path):
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    bundle = make_bundle({**tiny_files, "vae_encoder.onnx": tmp_path / "noise.onnx"})
    outcome = run(bundle.path)
    assert outcome.exit_code == 2
    assert "vae_encoder: does not load" in outcome.stdout
    assert "denoiser: loads in" in outcome.stdout


def test_progress_names_every_file_and_graph(tiny_bundle):
    told = []
    check_bundle(tiny_bundle.path, progress=lambda what, total: told.append((what, total)))
    total = len(tiny_bundle.manifest.files) + len(tiny_bundle.manifest.graphs)
    assert {("reading denoiser.onnx", total), ("running denoiser", total)} <= set(told)
    assert len(told) == total


def test_a_bundle_works_wherever_it_is_copied(tiny_bundle, copy, tmp_path):
    """In a folder of another name, from another working folder, and without a word of where it was made."""
    assert str(tiny_bundle.path.parent) not in (copy / "manifest.json").read_text()
    moved = copy.rename(tmp_path / "ein Ort mit Leerzeichen ü")
    script = "import sys; from bolid_sdk.cli import doctor; doctor()"
    command = [sys.executable, "-c", script, moved.name, "--json"]
    child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True)
    assert json.loads(child.stdout)["bundle"]["digest"] == Bundle.open(tiny_bundle.path).digest


def test_the_doctor_needs_no_pytorch():
    script = (
        "import sys, bolid_sdk.doctor; print({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'cuda'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"
