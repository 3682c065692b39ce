"""A small Stable Diffusion 1.5 as others publish it: true layout and key names, random weights, nothing of BoLID's."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import PNDMScheduler
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from bolid_training.model.checkpoint import byte_tokenizer

WIDTH, VISION_WIDTH, PROJECTION, SIDE = 64, 32, 24, 32
PATCHES = (SIDE // 16) ** 2 + 1
RESAMPLER, QUERIES, DEPTH = 64, 5, 4


def small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def small_vae() -> AutoencoderKL:
    """Eight pixels a latent, as SD1.5's."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def small_text_encoder() -> CLIPTextModel:
    tokenizer = byte_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory) -> Path:
    """unet, vae, text_encoder, tokenizer and a PNDM scheduler, as the published folder."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        unet=small_unet(),
        vae=small_vae(),
        text_encoder=small_text_encoder(),
        tokenizer=byte_tokenizer(),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("published") / "dreams"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_encoder_folder(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        projection_dim=PROJECTION,
    )
    folder = tmp_path_factory.mktemp("image_encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ip_adapters(sd15_folder, tmp_path_factory) -> dict[str, Path]:
    """Files of each kind with all published keys; they share keys and values, so one denoiser serves all of them."""
    random = torch.Generator().manual_seed(2)
    folder = tmp_path_factory.mktemp("ip_adapters")
    attention = keys_and_values(UNet2DConditionModel.from_pretrained(sd15_folder / "unet"), random)
    files = {}
    for name, projection in PROJECTIONS.items():
        published = {f"image_proj.{key}": tensor for key, tensor in projection(random).items()}
        if name == "face_id":
            published |= face_id_changes(UNet2DConditionModel.from_pretrained(sd15_folder / "unet"), random)
        files[name] = folder / f"{name}.safetensors"
        save_file(published | attention, files[name])
    return files


def keys_and_values(unet, random) -> dict[str, torch.Tensor]:
    """IP-Adapter counts every attention layer and has weights for the odd ones, down, up, then mid."""
    names = [name for name in unet.attn_processors if "attn2" in name]
    order = [name for block in ("down", "up", "mid") for name in names if name.startswith(block)]
    hidden = [unet.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in order]
    return {
        f"ip_adapter.{2 * index + 1}.to_{kv}_ip.weight": normal(random, size, WIDTH)
        for index, size in enumerate(hidden)
        for kv in "kv"
    }


def face_id_changes(unet, random, rank=2) -> dict[str, torch.Tensor]:
    """FaceID also changes every attention layer, cross and self: IP-Adapter's count, down, up, then mid."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    order = [name for block in ("down", "up", "mid") for name in names if name.startswith(block)]
    state = {}
    for index, attention in enumerate(map(unet.get_submodule, order)):
        for layer, module in (("to_q", attention.to_q), ("to_k", attention.to_k), ("to_v", attention.to_v)):
            state |= change(random, f"ip_adapter.{index}.{layer}_lora", module, rank)
        state |= change(random, f"ip_adapter.{index}.to_out_lora", attention.to_out[0], rank)
    return state


def change(random, name, module, rank):
    down, up = normal(random, rank, module.in_features), normal(random, module.out_features, rank)
    return {f"{name}.down.weight": down, f"{name}.up.weight": 0.3 * up}


def normal(random, *shape):
    """Standard normal over the square root of what is summed, so that activations keep their size."""
    return torch.randn(shape, generator=random) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)


def with_bias(random, **shapes):
    weights = {f"{name.replace('__', '.')}.weight": normal(random, *shape) for name, shape in shapes.items()}
    return weights | {f"{name.replace('__', '.')}.bias": normal(random, shape[0]) for name, shape in shapes.items()}


def base(random):
    return with_bias(random, proj=(4 * WIDTH, PROJECTION), norm=(WIDTH,))


def full(random):
    shapes = {"proj__0": (VISION_WIDTH, VISION_WIDTH), "proj__2": (WIDTH, VISION_WIDTH), "proj__3": (WIDTH,)}
    return with_bias(random, **shapes)


def plus(random):
    state = {"latents": normal(random, 1, QUERIES, RESAMPLER)}
    state |= with_bias(random, proj_in=(RESAMPLER, VISION_WIDTH), proj_out=(WIDTH, RESAMPLER), norm_out=(WIDTH,))
    for layer in (f"layers__{index}" for index in range(DEPTH)):
        norms = {f"{layer}__{name}": (RESAMPLER,) for name in ("0__norm1", "0__norm2", "1__0")}
        state |= with_bias(random, **norms)
        for name, rows, columns in (
            ("0__to_q", RESAMPLER, RESAMPLER),
            ("0__to_kv", 2 * RESAMPLER, RESAMPLER),
            ("0__to_out", RESAMPLER, RESAMPLER),
            ("1__1", 4 * RESAMPLER, RESAMPLER),
            ("1__3", RESAMPLER, 4 * RESAMPLER),
        ):
            state[f"{layer}__{name}.weight".replace("__", ".")] = normal(random, rows, columns)
    return state


def face_id(random):
    return with_bias(random, proj__0=(2 * 512, 512), proj__2=(4 * WIDTH, 2 * 512), norm=(WIDTH,))


def face_id_plus(random):
    return {"perceiver_resampler.proj_in.weight": normal(random, RESAMPLER, VISION_WIDTH), **face_id(random)}


PROJECTIONS = {"base": base, "plus": plus, "full": full, "face_id": face_id, "face_id_plus": face_id_plus}
