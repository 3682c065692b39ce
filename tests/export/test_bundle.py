"""A whole export: the bundle opens in the runtime, its report says what was measured, diffusers agrees with it."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, T2IAdapter

from bolid_export import pipeline, verify
from bolid_export.calibrate import PROMPTS
from bolid_export.metrics import psnr
from bolid_export.package import default_sampling, noise_schedule
from bolid_export.pipeline import Target, export_bundle, stage_count
from bolid_export.scene import Scene, noise_source, picture
from bolid_export.sources import model_sizes
from bolid_export.torch_engine import Record, TorchEngine
from bolid_sdk.backends import open_backend
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import graph_specs
from bolid_sdk.doctor import diagnose
from bolid_sdk.prompt import PromptTokenizer


def engines_of(bundle):
    backend = open_backend("onnxruntime", "cpu")
    return {name: backend.load(bundle.file(entry.file), entry.spec) for name, entry in bundle.manifest.graphs.items()}


@pytest.fixture(scope="module")
def half(fp16_bundle):
    """The exported graphs and the least PSNR they owe."""
    return engines_of(fp16_bundle), 35


@pytest.fixture(scope="module")
def single(graphs, export):
    """Float32: only the denoiser is exported, which is what matters and what takes time."""
    _, denoiser = export("denoiser")
    return {name: TorchEngine(graph) for name, graph in graphs.items()} | {"denoiser": denoiser}, 45


@pytest.fixture(params=["half", "single"])
def exported(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def scene(checkpoint, sizes):
    """Noise as pictures will do: what is compared is arithmetic."""
    random = np.random.default_rng(1)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    ids = checkpoint.tokenizer(["", PROMPTS[0]], padding="max_length", truncation=True)["input_ids"]
    side = sizes.image_size
    return Scene(
        input_ids=np.array(ids),
        crops=normal(5, 3, side, side),
        parts=np.arange(5),
        image_prompt=normal(3, side, side),
        skeleton=random.random((3, sizes.native_height, sizes.native_width), np.float32),
        identity_scale=1.5,
        image_scale=2.0,
        seed=3,
    )


def plain_pipeline(folder):
    """diffusers alone, from the checkpoint's own files."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        [str(folder / "adapter")] * 2,
        subfolder=["", ""],
        weight_name=["identity.safetensors", "image_prompt.safetensors"],
        image_encoder_folder=None,
    )
    return pipe


@torch.no_grad()
def image_embeds(pipe, scene, part_embedding):
    """What `load_ip_adapter`'s projections read, both branches: [2, 1, V * P, D] and [2, 1, P, D]."""
    pixels = torch.from_numpy(np.stack([np.zeros_like(scene.image_prompt), scene.image_prompt, *scene.crops]))
    patches = pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
    views = torch.stack([patches[:1].expand(len(scene.crops), -1, -1), patches[2:]]) + part_embedding[:, None]
    return [views.flatten(1, 2)[:, None], patches[:2, None]]


@pytest.fixture(scope="module")
def pipe(model_folder, scene):
    pipe = plain_pipeline(model_folder)
    pipe.set_ip_adapter_scale([scene.identity_scale, scene.image_scale])
    return pipe


@pytest.fixture(scope="module")
def embeds(pipe, scene, checkpoint):
    return image_embeds(pipe, scene, checkpoint.adapter.identity_encoder.part_embedding)


@pytest.fixture(scope="module")
def sampling(checkpoint):
    return default_sampling(checkpoint)


@pytest.fixture(scope="module")
def exported_picture(checkpoint, sizes, sampling):
    """Pixels through the runtime's loop."""
    table = sampling.table(noise_schedule(checkpoint))
    return lambda engines, scene: picture(engines, scene, sizes, table, sampling.guidance)


class Blind:
    """A pose guider that sees no pose."""

    def __init__(self, guider):
        self.guider = guider

    def run(self, inputs):
        return {name: np.zeros_like(features) for name, features in self.guider.run(inputs).items()}


def without_pose(engines):
    return engines | {"pose_guider": Blind(engines["pose_guider"])}


def test_diffusers_pipeline_with_ip_adapter_makes_the_same_picture(
    exported, exported_picture, scene, sizes, sampling, pipe, embeds
):
    engines, least = exported
    expected = pipe(
        PROMPTS[0],
        height=scene.skeleton.shape[1],
        width=scene.skeleton.shape[2],
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        latents=torch.from_numpy(next(noise_source(scene, sizes).draws())),
        ip_adapter_image_embeds=embeds,
        output_type="pt",
    ).images
    assert psnr(exported_picture(without_pose(engines), scene), 2 * expected.numpy() - 1) > least


@torch.no_grad()
def test_diffusers_unet_with_t2i_adapter_makes_this_picture(
    exported, exported_picture, scene, sizes, sampling, pipe, embeds, model_folder
):
    engines, least = exported
    scheduler = DDIMScheduler.from_pretrained(model_folder / "scheduler")
    scheduler.set_timesteps(sampling.steps)
    guider = T2IAdapter.from_pretrained(model_folder / "adapter" / "pose_guider", torch_dtype=torch.float32)
    features = guider(torch.from_numpy(scene.skeleton[None]))
    text = pipe.text_encoder(torch.from_numpy(scene.input_ids)).last_hidden_state
    latents = torch.from_numpy(next(noise_source(scene, sizes).draws()))
    for timestep in scheduler.timesteps:
        first, last = pipe.unet(
            latents.repeat(2, 1, 1, 1),
            timestep,
            text,
            added_cond_kwargs={"image_embeds": embeds},
            down_intrablock_additional_residuals=[feature.repeat(2, 1, 1, 1) for feature in features],
        ).sample.chunk(2)
        latents = scheduler.step(first + sampling.guidance * (last - first), timestep, latents).prev_sample
    expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.numpy()
    assert psnr(exported_picture(engines, scene), expected) > least


def test_identity_image_prompt_and_pose_reach_the_picture(half, exported_picture, scene):
    """Otherwise the comparisons above would prove nothing about them."""
    engines, least = half
    whole = exported_picture(engines, scene)
    others = [
        exported_picture(without_pose(engines), scene),
        exported_picture(engines, replace(scene, identity_scale=0.0)),
        exported_picture(engines, replace(scene, image_scale=0.0)),
    ]
    assert all(psnr(whole, other) < least - 5 for other in others)


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
    assert stage_count(sizes) == 2 * 9 + 3


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
