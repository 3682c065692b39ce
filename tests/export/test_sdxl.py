"""A small random SDXL from checkpoint to pictures: the runtime's are those of diffusers' own SDXL pipelines."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from safetensors.torch import save_file

from bolid_export.graphs import bind_graphs
from bolid_export.package import build_manifest, bundle_files, default_sampling, noise_schedule, save_tokenizers
from bolid_export.pipeline import Target, export_bundle
from bolid_export.sources import Choices, Lora, model_sizes, open_source
from bolid_export.sources.sizes import time_ids, token_inputs
from bolid_export.to_onnx import example_inputs
from bolid_export.verification.metrics import psnr
from bolid_export.verification.torch_engine import TorchEngine
from bolid_sdk.bundle import write_bundle
from bolid_sdk.conditioning import Conditioner
from bolid_sdk.contracts import graph_specs
from bolid_sdk.errors import InputError
from bolid_sdk.generator import Generator
from bolid_sdk.identity import Identity
from bolid_sdk.lora_names import original_names
from bolid_sdk.loras import Loras
from bolid_sdk.pose import draw_skeleton, pose_from_array
from bolid_sdk.sampling import NoiseSource, Sampling
from bolid_training.model.checkpoint import build_checkpoint, build_second_tower, byte_tokenizer
from bolid_training.model.config import AvatarConfig

PROMPT, SEED = "a person, sitting on a red sofa", 7
WIDTH, HEIGHT = 96, 64
LEAST = 45  # dB, of 8-bit pictures
GUIDED, PLAIN = Sampling(steps=6, guidance=5.0), Sampling(steps=3, guidance=1.0)

CONFIG = AvatarConfig(
    image_size=64,
    latent_channels=4,
    text_width=64,
    text_layers=2,
    text_width_2=128,
    text_layers_2=2,
    vision_width=64,
    vision_layers=2,
    vision_size=32,
    clip_projection=32,
    unet_channels=(32, 64, 64),
    unet_transformer_layers=(0, 1, 2),
    pose_width=64,
    pose_layers=1,
    identity_tokens=4,
    image_tokens=3,
    resampler_width=64,
    guidance=5.0,
)
SDXL_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All that SDXL's folders have, and BoLID's adapter."""
    torch.manual_seed(0)
    checkpoint = build_checkpoint(CONFIG)
    checkpoint.vae = small_autoencoder()
    checkpoint.scheduler = EulerDiscreteScheduler(**SDXL_SCHEDULER)
    for parameter in checkpoint.adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    # a random UNet all but ignores what it is told
    for name, parameter in checkpoint.unet.named_parameters():
        if "add_embedding" in name or ".attn2.to_" in name:
            parameter.data *= 4
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    checkpoint.save(folder)
    return folder


def small_autoencoder():
    """As SDXL's: AutoencoderKL of factor 8; a random decoder's pictures are all but grey, so what differs is scaled."""
    levels = 4
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        latent_channels=CONFIG.latent_channels,
        scaling_factor=0.13025,
    )
    with torch.no_grad():
        pixels = vae.decode(torch.randn(4, CONFIG.latent_channels, 8, 8) / 0.13025).sample
        last = vae.decoder.conv_out
        gain = 0.4 / pixels.std()
        last.weight *= gain
        last.bias.copy_(gain * (last.bias - pixels.mean((0, 2, 3))))
    return vae


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder)


@pytest.fixture(scope="module")
def sizes(source):
    return model_sizes(source.checkpoint)


@pytest.fixture(scope="module")
def graphs(source, sizes):
    return bind_graphs(source.checkpoint, sizes)


@pytest.fixture(scope="module")
def bundle(source, sizes, graphs, tmp_path_factory):
    """As the pipeline packages it; what stands for its graphs is in `engines`."""
    staging = tmp_path_factory.mktemp("staging")
    for name in graphs:
        (staging / f"{name}.onnx").write_bytes(name.encode())
    save_tokenizers(source.checkpoint, sizes, staging)
    files, specs = bundle_files(staging), {name: graph.spec for name, graph in graphs.items()}
    manifest = build_manifest(
        source, sizes, specs, files, precision="fp32", licence="CC0-1.0", verification={}, engines={}
    )
    return write_bundle(tmp_path_factory.mktemp("engines") / "sdxl", replace(manifest, golden=None), files)


class Engines(dict):
    """The runtime's Graphs, but in PyTorch: tracing an SDXL takes a minute, and `test_the_whole_export` does."""

    def preload(self, names):
        pass


@pytest.fixture(scope="module")
def engines(graphs):
    return Engines({name: TorchEngine(graph) for name, graph in graphs.items()})


@pytest.fixture(scope="module")
def generator(bundle, engines):
    return generator_of(bundle, engines)


def generator_of(bundle, engines):
    generator = Generator(bundle.path, device="cpu")
    generator._graphs, generator._conditioner = engines, Conditioner(bundle, engines)
    return generator


@pytest.fixture(scope="module")
def patches(source):
    """Patch tokens of nobody (a zero picture) and of five crops of somebody, [6, P, D]: noise will do."""
    size = source.checkpoint.image_encoder.config.image_size
    crops = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    pixels = torch.cat([torch.zeros(1, 3, size, size), crops])
    with torch.no_grad():
        return source.checkpoint.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]


@pytest.fixture(scope="module")
def person(engines, bundle, patches):
    inputs = {"patch_tokens": patches[None, 1:].numpy(), "parts": np.arange(5)[None]}
    tokens = engines["identity_encoder"].run(inputs)["identity_tokens"][0]
    return Identity(tokens=tokens, keypoints=None, aspect=1.0, digest=bundle.identity_digest)


@pytest.fixture(scope="module")
def image_embeds(source, patches):
    """What diffusers' `load_ip_adapter` projects, nobody first: [2, 1, 5 * P, D]."""
    views = torch.stack([patches[:1].expand(5, -1, -1), patches[1:]])
    return [source.checkpoint.adapter.identity_encoder.embed_parts(views, torch.arange(5).expand(2, -1))[:, None]]


def pipeline_of(folder, kind, **parts):
    pipe = kind.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        str(folder / "adapter"), subfolder="", weight_name="identity.safetensors", image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale(1.5)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline_of(folder, StableDiffusionXLPipeline)


def reference(pipe, sizes, image_embeds, sampling, seed=SEED, **options):
    """uint8 [H, W, 3] by diffusers, at the runtime's noise."""
    noise = NoiseSource(seeds=[seed], shape=(sizes.latent_channels, HEIGHT // 8, WIDTH // 8))
    guided = sampling.guidance > 1
    return pipe(
        PROMPT,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance if guided else 1.0,
        latents=torch.from_numpy(next(noise.draws())),
        ip_adapter_image_embeds=image_embeds if guided else [embeds[1:] for embeds in image_embeds],
        output_type="np",
        **options,
    ).images[0]


def drawn(generator, person, sampling, prompt=PROMPT, pose=None, scale=1.5, **options):
    result = generator(
        person,
        prompt,
        seed=SEED,
        width=WIDTH,
        height=HEIGHT,
        pose=pose,
        identity_scale=scale,
        sampling=sampling,
        **options,
    )
    return np.asarray(result.image) / 255


def signed_psnr(a, b):
    return psnr(2 * a - 1, 2 * b - 1)


def test_the_contract_of_sdxl(sizes, bundle):
    assert (sizes.context_width, sizes.pooled_width, sizes.time_ids, sizes.token_inputs) == (192, 32, 6, 2)
    assert sizes.pose_divisors == (2, 2, 4, 4)
    specs = graph_specs(sizes)
    assert specs["text_encoder"].input_names == ("input_ids", "input_ids_2")
    assert specs["text_encoder"].output_names == ("encoder_hidden_states", "text_embeds")
    assert {"text_embeds", "time_ids"} <= set(specs["denoiser"].input_names)
    manifest = bundle.manifest
    assert (manifest.family, manifest.sampling.sampler, manifest.sampling.spacing) == (
        *("stable-diffusion-xl", "euler", "leading"),
    )
    assert manifest.zero_unconditional
    assert "size_conditioning" in manifest.capabilities
    assert manifest.tokenizer.pad_id != manifest.tokenizer_2.pad_id


def test_the_runtime_draws_what_diffusers_sdxl_pipeline_draws(generator, pipe, person, image_embeds, sizes):
    """Prompt to pixels: tokenizers, both towers, zeros as unconditional text, sizes, guidance, Euler, VAE."""
    expected = reference(pipe, sizes, image_embeds, GUIDED)
    assert signed_psnr(drawn(generator, person, GUIDED), expected) > LEAST


@pytest.mark.parametrize(
    ("scheduler_class", "changes", "sampling"),
    [
        (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, replace(PLAIN, steps=1)),  # SDXL-Turbo
        (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, replace(PLAIN, steps=4)),  # SDXL-Lightning
        (
            EulerDiscreteScheduler,
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            GUIDED,
        ),
        (DDIMScheduler, {"prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": False}, GUIDED),
    ],
)
def test_schedulers_of_sdxl_models(
    scheduler_class, changes, sampling, bundle, engines, pipe, person, image_embeds, sizes, tmp_path, monkeypatch
):
    """A bundle samples as its checkpoint's scheduler says, without being asked to."""
    monkeypatch.setattr(pipe, "scheduler", scheduler_class.from_config({**SDXL_SCHEDULER, **changes}))
    checkpoint = SimpleNamespace(scheduler=pipe.scheduler, config=CONFIG)
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    defaults = {"noise_schedule": noise_schedule(checkpoint), "sampling": default_sampling(checkpoint)}
    other = write_bundle(tmp_path / "other", replace(bundle.manifest, **defaults), files)
    expected = reference(pipe, sizes, image_embeds, sampling)
    assert signed_psnr(drawn(generator_of(other, engines), person, sampling), expected) > LEAST


def test_sizes_told_reach_the_picture_as_in_diffusers(generator, pipe, person, image_embeds, sizes):
    told = {"original_size": (1024, 640), "crop": (128, 32)}
    expected = reference(
        pipe, sizes, image_embeds, GUIDED, original_size=told["original_size"], crops_coords_top_left=told["crop"]
    )
    found = drawn(generator, person, GUIDED, original_size=told["original_size"], crop_top_left=told["crop"])
    assert signed_psnr(found, expected) > LEAST
    assert signed_psnr(drawn(generator, person, GUIDED), expected) < LEAST - 5


def test_the_empty_prompt_where_the_model_wants_it(bundle, engines, pipe, person, image_embeds, sizes, tmp_path):
    """Without `force_zeros_for_empty_prompt` the unconditional branch reads what both towers say of no words."""
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    other = write_bundle(tmp_path / "other", replace(bundle.manifest, zero_unconditional=False), files)
    person = replace(person, digest=other.identity_digest)
    expected = reference(pipe, sizes, image_embeds, GUIDED, negative_prompt="")
    assert signed_psnr(drawn(generator_of(other, engines), person, GUIDED), expected) > LEAST


def test_diffusers_sdxl_adapter_pipeline_draws_this_pose(generator, folder, person, image_embeds, sizes):
    """Without guidance: with it, diffusers shows the pose to both branches, and we to one (docs/architecture.md)."""
    guider = T2IAdapter.from_pretrained(folder / "adapter" / "pose_guider", torch_dtype=torch.float32)
    assert guider.config.adapter_type == "full_adapter_xl"
    pose = pose_from_array(np.random.default_rng(0).random((12, 2)))
    skeleton = torch.from_numpy(draw_skeleton(pose.keypoints, WIDTH, HEIGHT)).permute(2, 0, 1)[None] / 255
    pipe = pipeline_of(folder, StableDiffusionXLAdapterPipeline, adapter=guider)
    expected = reference(pipe, sizes, image_embeds, PLAIN, image=skeleton)
    assert signed_psnr(drawn(generator, person, PLAIN, pose=pose), expected) > LEAST
    assert signed_psnr(drawn(generator, person, PLAIN), expected) < LEAST - 5


def test_person_and_prompt_reach_the_picture(generator, person):
    """Otherwise the comparisons above would prove nothing about them."""
    whole = drawn(generator, person, GUIDED)
    others = [drawn(generator, person, GUIDED, scale=0.0), drawn(generator, person, GUIDED, prompt="a cat")]
    assert all(signed_psnr(other, whole) < LEAST - 5 for other in others)


def test_loras_of_requests_reach_both_towers_and_the_unet(folder, tmp_path):
    """By kohya's names for SDXL; against the same file fused."""
    random = torch.Generator().manual_seed(0)
    hot = open_source(folder, (), Choices(hot_lora_rank=4)).checkpoint
    sizes = model_sizes(hot)
    state = {}
    for layer in sizes.layers_of("text_encoder") + sizes.layers_of("denoiser"):
        network, _, path = layer.name.partition(".")
        prefix = {
            "unet": "lora_unet_",
            "text_encoder": "lora_te1_text_model_",
            "text_encoder_2": "lora_te2_text_model_",
        }
        name = original_names([one.name.removeprefix("unet.") for one in sizes.lora_layers]).get(path, path)
        flat = prefix[network] + name.replace(".", "_")
        state[f"{flat}.lora_down.weight"] = torch.randn(3, layer.inputs, generator=random) / layer.inputs**0.5
        state[f"{flat}.lora_up.weight"] = torch.randn(layer.outputs, 3, generator=random) / 4
        state[f"{flat}.alpha"] = torch.tensor(2.0)
    assert {name.partition("_blocks_")[0] for name in state if "unet" in name} >= {
        "lora_unet_input",
        "lora_unet_output",
    }
    file = tmp_path / "style.safetensors"
    save_file(state, file)
    fused = open_source(folder, (), Choices(loras=(Lora(path=file, weight=0.8),))).checkpoint
    stack, zeros = (Loras(sizes).stack(loras) for loras in ([(file, 0.8)], []))
    expected = bind_graphs(fused, model_sizes(fused))
    for name in ("text_encoder", "denoiser"):
        graph = bind_graphs(hot, sizes)[name]
        steps = {"height": 96, "latent_height": 12}
        inputs = dict(zip(graph.spec.input_names, (t.numpy() for t in example_inputs(graph.spec, steps)), strict=True))
        for output, wanted in TorchEngine(expected[name]).run(inputs).items():
            found = TorchEngine(graph).run({**inputs, **stack.of(name)})[output]
            plain = TorchEngine(graph).run({**inputs, **zeros.of(name)})[output]
            np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
            assert np.abs(plain - wanted).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.slow
def test_the_whole_export(source, generator, person, tmp_path):
    """Calibrated, traced, verified and packaged: its pictures are those of the networks that were compared above."""
    bundle = export_bundle(source, Target(folder=tmp_path / "sdxl", precision="fp32", licence="CC0-1.0"))
    assert bundle.manifest.verification["loop"]["psnr"] > LEAST
    exported = Generator(bundle.path, device="cpu", threads=1)
    pose = pose_from_array(np.random.default_rng(0).random((12, 2)))
    person_again = replace(person, digest=exported.bundle.identity_digest)
    found = drawn(exported, person_again, GUIDED, pose=pose)
    assert signed_psnr(found, drawn(generator, person, GUIDED, pose=pose)) > LEAST


def test_equal_tokenizers_are_one_input():
    """Whatever padding and truncation earlier calls have left behind."""
    first, second = byte_tokenizer(), byte_tokenizer()
    first("walking", padding="max_length", truncation=True)
    assert token_inputs(SimpleNamespace(tokenizer=first, tokenizer_2=second)) == 1
    padded_otherwise = build_second_tower(CONFIG, first)["tokenizer_2"]
    assert token_inputs(SimpleNamespace(tokenizer=first, tokenizer_2=padded_otherwise)) == 2
    assert token_inputs(SimpleNamespace(tokenizer=first, tokenizer_2=None)) == 1


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        ({"projection_class_embeddings_input_dim": 1280 + 5 * 256}, "refiner takes five"),
        ({"addition_embed_type": "image"}, "adds image"),
        ({"time_cond_proj_dim": 256}, "take the LCM as"),
    ],
)
def test_unets_that_are_told_other_things_are_refused(differences, message):
    sdxl = {
        "time_cond_proj_dim": None,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    tower = SimpleNamespace(config=SimpleNamespace(projection_dim=1280))
    checkpoint = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(**sdxl)), text_encoder_2=tower)
    assert time_ids(checkpoint) == 6
    checkpoint.unet.config = SimpleNamespace(**sdxl | differences)
    with pytest.raises(InputError, match=message):
        time_ids(checkpoint)
