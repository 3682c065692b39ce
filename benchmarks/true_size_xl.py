"""A checkpoint of SDXL's true sizes with PuLID v1.1, random weights: for speed, memory and parity, not for looks.

    python benchmarks/true_size_xl.py --out runs/sdxl-pulid
    python benchmarks/true_size_export.py runs/sdxl-pulid --only fp16

UNet, both text towers and autoencoder have the published sizes, the adapter the published names and shapes of PuLID
v1.1. Tokenizers are the avatar's. About 8.5 GB in float16; one part at a time is in memory.
"""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import click
import diffusers
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from true_size import autoencoder, in_half

from bolid_export.sources import default_checkpoint

CONTEXT = 2048
"""Width of the text that cross-attention reads: both towers side by side."""
FACE_EMBEDDING, VISION_EMBEDDING, VISION_STATES, LEVELS = 512, 768, 1024, 5
WIDTH, QUERIES, FACE_TOKENS, BLOCKS = 1024, 32, 5, 10


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    """Write OUT."""
    torch.manual_seed(0)
    out.mkdir(parents=True)
    for name, build in _PARTS.items():
        click.echo(f"writing {out / name}")
        in_half(build).save_pretrained(out / name)
    for name in ("tokenizer", "tokenizer_2"):
        copytree(default_checkpoint() / "tokenizer", out / name)
    scheduler().save_pretrained(out / "scheduler")
    (out / "model_index.json").write_text(json.dumps(_index(), indent=2) + "\n")
    (out / "adapter").mkdir()
    save_file(pulid(out / "unet"), out / "adapter" / "identity.safetensors")


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=CONTEXT,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def text_encoder() -> CLIPTextModel:
    """CLIP ViT-L/14's."""
    return CLIPTextModel(text_config(width=768, layers=12, heads=12, projection=768, activation="quick_gelu"))


def text_encoder_2() -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's."""
    return CLIPTextModelWithProjection(text_config(width=1280, layers=32, heads=20, projection=1280, activation="gelu"))


def text_config(*, width: int, layers: int, heads: int, projection: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
        hidden_act=activation,
    )


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's own."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )


def pulid(folder: Path) -> dict[str, Tensor]:
    """Names and shapes of `pulid_v1.1.safetensors`; keys and values as wide as those of the UNet in `folder`."""
    network = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float16)
    layers = [processor.removesuffix(".processor") for processor in network.attn_processors]
    state = {f"id_adapter.{name}": tensor for name, tensor in id_former()}
    for index, name in enumerate(layers):
        if name.endswith("attn2"):
            width = network.get_submodule(name).inner_dim
            for kind in "kv":
                state[f"id_adapter_attn_layers.{index}.id_to_{kind}.weight"] = normal(width, CONTEXT)
    return state


def id_former() -> Iterator[tuple[str, Tensor]]:
    yield "latents", normal(1, QUERIES, WIDTH)
    yield "proj_out", normal(WIDTH, CONTEXT)
    faces = (FACE_EMBEDDING + VISION_EMBEDDING, WIDTH, WIDTH, FACE_TOKENS * WIDTH)
    yield from perceptron("id_embedding_mapping", faces)
    for level in range(LEVELS):
        yield from perceptron(f"mapping_{level}", (VISION_STATES, WIDTH, WIDTH, WIDTH))
    shapes = {
        "0.to_q": (WIDTH, WIDTH),
        "0.to_kv": (2 * WIDTH, WIDTH),
        "0.to_out": (WIDTH, WIDTH),
        "1.1": (4 * WIDTH, WIDTH),
        "1.3": (WIDTH, 4 * WIDTH),
    }
    for layer in (f"layers.{index}" for index in range(BLOCKS)):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            yield from norm_weights(f"{layer}.{norm}", WIDTH)
        for name, shape in shapes.items():
            yield f"{layer}.{name}.weight", normal(*shape)


def perceptron(name: str, widths: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Linear, norm, rectifier, twice, then linear."""
    for index, (reads, gives) in zip((0, 3, 6), pairwise(widths), strict=True):
        yield f"{name}.{index}.weight", normal(gives, reads)
        yield f"{name}.{index}.bias", torch.zeros(gives, dtype=torch.float16)
        if index < 6:
            yield from norm_weights(f"{name}.{index + 1}", gives)


def norm_weights(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.ones(width, dtype=torch.float16)
    yield f"{name}.bias", torch.zeros(width, dtype=torch.float16)


def normal(*shape: int) -> Tensor:
    """Standard normal over the square root of what is summed, so that activations keep their size."""
    return (torch.randn(shape) / shape[-1] ** 0.5).half()


_PARTS: dict[str, Callable[[], torch.nn.Module]] = {
    "unet": unet,
    "vae": lambda: autoencoder(sample_size=1024, scaling_factor=0.13025),
    "text_encoder": text_encoder,
    "text_encoder_2": text_encoder_2,
}


def _index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "force_zeros_for_empty_prompt": True,
    }


if __name__ == "__main__":
    main()
