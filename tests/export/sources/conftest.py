"""A small Stable Diffusion 1.5 as others publish it: true layout and key names, random weights, nothing of BoLID's."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import PNDMScheduler
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
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
    return resampler(random, width=RESAMPLER, queries=QUERIES, reads=VISION_WIDTH)


def resampler(random, *, width, queries, reads):
    """IP-Adapter-Plus' keys, and InstantID's."""
    state = {"latents": normal(random, 1, queries, width)}
    state |= with_bias(random, proj_in=(width, reads), proj_out=(WIDTH, width), norm_out=(WIDTH,))
    return state | perceiver_blocks(random, width, DEPTH)


def perceiver_blocks(random, width, depth):
    state = {}
    for layer in (f"layers__{index}" for index in range(depth)):
        norms = {f"{layer}__{name}": (width,) for name in ("0__norm1", "0__norm2", "1__0")}
        state |= with_bias(random, **norms)
        for name, rows, columns in (
            ("0__to_q", width, width),
            ("0__to_kv", 2 * width, width),
            ("0__to_out", width, width),
            ("1__1", 4 * width, width),
            ("1__3", width, 4 * width),
        ):
            state[f"{layer}__{name}.weight".replace("__", ".")] = normal(random, rows, columns)
    return state


def face_id(random):
    return with_bias(random, proj__0=(2 * 512, 512), proj__2=(4 * WIDTH, 2 * 512), norm=(WIDTH,))


def face_id_plus(random):
    return {"perceiver_resampler.proj_in.weight": normal(random, RESAMPLER, VISION_WIDTH), **face_id(random)}


PROJECTIONS = {"base": base, "plus": plus, "full": full, "face_id": face_id, "face_id_plus": face_id_plus}


def small_sdxl_unet() -> UNet2DConditionModel:
    """Attention in the lower block alone, several transformer layers, text and sizes beside the timestep."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=PROJECTION + 6 * 8,
    )


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory) -> Path:
    """A small SDXL as it is published; its two towers read the same ids and are of different widths."""
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    config, config_2 = (
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=PROJECTION,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for width in (24, WIDTH - 24)
    )
    pipe = StableDiffusionXLPipeline(
        unet=small_sdxl_unet(),
        vae=small_vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config_2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("published") / "dreams-xl"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def instant_id(sdxl_folder, tmp_path_factory) -> Path:
    """InstantID's folder: a pickle of two dictionaries, and an IdentityNet that has an effect."""
    random = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("InstantID")
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    attention = {name.removeprefix("ip_adapter."): t for name, t in keys_and_values(unet, random).items()}
    projection = resampler(random, width=128, queries=16, reads=512)
    torch.save({"image_proj": projection, "ip_adapter": attention}, folder / "ip-adapter.bin")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for name, parameter in net.named_parameters():
        if name.startswith("controlnet_"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    net.save_pretrained(folder / "ControlNetModel")
    return folder


@pytest.fixture(scope="session")
def pulid_files(sdxl_folder, tmp_path_factory) -> dict[str, Path]:
    """v1 as a flat pickle, v1.1 as safetensors; they share keys and values, so one denoiser serves both."""
    random = torch.Generator().manual_seed(5)
    folder = tmp_path_factory.mktemp("PuLID")
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    attention = {
        name.replace("ip_adapter.", "id_adapter_attn_layers.").replace(".to_", ".id_to_").replace("_ip.", "."): tensor
        for name, tensor in keys_and_values(unet, random).items()
    }
    files = {"pulid_v1": folder / "pulid_v1.bin", "pulid_v1.1": folder / "pulid_v1.1.safetensors"}
    torch.save(prefixed("id_adapter.", id_encoder(random)) | attention, files["pulid_v1"])
    save_file(prefixed("id_adapter.", id_former(random)) | attention, files["pulid_v1.1"])
    return files


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def perceptron(random, name, *widths):
    """As PuLID's: linear, norm, rectifier, twice, then linear."""
    state = {}
    for index, (reads, gives) in zip((0, 3, 6), pairwise(widths), strict=True):
        state |= with_bias(random, **{f"{name}__{index}": (gives, reads)})
        if index < 6:
            state |= with_bias(random, **{f"{name}__{index + 1}": (gives,)})
    return state


def id_encoder(random):
    """v1: five tokens of the embeddings 512 + 768 wide, and one of each of five layers."""
    state = perceptron(random, "body", 1280, 5 * WIDTH // 4, 5 * WIDTH // 2, 5 * WIDTH)
    for level in range(5):
        for name in (f"mapping_{level}", f"mapping_patch_{level}"):
            state |= perceptron(random, name, VISION_WIDTH, VISION_WIDTH, VISION_WIDTH, WIDTH)
    return state


def id_former(random, width=128):
    """v1.1: ten blocks."""
    state = {"latents": normal(random, 1, 32, width), "proj_out": normal(random, width, WIDTH)}
    state |= perceptron(random, "id_embedding_mapping", 1280, 48, 48, 5 * width)
    for level in range(5):
        state |= perceptron(random, f"mapping_{level}", VISION_WIDTH, VISION_WIDTH, VISION_WIDTH, width)
    return state | perceiver_blocks(random, width, 10)
