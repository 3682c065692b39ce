"""A gate is a command: its answer goes into the manifest, its refusal ends the export."""

import json
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bolid_export import pipeline
from bolid_export.pipeline import Target, export_bundle
from bolid_export.report import report
from bolid_export.verification.gate import CommandGate
from bolid_export.verify import VerificationError
from bolid_sdk.errors import InputError


def command(code, *arguments):
    return shlex.join([sys.executable, "-c", code, *arguments])


def test_the_answer_of_a_command_that_accepts_is_kept(tmp_path):
    gate = CommandGate(command("import json, sys; print(json.dumps({'asked': sys.argv[1]}))", "{}"))
    assert gate(tmp_path / "a folder") == {"command": gate.command, "asked": str(tmp_path / "a folder")}
    assert CommandGate(command("print('hello')", "{}"))(tmp_path).keys() == {"command"}


def test_a_refusal_says_why(tmp_path):
    with pytest.raises(VerificationError, match=r"exit code 3\), so nothing was written: too bad"):
        CommandGate(command("import sys; sys.stderr.write('too bad'); sys.exit(3)", "{}"))(tmp_path)
    drop = {"value": 0.05, "ci95": [0.04, 0.06]}
    answer = {"gates": {"id_similarity": {"passed": False, "drop": drop, "limit": 0.01, "state": "failed"}}}
    refusing = command(f"import sys; print({json.dumps(json.dumps(answer))}); sys.exit(1)", "x") + " {}"
    with pytest.raises(VerificationError, match=r"id_similarity drops by 0.05 .* at most 0.01: failed"):
        CommandGate(refusing)(tmp_path)


def test_a_bundle_that_is_refused_leaves_nothing_behind(source, tmp_path, monkeypatch):
    """Everything but the order of the stages is left out."""
    seen = []

    def package(source, graphs, calibration, target, folder, checked, engines):
        target.folder.mkdir()
        return SimpleNamespace(path=target.folder)

    def refuse(folder):
        seen.append(folder)
        assert folder.is_dir()
        raise VerificationError("no")

    for name, answer in (("bind_graphs", {}), ("_calibrate", None), ("_verify", {}), ("_build", {})):
        monkeypatch.setattr(pipeline, name, lambda *_, answer=answer: dict(answer or {}))
    monkeypatch.setattr(pipeline, "_effort", lambda *_: SimpleNamespace(summary=dict))
    monkeypatch.setattr(pipeline, "_package", package)
    target = Target(folder=tmp_path / "out", precision="int8", licence="none", gate=refuse)
    with pytest.raises(VerificationError, match="no"):
        export_bundle(source, target)
    assert not target.folder.exists()
    assert not seen[0].exists()
    export_bundle(source, replace(target, gate=lambda folder: {}))
    assert target.folder.exists()


def test_unusable_commands_are_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="never names the bundle"):
        CommandGate("bolid-eval")
    with pytest.raises(InputError, match="cannot run no-such-command"):
        CommandGate("no-such-command {}")(tmp_path)
    with pytest.raises(InputError, match="no shell would take"):
        CommandGate("bolid-eval '{}")


def test_the_report_shows_what_was_measured():
    row = {"drop": {"value": 0.001, "ci95": [-0.002, 0.004]}, "limit": 0.01}
    gate = {"command": "bolid-eval", "pictures": 9, "people": 3, "gates": {"clip_score": row}}
    checked = {"library": "onnxruntime 1", "graphs": [], "loop": LOOP, "limits": LIMITS, "gate": gate}
    text = report("a", "int8", checked, {})
    assert "Accepted by `bolid-eval`, 9 pictures of 3 people" in text
    assert "-0.002 to 0.004" in text


LOOP = {"steps": 1, "pictures": 1, "psnr": 30.0, "ssim": 0.9}
LIMITS = {"psnr": 20.0, "ssim": 0.5, "cosine": 0.9, "relative_error": 0.2}
