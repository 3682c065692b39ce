"""A random checkpoint, as small as all its parts allow, and what is exported from it, once a session."""

import logging
from pathlib import Path

import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel

from bolid_export.graphs import bind_graphs
from bolid_export.pipeline import Target, export_bundle
from bolid_export.sources import model_sizes, open_source
from bolid_export.tracing.stream import to_onnx
from bolid_export.verify import load_engines
from bolid_training.model.adapter import Adapter
from bolid_training.model.checkpoint import Checkpoint, build_checkpoint
from bolid_training.model.config import AvatarConfig

# pytest listens to loggers that do not propagate, and torch writes its structured trace as soon as somebody listens:
# tracing a graph takes three times as long then
logging.getLogger("torch.__trace").propagate = True

CONFIG = AvatarConfig(
    image_size=64,
    latent_channels=4,
    vae_width=8,
    text_width=64,
    text_layers=1,
    vision_layers=2,
    vision_size=32,
    clip_projection=32,
    unet_channels=(32, 64, 64),
    pose_width=64,
    pose_layers=1,
    identity_tokens=4,
    image_tokens=3,
    resampler_width=64,
)


def small_unet() -> UNet2DConditionModel:
    """Two levels instead of three: tracing takes time by the layer."""
    return UNet2DConditionModel(
        sample_size=CONFIG.image_size // 8,
        in_channels=CONFIG.latent_channels,
        out_channels=CONFIG.latent_channels,
        block_out_channels=CONFIG.unet_channels[:2],
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CONFIG.text_width,
        attention_head_dim=2,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    checkpoint = build_checkpoint(CONFIG)
    checkpoint.unet = small_unet().eval()
    checkpoint.adapter = Adapter(checkpoint.unet, CONFIG).eval()
    # a fresh adapter repeats the text's keys and values; only different ones tell the branches apart
    for parameter in checkpoint.adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    _use_the_range_of_pixels(checkpoint)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(folder)
    return folder


@torch.no_grad()
def _use_the_range_of_pixels(checkpoint):
    """A random decoder's pictures are all but alike: scales what differs between them, and centres each channel."""
    last = checkpoint.vae.decoder.layers[-1]
    pixels = checkpoint.vae.decode(torch.randn(16, CONFIG.latent_channels, 8, 8)).sample
    gain = 0.4 / pixels.std(0).mean()
    last.weight *= gain
    # the decoder gives 2 y - 1
    last.bias.copy_(0.5 + gain * (last.bias - (pixels.mean((0, 2, 3)) + 1) / 2))


@pytest.fixture(scope="session")
def source(model_folder):
    return open_source(model_folder)


@pytest.fixture(scope="session")
def checkpoint(source) -> Checkpoint:
    return source.checkpoint


@pytest.fixture(scope="session")
def sizes(checkpoint):
    return model_sizes(checkpoint)


@pytest.fixture(scope="session")
def graphs(checkpoint, sizes):
    return bind_graphs(checkpoint, sizes)


@pytest.fixture(scope="session")
def export(graphs, sizes, tmp_path_factory):
    """Traces a graph in float32: (ONNX model, the runtime's engine)."""
    folder, made = tmp_path_factory.mktemp("graphs"), {}

    def export_once(name):
        if name not in made:
            file = to_onnx(graphs[name], folder, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
            made[name] = onnx.load(file), load_engines({name: file}, {name: graphs[name].spec})[name]
        return made[name]

    return export_once


@pytest.fixture(scope="session")
def fp16_bundle(source, tmp_path_factory):
    """The whole path: calibrated, traced, verified, packaged."""
    target = Target(folder=tmp_path_factory.mktemp("engines") / "tiny", precision="fp16", licence="CC0-1.0")
    return export_bundle(source, target)
