"""From published files to pictures: the command line's plan, and a bundle without a pose estimator in the runtime."""

import hashlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from bolid_export.cli import main
from bolid_export.pipeline import Target, export_bundle
from bolid_export.sources import Choices, Lora, open_source
from bolid_sdk import Generator, Sampling
from bolid_sdk.errors import InputError


def plan(*options):
    return CliRunner().invoke(main, ["--dry-run", *map(str, options)])


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """A LoRA of one layer."""
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    file = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_file({f"{query}.lora_down.weight": torch.ones(2, 32), f"{query}.lora_up.weight": torch.ones(32, 2)}, file)
    return file


def test_a_dry_run_lists_every_decision(sd15_folder, image_encoder_folder, ip_adapters, style, tmp_path):
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
        tmp_path / "taesd"
    )
    options = ["--model", sd15_folder, "--adapter", ip_adapters["plus"], "--image-encoder", image_encoder_folder]
    options += ["--vae", tmp_path / "taesd", "--lora", f"{style}:0.5", "-o", tmp_path / "out"]
    result = plan(*options, "--prediction-type", "v_prediction", "--json")
    assert result.exit_code == 0, result.stderr
    planned = json.loads(result.stdout)
    decisions = planned["decisions"]
    assert decisions["family"] == "stable-diffusion"
    assert decisions["prediction type"] == "v_prediction, as was said"
    assert decisions["VAE"].startswith("AutoencoderTiny")
    assert decisions["identity"] == "IP-Adapter Plus, plus.safetensors"
    assert decisions["LoRA style.safetensors"] == "fused with weight 0.5"
    assert planned["capabilities"] == ["caching", "encode"]
    assert planned["sizes"]["parts"] == 1
    assert "identity:          IP-Adapter Plus" in plan(*options).stdout
    assert not (tmp_path / "out").exists()


def test_mixed_families_are_one_line(sd15_folder, image_encoder_folder, ip_adapters, tmp_path):
    state = load_file(ip_adapters["base"])
    wide = {name: torch.zeros(len(t), 2048) if "_ip." in name else t for name, t in state.items()}
    save_file(wide, tmp_path / "sdxl.safetensors")
    options = ["--model", sd15_folder, "--image-encoder", image_encoder_folder, "-o", tmp_path / "out"]
    result = plan(*options, "--adapter", tmp_path / "sdxl.safetensors")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "2048 (SDXL)" in result.stderr
    result = plan(*options, "--prediction-type", "flow")
    assert "there is epsilon, v_prediction" in result.stderr


@pytest.fixture(scope="module")
def bundle(sd15_folder, image_encoder_folder, ip_adapters, style, tmp_path_factory):
    choices = Choices(image_encoder=image_encoder_folder, loras=(Lora(path=style, weight=0.25),))
    source = open_source(sd15_folder, [ip_adapters["base"]], choices)
    target = Target(folder=tmp_path_factory.mktemp("engines") / "dreams", precision="fp32", licence="unknown")
    return export_bundle(source, target)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (side, 32, 3), np.uint8)) for side in (32, 48, 32)]


@pytest.mark.slow
def test_a_bundle_without_bolids_own_parts_makes_pictures(bundle, pictures, image_encoder_folder, ip_adapters, style):
    assert bundle.manifest.capabilities == ("caching", "encode")
    digest = hashlib.sha256(style.read_bytes()).hexdigest()
    assert bundle.manifest.sources["loras"] == [{"file": "style.safetensors", "sha256": digest, "weight": 0.25}]
    generator = Generator(bundle.path, backend="onnxruntime")
    square = pictures[0]
    tokens = generator.identify(square).tokens
    np.testing.assert_allclose(tokens, published_tokens(square, image_encoder_folder, ip_adapters["base"]), atol=1e-4)
    assert generator.identify(pictures).tokens.shape == (12, 64)
    for option in ({"pose": np.zeros((12, 3))}, {"image_prompt": square}):
        with pytest.raises(InputError, match="beyond a person and a prompt it has: caching, encode"):
            generator(square, "a person", **option)


@torch.no_grad()
def published_tokens(image, image_encoder_folder, file):
    """transformers' preprocessing and CLIP, and IP-Adapter's projection written out."""
    pixels = CLIPImageProcessor.from_pretrained(image_encoder_folder)(image, return_tensors="pt")["pixel_values"]
    embeds = CLIPVisionModelWithProjection.from_pretrained(image_encoder_folder).eval()(pixels).image_embeds
    state = {name.removeprefix("image_proj."): tensor for name, tensor in load_file(file).items()}
    projected = (embeds @ state["proj.weight"].T + state["proj.bias"]).reshape(4, -1)
    return torch.nn.functional.layer_norm(projected, (64,), state["norm.weight"], state["norm.bias"]).numpy()


@pytest.mark.slow
def test_people_of_one_and_of_three_references_share_a_batch(bundle, pictures):
    """Their tokens differ in number; the picture of each is what it is alone."""
    generator = Generator(bundle.path, backend="onnxruntime")
    people = [generator.identify(pictures[0]), generator.identify(pictures)]
    sampling = Sampling(steps=2, guidance=3.0)
    together = generator.batch([(person, "a person") for person in people], seed=[5, 6], sampling=sampling)
    for person, result in zip(people, together, strict=True):
        alone = generator(person, "a person", seed=result.seed, sampling=sampling)
        difference = np.abs(np.asarray(alone.image, int) - np.asarray(result.image, int))
        assert difference.max() <= 1
