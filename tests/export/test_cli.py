"""`bolid-export`: one line and an exit code for every mistake, a plan before the work."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bolid_export import cli
from bolid_export.cli import default_output, main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def mistake(*arguments):
    """The one line that is printed about it."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def test_help_teaches():
    text = run("--help").output
    assert "bolid-export --precision fp16" in text
    assert "Every graph is compared with PyTorch" in " ".join(text.split())


def test_unknown_precisions_and_backends_say_what_there_is(output):
    assert "there is fp32, fp16" in mistake("--precision", "int4", "-o", output)
    assert "there is onnx" in mistake("--backend", "tpu", "-o", output)


def test_wrong_folders_are_told_apart(model_folder, tmp_path, output):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "no such checkpoint" in mistake("--model", tmp_path / "none", "-o", output)
    assert "has no model_index.json" in mistake("--model", tmp_path / "empty", "-o", output)
    assert "is not a safetensors file" in mistake("--model", tmp_path / "file", "-o", output)
    assert "is a bundle" in mistake("--model", bundle_lookalike(tmp_path), "-o", output)
    partial = shutil.copytree(model_folder, tmp_path / "partial")
    shutil.rmtree(partial / "adapter")
    assert "has no identity adapter" in mistake("--model", partial, "-o", output)
    shutil.rmtree(partial / "vae")
    assert "lacks vae" in mistake("--model", partial, "-o", output)


def bundle_lookalike(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_pickles_and_broken_weights_are_refused(model_folder, tmp_path, output):
    pickled = shutil.copytree(model_folder, tmp_path / "pickled")
    (pickled / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert run("--model", pickled, "-o", output, "--dry-run").exit_code == 0, "beside safetensors it is not read"
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "is a pickle" in mistake("--model", pickled, "-o", output)
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "adapter" / "identity.safetensors").write_bytes(b"x" * 100)
    assert "cannot read the checkpoint" in mistake("--model", broken, "-o", output)


def test_adapters_are_recognised_by_their_content(model_folder, tmp_path, output):
    adapter = model_folder / "adapter"
    options = ("--model", model_folder, "-o", output, "--dry-run", "--adapter")
    renamed = shutil.copy(adapter / "identity.safetensors", tmp_path / "anna.safetensors")
    assert run(*options, renamed, "--adapter", adapter / "pose_guider").exit_code == 0
    assert "two adapters of one kind" in mistake(*options, renamed, "--adapter", renamed)
    assert "is not an adapter" in mistake(*options, model_folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert "no such adapter" in mistake(*options, tmp_path / "none.safetensors")


def test_an_existing_folder_is_not_overwritten(model_folder, output):
    output.mkdir()
    assert "exists already" in mistake("--model", model_folder, "-o", output)


def test_the_plan_lists_graphs_and_writes_nothing(model_folder, output):
    result = run("--model", model_folder, "-o", output, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["bundle"] == str(output)
    assert {"denoiser", "identity_encoder", "vae_decoder"} <= set(plan["graphs"])
    assert "M parameters" in run("--model", model_folder, "-o", output, "--dry-run").output
    assert not output.exists()


def test_our_own_failures_are_one_line_and_exit_1(model_folder, output, monkeypatch):
    monkeypatch.setattr(cli, "_export", lambda *_: 1 / 0)
    result = run("--model", model_folder, "-o", output)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "ZeroDivisionError" in result.stderr


SLOW_EXPORT = """
import sys, time
from bolid_export import cli, pipeline

def stuck(*arguments):
    print("begun", flush=True)
    time.sleep(600)

pipeline._calibrate = stuck
cli.main(sys.argv[1:])
"""


def test_a_terminated_export_leaves_nothing(model_folder, output):
    """In a process of its own, as a scheduler or a shutdown ends it."""
    command = [sys.executable, "-c", SLOW_EXPORT, "--model", model_folder, "-o", output, "--no-cache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as export:
        assert export.stdout.readline() == "begun\n"
        assert [folder for folder in output.parent.iterdir() if folder.name.startswith(".bolid-export-")]
        export.terminate()
    assert export.returncode == 128 + signal.SIGTERM
    assert [folder.name for folder in output.parent.iterdir()] == []


def test_default_folders(tmp_path):
    assert default_output(None, "fp32").parts[-2:] == ("engines", "avatar")
    assert default_output(None, "fp16").name == "avatar-fp16"
    assert default_output(tmp_path / "anna", "fp16").name == "anna-fp16"


@pytest.mark.parametrize(
    ("image_size", "backend", "told"),
    [
        (64, None, "bolid-infer REF PROMPT --bundle engines/x"),
        (64, "openvino", "bolid-infer REF PROMPT --bundle engines/x --backend openvino"),
        (0, None, "Generator('engines/x')(FACE, PROMPT) in Python"),
        (0, "openvino", "Generator('engines/x', backend='openvino')(FACE, PROMPT) in Python"),
    ],
)
def test_the_end_says_how_a_picture_is_made(image_size, backend, told):
    """A person who is known by a face's embedding cannot be given on a command line."""
    manifest = SimpleNamespace(sizes=SimpleNamespace(image_size=image_size))
    assert cli._first_use(SimpleNamespace(path=Path("engines/x"), manifest=manifest), backend) == told
