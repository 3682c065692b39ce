"""A whole export: the bundle opens in the runtime, its report says what was measured, diffusers agrees with it."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bolid_export import pipeline, verify
from bolid_export.pipeline import Target, export_bundle, stage_count
from bolid_export.sources import model_sizes
from bolid_export.verification.metrics import psnr
from bolid_export.verification.torch_engine import Record
from bolid_sdk.backends import open_backend
from bolid_sdk.blank import blank_patch_tokens
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import graph_specs
from bolid_sdk.doctor import diagnose
from bolid_sdk.graphs import Graphs
from bolid_sdk.prompt import PromptTokenizer


def test_the_doctor_finds_the_bundle_healthy(fp16_bundle):
    report = diagnose(fp16_bundle.path)
    assert report["ok"], report["bundle"]
    assert {"golden_cosine"} <= set.intersection(*(set(g) for g in report["bundle"]["graphs"].values()))


def test_the_manifest_tells_where_the_bundle_comes_from(fp16_bundle, checkpoint, model_folder):
    manifest = Bundle.open(fp16_bundle.path).manifest
    assert set(manifest.graphs) == set(graph_specs(model_sizes(checkpoint)))
    assert manifest.licence == "CC0-1.0"
    assert "unet/diffusion_pytorch_model.safetensors" in manifest.sources["files"]
    assert manifest.tools["torch"] == torch.__version__
    assert str(model_folder.parent) not in (fp16_bundle.path / "manifest.json").read_text()
    assert np.isclose(manifest.noise_schedule.alphas_cumprod, checkpoint.scheduler.alphas_cumprod, rtol=1e-4).all()


def test_nobody_is_stored_as_the_image_encoder_sees_a_blank_picture(fp16_bundle):
    """Exported from PyTorch, and the same as the bundle's own encoder would tell."""
    graphs = Graphs(fp16_bundle, open_backend("onnxruntime", "cpu"))
    stored = blank_patch_tokens(graphs, fp16_bundle)
    encoded = blank_patch_tokens(graphs, without_blank(fp16_bundle))
    assert stored.shape == encoded.shape
    assert np.linalg.norm(stored - encoded) < 1e-2 * np.linalg.norm(encoded)


def without_blank(bundle):
    return replace(bundle, manifest=replace(bundle.manifest, blank_patch_tokens=None))


def test_the_report_names_gates_and_islands(fp16_bundle):
    verification = fp16_bundle.manifest.verification
    assert verification["loop"]["psnr"] >= verification["limits"]["psnr"] == 35
    assert {check["graph"] for check in verification["graphs"]} == set(fp16_bundle.manifest.graphs)
    assert {"identity_encoder", "image_projector"} <= {island["graph"] for island in verification["islands"]}
    text = (fp16_bundle.path / "report.md").read_text()
    assert "PSNR" in text
    assert "| identity_encoder | network" in text


def test_weights_are_stored_in_half(fp16_bundle, graphs):
    for name in ("denoiser", "identity_encoder"):
        parameters = sum(parameter.numel() for parameter in graphs[name].parameters())
        assert fp16_bundle.file(f"{name}.onnx").stat().st_size < 2.6 * parameters + 500_000


def test_a_failed_gate_leaves_nothing_behind(source, tmp_path, monkeypatch):
    """A network that was changed after the reference was recorded."""
    monkeypatch.setattr(pipeline, "lower", lambda graph, *_: broken(graph))
    keep_only(monkeypatch, "text_encoder")
    target = Target(folder=tmp_path / "engines" / "bad", precision="fp32", licence="none")
    with pytest.raises(verify.VerificationError, match=r"text_encoder\.encoder_hidden_states \(cosine"):
        export_bundle(source, target)
    assert list(tmp_path.rglob("*")) == []


def broken(graph):
    other = deepcopy(graph)
    for parameter in other.parameters():
        parameter.data *= 0.9
    return other


def keep_only(monkeypatch, name):
    """The other graphs would only take time."""
    bind = pipeline.bind_graphs
    monkeypatch.setattr(pipeline, "bind_graphs", lambda *args: {name: bind(*args)[name]})
    calibrate = pipeline._calibrate

    def with_all_graphs(source, _graphs, sizes, progress):
        return calibrate(source, bind(source.checkpoint, sizes), sizes, progress)

    monkeypatch.setattr(pipeline, "_calibrate", with_all_graphs)


def test_stages_are_announced(sizes):
    assert stage_count(sizes) == 2 * 10 + 3


def test_the_tokenizer_of_the_bundle_gives_the_checkpoints_ids(fp16_bundle, checkpoint):
    entry = fp16_bundle.manifest.tokenizer
    tokenizer = PromptTokenizer(fp16_bundle.file(entry.file), length=77, pad_id=entry.pad_id)
    for text in ("", "A person, sitting on a RED sofa"):
        expected = checkpoint.tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert np.asarray(tokenizer(text).ids).ravel().tolist() == expected
    assert json.loads(fp16_bundle.file(entry.file).read_text())["truncation"] is None


def test_nan_never_passes_a_gate(sizes):
    spec = graph_specs(sizes)["text_encoder"]
    answer = {"encoder_hidden_states": np.ones((1, 77, 4), np.float32)}

    class Broken:
        def run(self, inputs):
            return {name: np.where(inputs["nan"], np.nan, array) for name, array in answer.items()}

    records = [Record({"nan": np.array(flag)}, answer) for flag in (False, True, False)]
    (check,) = verify.check_graph(spec, Broken(), records, verify.LIMITS["fp16"])
    assert not check.passed
    assert np.isnan(psnr(answer["encoder_hidden_states"], np.full((1, 77, 4), np.nan)))
