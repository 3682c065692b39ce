"""The command lines: what they print, where, and with which exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bolid_sdk.cli import doctor, infer


@pytest.fixture
def run(tiny_bundle, reference, tmp_path):
    """Runs `bolid-infer` on the tiny bundle; the picture goes to out.png."""

    def invoke(*arguments, ref=reference, prompt="walking", bundle=tiny_bundle.path, output=tmp_path / "out.png"):
        options = ["--bundle", bundle, "-o", output, *arguments]
        return CliRunner().invoke(infer, [str(value) for value in (ref, prompt, *options)])

    return invoke


def test_a_picture_is_written_and_told(run, tmp_path):
    outcome = run("--seed", 3)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{tmp_path / 'out.png'} (seed 3, ")
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_json_is_one_object(run, tmp_path):
    outcome = run("--json", "--seed", 5, "-n", 3, "--size", "96x64", "--steps", 2)
    results = json.loads(outcome.stdout)["results"]
    assert [result["seed"] for result in results] == [5, 6, 7]
    assert [result["path"] for result in results] == [str(tmp_path / f"out-{i}.png") for i in (1, 2, 3)]
    assert {(result["width"], result["height"]) for result in results} == {(96, 64)}
    assert all(result["sampling"]["steps"] == 2 for result in results)


@pytest.mark.parametrize(
    ("output", "count", "written"),
    [
        ("new", 1, ["new.png"]),
        ("UP.PNG", 1, ["UP.PNG"]),
        ("UP.PNG", 2, ["UP-1.PNG", "UP-2.PNG"]),
        ("v1.2", 1, ["v1.2/bolid.png"]),
        ("v1.2", 2, ["v1.2/bolid-1.png", "v1.2/bolid-2.png"]),
    ],
)
def test_pictures_go_where_they_were_sent(run, tmp_path, output, count, written):
    (tmp_path / "v1.2").mkdir()
    outcome = run("--json", "-n", count, "--steps", 1, output=tmp_path / output)
    assert [result["path"] for result in json.loads(outcome.stdout)["results"]] == [str(tmp_path / w) for w in written]
    assert all((tmp_path / name).is_file() for name in written)


def test_many_pictures_equal_single_ones(run, tmp_path):
    run("--seed", 5, "-n", 2, output=tmp_path / "many.png")
    run("--seed", 6, output=tmp_path / "one.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "many-2.png"), Image.open(tmp_path / "one.png"))


def test_all_options_together(run, reference, tmp_path, standing):
    keypoints = tmp_path / "pose.json"
    keypoints.write_text(json.dumps(standing.tolist()))
    for pose in (keypoints, reference, "none"):
        scales = ("--identity-scale", 0.8, "--image-scale", 0.5, "--pose-scale", 0.7, "--image-prompt", reference)
        levers = ("--caching", "fast", "--guidance-interval", "0.1:0.8")
        sampling = ("--guidance", 2, "--sampler", "lcm", "--backend", "onnxruntime", "--device", "cpu", *levers)
        outcome = run("--ref", reference, "--pose", pose, *scales, *sampling, "-q")
        assert (outcome.exit_code, outcome.output) == (0, "")


def test_the_steps_may_be_spaced_as_a_model_was_trained(run, tmp_path):
    written = []
    for spacing in ("leading", "trailing"):
        outcome = run("--seed", 5, "--spacing", spacing, output=tmp_path / f"{spacing}.png")
        assert outcome.exit_code == 0, outcome.output
        written.append(np.asarray(Image.open(tmp_path / f"{spacing}.png")))
    assert not np.array_equal(*written)


def test_a_warning_is_printed_once(run):
    outcome = run("-n", 2, prompt="walking " * 100)
    assert outcome.stderr.count("longer than 77 tokens") == 1


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ((), {"ref": "nowhere.jpg"}, "no such picture: nowhere.jpg"),
        ((), {"ref": __file__}, "is not a picture"),
        ((), {"prompt": " "}, "the prompt is empty"),
        ((), {"bundle": "nowhere"}, "no such bundle: nowhere"),
        ((), {"output": "nowhere/out.png"}, "there is no folder nowhere"),
        ((), {"output": "out.jpg"}, "no PNG"),
        (("--pose", "nowhere.json"), {}, "cannot be read"),
        (("--pose", "nowhere.png"), {}, "no such picture"),
        (("--identity-scale", "nan"), {}, "not finite"),
        (("--steps", "0"), {}, "steps=0"),
        (("--guidance", "-2"), {}, "guidance=-2"),
        (("--sampler", "best"), {}, "ddim, euler"),
        (("--spacing", "wide"), {}, "leading, trailing, linspace"),
        (("--caching", "much"), {}, "off, balanced, fast"),
        (("--guidance-interval", "half"), {}, "expected LO:HI"),
        (("--guidance-interval", "0.9:0.1"), {}, "from < to"),
        (("--seed", "-1"), {}, "seed=-1"),
        (("-n", "0"), {}, "-n 0"),
        (("--size", "big"), {}, "384x512"),
        (("--size", "100"), {}, "multiples of 32"),
        (("--backend", "tensorflow"), {}, "unknown backend"),
        (("--device", "cuda"), {}, "no CUDA"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, changes, message):
    outcome = run(*arguments, **changes)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert message in outcome.stderr


def test_a_pose_nested_without_end_is_a_mistake_too(run, tmp_path):
    (tmp_path / "pose.json").write_text("[" * 100_000)
    outcome = run("--pose", tmp_path / "pose.json")
    assert outcome.exit_code == 2
    assert "pose.json cannot be read" in outcome.stderr


def test_a_failed_run_leaves_the_old_picture(run, tmp_path):
    (tmp_path / "out.png").write_bytes(b"precious")
    assert run("--steps", 0).exit_code == 2
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    assert list(tmp_path.glob(".*")) == []


def test_help_teaches():
    text = CliRunner().invoke(infer, ["--help"]).stdout
    assert text.count("bolid-infer ") >= 4
    assert "0 ignores the person" in text


def test_doctor_on_a_whole_bundle(tiny_bundle):
    outcome = CliRunner().invoke(doctor, [str(tiny_bundle.path)])
    assert outcome.exit_code == 0
    assert "all well" in outcome.stdout
    report = json.loads(CliRunner().invoke(doctor, [str(tiny_bundle.path), "--json"]).stdout)
    assert report["ok"]
    assert set(report["bundle"]["graphs"]) == set(tiny_bundle.manifest.graphs)


def test_a_process_makes_a_picture(tiny_bundle, reference, tmp_path):
    script = "import sys; from bolid_sdk.cli import infer; infer()"
    command = [
        sys.executable,
        "-c",
        script,
        reference,
        "walking",
        "--bundle",
        tiny_bundle.path,
        "-o",
        tmp_path / "a.png",
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert (tmp_path / "a.png").exists()


def test_help_does_not_load_the_runtime():
    script = "import sys\nfrom bolid_sdk import cli\nprint({'numpy', 'onnxruntime', 'PIL'} & set(sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert outcome.stdout.strip() == "set()"
