"""`bolid-train fit`: the adapter on a model and pictures of somebody's own, here both as small as they can be."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from bolid_export.cli import main as export
from bolid_sdk.errors import InputError
from bolid_training.avatars.dataset import write_dataset
from bolid_training.avatars.shards import Settings
from bolid_training.cli import main
from bolid_training.data import process_state
from bolid_training.memory_estimate import PeakBytes, estimate_memory, fake_batch, step_bytes
from bolid_training.model.base import open_base
from bolid_training.model.checkpoint import build_clip, byte_tokenizer, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.stages.fit import FitModule, FitOptions, loss_weights, noisy_latents

SIZES = AvatarConfig(
    image_size=64, text_width=64, text_layers=1, vision_width=128, vision_layers=2, vision_size=32, vision_patch=16
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A diffusers folder of Stable Diffusion 1.5's shape: autoencoder with a distribution, noise prediction, PNDM."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model") / "tiny-sd", byte_tokenizer()
    text_encoder = clip_parts(build_clip(SIZES, tokenizer))["text_encoder"]
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=SIZES.text_width,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
    )
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True)
    parts = (vae, text_encoder, tokenizer, unet, scheduler, None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(model, image_encoder):
    return open_base(model, image_encoder)


def arguments(model, image_encoder, data, out, *more):
    given = {"--model": model, "--image-encoder": image_encoder, "--data": data, "--out": out, "--precision": "no"}
    return [*(str(word) for pair in given.items() for word in pair), *more]


def fit(*given):
    return CliRunner().invoke(main, arguments(*given), catch_exceptions=False)


@pytest.fixture(scope="module")
def fitted(model, image_encoder, data, tmp_path_factory):
    """Two steps, and two more by the same command: (folder, the first run's adapter)."""
    out, first = tmp_path_factory.mktemp("out") / "run", None
    for steps in (2, 4):
        more = ("--steps", str(steps), "--batch-size", "2", "--learning-rate", "1e-2", "--complete")
        result = fit(model, image_encoder, data, out, *more)
        assert result.exit_code == 0, result.output
        first = first or load_file(out / "model" / "identity.safetensors")
    return out, first


def test_the_adapter_is_an_ip_adapter_that_diffusers_loads(fitted, model):
    out, _ = fitted
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    pipe = StableDiffusionPipeline.from_pretrained(model, unet=unet, safety_checker=None)
    names = ["identity.safetensors", "image_prompt.safetensors"]
    pipe.load_ip_adapter([str(out / "model")] * 2, subfolder=["", ""], weight_name=names, image_encoder_folder=None)
    trained = load_file(out / "model" / names[0])
    loaded = [p for name, p in unet.attn_processors.items() if name.endswith("attn2.processor")]
    for index, processor in enumerate(loaded):
        expected = trained[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"]
        assert torch.equal(processor.to_k_ip[0].weight, expected)
    assert trained["body.part_embedding"].shape == (5, 128)
    assert (out / "model" / "pose_guider" / "config.json").is_file()


def test_a_run_goes_on_and_what_was_left_out_is_named(fitted):
    out, first = fitted
    second = load_file(out / "model" / "identity.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    report = json.loads((out / "data.json").read_text())
    assert (report["pictures"], report["people"]) == (12, 4)
    assert "not a picture" in report["skipped"]["person0/broken.png"]
    assert list((out / "sheets").glob("*.png"))


def everything(out):
    return {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_run_of_other_pictures_or_settings_is_refused_and_left_as_it_was(
    fitted, model, image_encoder, data, tmp_path
):
    out, _ = fitted
    other, moved, before = tmp_path / "other", tmp_path / "moved", everything(out)
    shutil.copytree(data, moved)  # with the files' times
    shutil.copytree(data, other)
    Image.new("RGB", (64, 64), "red").save(other / "person1" / "2.png")
    more = ("--steps", "4", "--batch-size", "2", "--seed", "1")
    result = fit(model, image_encoder, other, out, *more)
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert f"{out} holds a run of other settings" in message
    assert all(option in message for option in ("--data 13 captioned", "--seed 1 (was 0)", "give another --out"))
    assert "--model" not in message
    assert everything(out) == before
    result = fit(model, image_encoder, moved, out, "--steps", "4", "--batch-size", "1", "--learning-rate", "1e-3")
    assert result.exit_code == 0, result.output


def test_the_complete_folder_is_the_model_with_the_adapter_beside_it(fitted, model):
    out, _ = fitted
    pipe = StableDiffusionPipeline.from_pretrained(out / "complete", safety_checker=None)
    expected = UNet2DConditionModel.from_pretrained(model / "unet").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.unet.state_dict().items())
    again = open_base(out / "complete")
    assert again.adapter == out / "complete" / "adapter"
    assert again.config.patch_width == 128


def test_options_without_a_command_are_fits_and_a_dry_run_writes_nothing(model, image_encoder, data, tmp_path):
    result = fit(model, image_encoder, data, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert (report["pictures"], report["people"], len(report["skipped"])) == (12, 4, 1)
    assert report["memory_gigabytes"]["total"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("visible_gpu")
def test_a_gpu_is_taken_with_its_precision(model, image_encoder, data, tmp_path):
    given = arguments(model, image_encoder, data, tmp_path / "out", "--dry-run")
    given = [word for word in given if word not in ("--precision", "no")]
    result = CliRunner().invoke(main, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout[result.stdout.index("{") :])["precision"] == "bf16"
    assert process_state().device.type == "cuda"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "missing"}, "no such folder"),
        ({"--model": "missing"}, "no such model"),
        ({"--image-encoder": "missing"}, "holds no image encoder"),
        ({"--pose-estimator": "missing"}, "is not a pose estimator"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(change, message, model, image_encoder, data, tmp_path):
    given = arguments(model, image_encoder, data, tmp_path / "out")
    for option, value in change.items():
        given += [option, str(tmp_path / value)]
    result = CliRunner().invoke(main, given, catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_shape_is_refused(model, image_encoder, data, tmp_path):
    shutil.copytree(model, tmp_path / "xl")
    config = json.loads((tmp_path / "xl" / "unet" / "config.json").read_text())
    (tmp_path / "xl" / "unet" / "config.json").write_text(json.dumps(config | {"addition_embed_type": "text_time"}))
    result = fit(tmp_path / "xl", image_encoder, data, tmp_path / "out")
    assert result.exit_code == 2
    assert "is SDXL" in result.output


def test_a_few_step_lora_is_left_out_and_its_sampling_with_it(model, image_encoder, tmp_path):
    shutil.copytree(model, tmp_path / "few")
    values = asdict(replace(SIZES, steps=4, guidance=1.0))
    (tmp_path / "few" / "avatar.json").write_text(json.dumps(values))
    whole = open_base(tmp_path / "few", image_encoder)
    assert (whole.few_step, whole.config.steps, whole.config.guidance) == (False, 4, 1.0)
    (tmp_path / "few" / "avatar.json").write_text(json.dumps(values | {"parts": 1}))
    with pytest.raises(InputError, match="is of another method than BoLID"):
        open_base(tmp_path / "few", image_encoder)
    (tmp_path / "few" / "avatar.json").write_text(json.dumps(values))
    (tmp_path / "few" / "lightning").mkdir()
    (tmp_path / "few" / "lightning" / "pytorch_lora_weights.safetensors").touch()
    base = open_base(tmp_path / "few", image_encoder)
    assert base.few_step
    assert base.config == replace(SIZES, steps=AvatarConfig.steps, guidance=AvatarConfig.guidance)


def test_a_new_adapter_starts_as_the_texts_keys_and_values(base):
    module = FitModule(base.unet(), base.config)
    unet = module.frozen[0]
    cross = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    assert len(cross) == len(module.adapter.layers)
    for attention in cross:
        assert torch.equal(attention.processor.identity.to_k_ip.weight, attention.to_k.weight)
        assert torch.equal(attention.processor.image.to_v_ip.weight, attention.to_v.weight)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".processor." in name for name in trained)


def gradients(base, **options):
    torch.manual_seed(0)
    options = FitOptions(**options)
    unet = base.unet(options.dtype)
    module = FitModule(unet, base.config, gradient_checkpointing=options.gradient_checkpointing)
    torch.manual_seed(1)
    batch = {n: torch.randn_like(t) if t.dtype == torch.float32 else t for n, t in fake_batch(base, 2).items()}
    with torch.autocast("cpu", module.dtype, enabled=module.dtype != torch.float32):
        module(batch).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_checkpointing_changes_no_gradient_and_bfloat16_little(base):
    exact = gradients(base)
    assert torch.allclose(exact, gradients(base, gradient_checkpointing=True), atol=1e-7)
    coarse = gradients(base, mixed_precision="bf16")
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.99


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_leads_diffusers_scheduler_to_the_picture(prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    latents = np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float32)
    batch = noisy_latents(latents, scheduler, np.random.default_rng(1))
    scheduler.set_timesteps(1000)
    for i, timestep in enumerate(batch["timestep"]):
        step = scheduler.step(batch["target"][i], timestep, batch["sample"][i])
        assert (step.pred_original_sample - torch.from_numpy(latents[i])).abs().max() < 1e-2
        alpha = scheduler.alphas_cumprod[timestep]
        snr = float(alpha / (1 - alpha))
        expected = min(snr, 5) / snr if prediction == "epsilon" else (min(snr, 5) + 1) / (snr + 1)
        assert float(batch["weight"][i]) == pytest.approx(expected, rel=1e-4)


def test_what_lies_outside_the_picture_weighs_nothing():
    coverage = torch.zeros(1, 2, 4, 4)
    coverage[:, 1, :, :2] = 1
    coverage[:, 0, 1, 0] = 1
    weights = loss_weights(coverage)[0, 0]
    assert weights[:, 2:].abs().max() == 0
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[1, 0] / weights[0, 0]) == pytest.approx(3)


class Squares(nn.Module):
    """Four squares one after the other: backward needs the input of each, and makes a gradient of the same size."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1000, 100))

    def forward(self, batch):
        x = self.scale
        for _ in range(4):
            x = x.square()
        return x


def test_the_estimate_counts_what_autograd_holds():
    """Four activations of 400 kB, and in the backward of a square its gradient, its output's and two products."""
    peak = step_bytes(Squares(), {}, torch.float32)
    assert peak == pytest.approx(8 * 400_000, rel=1e-3)


def test_a_weight_that_is_only_looked_at_is_not_counted_again():
    """A linear layer transposes its weight, which is a view."""
    sample, layer = torch.ones(1000, 100), nn.Linear(100, 50)
    with PeakBytes() as bytes_alive, torch.no_grad():
        layer(sample)
    assert bytes_alive.peak == 4 * 1000 * 50


def test_the_estimate_of_weights_is_exact_and_checkpointing_saves(base):
    module = FitModule(base.unet(), base.config)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    plain = estimate_memory(base, FitOptions(), 4)
    assert plain["adapter"] == pytest.approx(4e-9 * trained)
    assert plain["optimizer_and_ema"] == pytest.approx(12e-9 * trained)
    saving = estimate_memory(base, FitOptions(gradient_checkpointing=True), 4)
    assert saving["activations"] < 0.8 * plain["activations"]
    half = estimate_memory(base, FitOptions(mixed_precision="bf16"), 4)
    assert half["frozen_unet"] == pytest.approx(plain["frozen_unet"] / 2)


def curve(out):
    """Losses that were logged, and the trained adapter."""
    (events,) = (file.parent for file in out.rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(events)).Reload()
    losses = [event.value for event in accumulator.Scalars("train/loss")]
    return np.array(losses), load_file(out / "model" / "identity.safetensors")


@pytest.mark.slow
def test_the_avatar_goes_on_with_its_own_adapter_on_rendered_shards_and_exports(root, tmp_path):
    """Shards of `bolid-train data` have labels of parts; the avatar predicts v and has a small autoencoder."""
    write_dataset(tmp_path / "people", Settings(identities=3, views=6, size=128, seed=0), workers=1, splits=("train",))
    avatar, out = root / "training" / "weights" / "avatar", tmp_path / "out"
    given = ["fit", "--model", str(avatar), "--data", str(tmp_path / "people"), "--out", str(out), "--precision", "no"]
    more = ("--steps", "1", "--batch-size", "2", "--learning-rate", "1e-9", "--complete")
    result = CliRunner().invoke(main, [*given, *more])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "data.json").read_text())
    assert report["with_part_labels"] == report["pictures"] > 0
    for name in ("identity.safetensors", "image_prompt.safetensors"):
        before, after = load_file(avatar / "adapter" / name), load_file(out / "model" / name)
        assert before.keys() == after.keys()
        assert all((before[key].float() - after[key]).abs().max() < 1e-6 for key in before)
    files = [out / "model" / name for name in ("identity.safetensors", "image_prompt.safetensors", "pose_guider")]
    adapters = [word for file in files for word in ("--adapter", str(file))]
    for model in (["--model", str(avatar), *adapters], ["--model", str(out / "complete")]):
        result = CliRunner().invoke(export, [*model, "--dry-run", "-o", str(tmp_path / "bundle")])
        assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(model, image_encoder, data, tmp_path):
    """The same global batch: two processes with one batch of two each, one process with two after each other."""
    shared = ("--steps", "30", "--batch-size", "2", "--learning-rate", "1e-3", "--validate-every", "1000")
    result = fit(model, image_encoder, data, tmp_path / "one", *shared, "--accumulate", "2")
    assert result.exit_code == 0, result.output
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "bolid_training", *arguments(model, image_encoder, data, tmp_path / "two", *shared)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=900)
    (one, adapter), (two, other) = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 3
    assert np.abs(one - two).max() < 1e-4 * one.max()
    assert all((adapter[name] - other[name]).abs().max() < 1e-3 for name in adapter)
