"""`bolid-train fit` on an SDXL as small as it can be: what it is told and what it trains, by diffusers' own SDXL."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

from bolid_export.cli import main as export
from bolid_export.graphs import bind_graphs
from bolid_export.sources import Choices, model_sizes, open_source
from bolid_sdk.errors import InputError
from bolid_sdk.generator import Generator
from bolid_training.cli import main
from bolid_training.memory_estimate import bytes_of, estimate_encoders, estimate_memory, fake_batch
from bolid_training.model.base import open_base
from bolid_training.model.checkpoint import build_clip, build_second_tower, build_unet, byte_tokenizer, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.model.families import SDXL
from bolid_training.stages.fit import FitModule, FitOptions, FitTask
from bolid_training.userdata.arrays import prepare
from bolid_training.userdata.framing import Frame
from bolid_training.userdata.reading import choose, find_entries, look
from bolid_training.userdata.texts import TextReader

SIZES = AvatarConfig(
    image_size=64,
    latent_channels=4,
    text_width=64,
    text_layers=2,
    text_width_2=128,
    text_layers_2=2,
    clip_projection=32,
    unet_channels=(32, 64, 64),
    unet_transformer_layers=(0, 1, 2),
)
CAPTIONS = ["a person, sitting on a red sofa!", "lying"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A diffusers folder as SDXL is published: two towers that pad differently, Euler, no text is zeros."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model") / "tiny-sdxl", byte_tokenizer()
    second = build_second_tower(SIZES, tokenizer)
    unet = build_unet(SIZES)
    # a random UNet all but ignores what it is told
    for name, parameter in unet.named_parameters():
        if "add_embedding" in name or ".attn2.to_" in name:
            parameter.data *= 4
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            scaling_factor=0.13025,
        ),
        text_encoder=clip_parts(build_clip(SIZES, tokenizer))["text_encoder"],
        tokenizer=tokenizer,
        text_encoder_2=second["text_encoder_2"],
        tokenizer_2=second["tokenizer_2"],
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(model, image_encoder):
    return open_base(model, image_encoder)


@pytest.fixture(scope="module")
def pipe(model):
    return StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)


@pytest.fixture(scope="module")
def arrays(base, data, tmp_path_factory):
    entries, skipped = find_entries(data)
    # keypoints are given, so nobody looks for them
    chosen = choose(entries, [look(entry, None) for entry in entries], skipped, single=False)
    return prepare(base, chosen, tmp_path_factory.mktemp("cache"))


def fit(model, image_encoder, data, out, *more):
    given = {"--model": model, "--image-encoder": image_encoder, "--data": data, "--out": out, "--precision": "no"}
    words = [str(word) for pair in given.items() for word in pair]
    return CliRunner().invoke(main, ["fit", *words, *more], catch_exceptions=False)


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


def test_sizes_of_the_folder_are_those_of_sdxl(base):
    config = base.config
    assert base.family is SDXL
    assert base.zero_unconditional
    assert (config.text_width, config.text_width_2, config.context_width, config.pooled_width) == (64, 128, 192, 32)
    assert config.unet_transformer_layers == (0, 1, 2)
    module = FitModule(base.unet(), config)
    assert module.adapter.pose_guider.config.adapter_type == "full_adapter_xl"
    assert module.adapter.identity_encoder.resampler.proj_out.out_features == 192


def test_captions_are_read_as_diffusers_reads_them(base, pipe):
    states, nothing, pooled, pooled_nothing = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=True)
    told = TextReader(base)([*CAPTIONS, ""])
    expected = {
        "encoder_hidden_states": torch.cat([states, nothing[:1]]),
        "text_embeds": torch.cat([pooled, pooled_nothing[:1]]),
    }
    torch.testing.assert_close(told, expected, rtol=0, atol=1e-5)
    assert told["encoder_hidden_states"].shape == (3, 77, 192)
    assert not told["text_embeds"][2].any()


def test_no_text_is_the_empty_prompt_where_the_folder_says_so(model, image_encoder, tmp_path):
    folder = shutil.copytree(model, tmp_path / "reads-nothing")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    _, states, _, pooled = pipe.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=True)
    told = TextReader(open_base(folder, image_encoder))([""])
    torch.testing.assert_close(told, {"encoder_hidden_states": states, "text_embeds": pooled}, rtol=0, atol=1e-5)
    assert told["text_embeds"].any()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 960), (900, 600), (333, 500)])
def test_sizes_are_told_as_diffusers_trains_sdxl(width, height, pipe):
    """The centre square as train_text_to_image_sdxl.py cuts it: the shorter side becomes 64 pixels, then a crop."""
    side = min(width, height)
    frame = Frame(width=width, height=height, left=(width - side) / 2, top=(height - side) / 2, side=side)
    resized = [round(length * 64 / side) for length in (height, width)]
    corner = tuple(max(0, round((length - 64) / 2)) for length in resized)
    expected = pipe._get_add_time_ids((height, width), corner, (64, 64), torch.float32, text_encoder_projection_dim=32)
    assert np.array_equal(frame.told(64).time_ids(), expected[0].numpy())


def test_a_square_that_is_larger_than_the_picture_begins_with_it():
    """SDXL has never seen a crop that begins before its picture."""
    frame = Frame(width=100, height=400, left=-150, top=0, side=400)
    assert frame.told(64).time_ids().tolist() == [400, 100, 0, 0, 64, 64]


def test_a_batch_has_the_sizes_of_its_pictures_and_zeros_for_no_text(base, arrays):
    task = FitTask(base, arrays, FitOptions(drop_all=0, drop_text=0.5))
    batch = task.batch(np.random.default_rng(0), 8)
    assert {(64, 96), (96, 64)} <= {tuple(sizes[:2].int().tolist()) for sizes in batch["time_ids"]}
    assert (batch["time_ids"][:, 4:] == 64).all()
    silent = ~batch["text_embeds"].any(1)
    assert 0 < silent.sum() < 8
    assert torch.equal(silent, ~batch["encoder_hidden_states"].flatten(1).any(1))


def test_a_run_goes_on_and_the_complete_folder_is_an_sdxl(fitted, model):
    out, first = fitted
    second = load_file(out / "model" / "identity.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["mse"]) for line in lines)
    assert list((out / "sheets").glob("*.png"))
    pipe = StableDiffusionXLPipeline.from_pretrained(out / "complete", add_watermarker=False)
    expected = UNet2DConditionModel.from_pretrained(model / "unet").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.unet.state_dict().items())
    again = open_base(out / "complete")
    assert (again.family, again.adapter) == (SDXL, out / "complete" / "adapter")


@pytest.fixture(scope="module")
def told(base):
    """All that a step is told, but for an image prompt, of which diffusers would need another adapter; and t as one."""
    torch.manual_seed(2)
    batch = fake_batch(base, 2)
    del batch["image_patch_tokens"]
    batch = {name: torch.rand_like(t) if t.dtype == torch.float32 else t for name, t in batch.items()}
    sizes = torch.tensor([[96.0, 64, 16, 0, 64, 64], [64, 96, 0, 16, 64, 64]])
    return batch | {"parts": torch.arange(5).repeat(2).expand(2, -1), "time_ids": sizes, "timestep": torch.tensor(301)}


@pytest.fixture(scope="module")
def trained(base, fitted):
    module = FitModule(base.unet(), base.config)
    module.adapter.load(fitted[0] / "model")
    return module


@torch.no_grad()
def test_what_was_trained_is_what_diffusers_sdxl_computes(trained, told, fitted, model):
    """Its UNet with the file as an IP-Adapter and the guider as a T2I-Adapter."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    files = {"weight_name": "identity.safetensors", "image_encoder_folder": None}
    pipe.load_ip_adapter(str(fitted[0] / "model"), subfolder="", **files)
    guider = T2IAdapter.from_pretrained(fitted[0] / "model" / "pose_guider")
    parts = trained.adapter.identity_encoder.embed_parts(told["patch_tokens"], told["parts"])

    def by_diffusers(text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids, "image_embeds": [parts[:, None]]}
        return pipe.unet(
            told["sample"],
            told["timestep"],
            told["encoder_hidden_states"],
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=guider(told["skeleton"]),
        ).sample

    found = trained(told)
    expected = by_diffusers(told["text_embeds"], told["time_ids"])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    others = [by_diffusers(torch.zeros(2, 32), told["time_ids"]), by_diffusers(told["text_embeds"], torch.ones(2, 6))]
    assert all((other - expected).abs().max() > 1e-3 * expected.abs().max() for other in others)


@torch.no_grad()
def test_what_was_trained_is_what_is_exported(trained, told, fitted, model, image_encoder):
    """The folder that fit wrote is one --adapter; the exported denoiser is the network that was trained."""
    checkpoint = open_source(model, [fitted[0] / "model"], Choices(image_encoder=image_encoder)).checkpoint
    sizes = model_sizes(checkpoint)
    assert (sizes.parts, sizes.pose_divisors, sizes.pooled_width, sizes.time_ids) == (5, (2, 2, 4, 4), 32, 6)
    tokens = checkpoint.adapter.identity_encoder(told["patch_tokens"], told["parts"])
    features = checkpoint.adapter.pose_guider(told["skeleton"])
    found = bind_graphs(checkpoint, sizes)["denoiser"].unet(
        told["sample"],
        told["timestep"],
        told["encoder_hidden_states"],
        identity_tokens=tokens,
        identity_scale=torch.ones(sizes.cross_attention_layers),
        text_embeds=told["text_embeds"],
        time_ids=told["time_ids"],
        **{f"pose_features_{level}": feature for level, feature in enumerate(features)},
    )
    expected = trained(told)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_model_and_adapter_become_a_bundle_that_draws(fitted, model, image_encoder, data, tmp_path):
    files = {"--model": model, "--adapter": fitted[0] / "model", "--image-encoder": image_encoder}
    given = [str(word) for pair in files.items() for word in pair]
    result = CliRunner().invoke(export, [*given, "--precision", "fp32", "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    generator = Generator(tmp_path / "bundle", device="cpu")
    assert generator.bundle.manifest.family == "stable-diffusion-xl"
    drawn = generator(data / "person0" / "0.png", "standing", seed=1, width=64, height=64)
    assert np.asarray(drawn.image).shape == (64, 64, 3)


def gradients(base, told, **options):
    torch.manual_seed(0)
    options = FitOptions(**options)
    unet = base.unet(options.dtype)
    module = FitModule(unet, base.config, gradient_checkpointing=options.gradient_checkpointing)
    with torch.autocast("cpu", module.dtype, enabled=module.dtype != torch.float32):
        module(told).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_checkpointing_changes_no_gradient_and_bfloat16_little(base, told):
    """The guider's features are added in place to what the first, plain block gives."""
    exact = gradients(base, told)
    assert torch.allclose(exact, gradients(base, told, gradient_checkpointing=True), atol=1e-7)
    coarse = gradients(base, told, mixed_precision="bf16")
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.99


def test_the_estimate_counts_both_text_encoders(base):
    memory, encoders = estimate_memory(base, FitOptions(), 2), estimate_encoders(base)
    unet = 4e-9 * base.unet().num_parameters()
    assert memory["frozen_unet"] == pytest.approx(unet)
    both, first = (1e-9 * sum(bytes_of(list(t.parameters())) for t in towers) for towers in towers_of(base))
    assert first < both < encoders["text_encoders"] < both + 1


def towers_of(base):
    towers = base.text_encoders()
    return towers, towers[:1]


@pytest.mark.parametrize(
    ("folders", "changes", "message"),
    [
        (["text_encoder_2", "tokenizer_2"], {}, "is SDXL and lacks text_encoder_2, tokenizer_2"),
        ([], {"projection_class_embeddings_input_dim": 32 + 5 * 256}, "the refiner has five"),
        ([], {"addition_embed_type": "image"}, "adds 'image' to its timestep"),
        ([], {"addition_embed_type": None}, "has text_encoder_2, as SDXL, but a UNet that is not told"),
        ([], {"cross_attention_dim": 64}, "states are 192 wide, the UNet reads 64"),
        ([], {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}, "fit SDXL's order: DownBlock2D, CrossAttn"),
    ],
)
def test_what_is_not_all_of_an_sdxl_is_refused(folders, changes, message, model, image_encoder, tmp_path):
    folder = shutil.copytree(model, tmp_path / "other")
    for name in folders:
        shutil.rmtree(folder / name)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        open_base(folder, image_encoder)
