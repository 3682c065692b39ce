"""A plain OpenVINO pipeline of the diffusers checkpoint: python openvino_pipeline.py MODEL [bf16 | f32].

Text encoder, UNet and VAE decoder by openvino.convert_model, weights float16 on disk, compiled for static shapes, hint
latency. It knows no person and no pose. Converted networks are kept in MODEL/openvino.
"""

import sys
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from protocol import PROMPT, Request, serve
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


class Unet(nn.Module):
    def __init__(self, folder: Path):
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)

    def example(self) -> tuple[Tensor, ...]:
        channels, width = self.unet.config.in_channels, self.unet.config.cross_attention_dim
        return torch.zeros(2, channels, 32, 32), torch.ones(1), torch.zeros(2, 77, width)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.unet(sample, timestep, text, return_dict=False)[0]


class Decoder(nn.Module):
    def __init__(self, folder: Path):
        super().__init__()
        kind = AutoencoderKL if "AutoencoderKL" in (folder / "vae" / "config.json").read_text() else AutoencoderTiny
        self.vae = kind.from_pretrained(folder / "vae", torch_dtype=torch.float32)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(1, self.vae.config.latent_channels, 32, 32),)

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


class TextEncoder(nn.Module):
    def __init__(self, folder: Path):
        super().__init__()
        self.encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(2, 77, dtype=torch.int64),)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.encoder(input_ids=input_ids).last_hidden_state


NETWORKS: dict[str, type[nn.Module]] = {"unet": Unet, "decoder": Decoder, "text": TextEncoder}


@torch.no_grad()
def convert(model: Path) -> Path:
    """Writes what is missing in MODEL/openvino."""
    folder = model / "openvino"
    for name, network in NETWORKS.items():
        if not (file := folder / f"{name}.xml").exists():
            loaded = network(model).eval()
            ov.save_model(ov.convert_model(loaded, example_input=loaded.example()), file, compress_to_fp16=True)
    return folder


class Pipeline:
    def __init__(self, model: Path, precision: str) -> None:
        self.folder, self.core, self.compiled = convert(model), ov.Core(), {}
        # what OpenVINO's own guide for Stable Diffusion on CPUs recommends
        self.options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        self.channels = UNet2DConditionModel.load_config(model / "unet")["in_channels"]

    def run(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        key = (name, *(array.shape for array in inputs))
        if key not in self.compiled:
            network = self.core.read_model(self.folder / f"{name}.xml")
            network.reshape({port: list(a.shape) for port, a in zip(network.inputs, inputs, strict=True)})
            self.compiled[key] = self.core.compile_model(network, "CPU", self.options)
        return self.compiled[key](list(inputs))[0]

    def draw(self, request: Request) -> None:
        branches = 2 if request.guidance > 1 else 1
        prompts = ([""] if branches == 2 else []) + [PROMPT]
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
        text = np.repeat(self.run("text", np.array(ids, np.int64)), request.batch, 0)
        side = request.size // 8
        generator = torch.Generator().manual_seed(request.seed)
        sample = torch.randn(request.batch, self.channels, side, side, generator=generator)
        self.scheduler.set_timesteps(request.steps)
        for timestep in self.scheduler.timesteps:
            output = self.run(
                "unet", np.tile(sample.numpy(), (branches, 1, 1, 1)), np.array([timestep], np.float32), text
            )
            first, last = output[: request.batch], output[-request.batch :]
            guided = torch.from_numpy(first + request.guidance * (last - first))
            sample = self.scheduler.step(guided, timestep, sample).prev_sample
        pixels = self.run("decoder", sample.numpy())
        (pixels.clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8)


def main(model: str, precision: str = "bf16") -> None:
    pipeline = Pipeline(Path(model), precision)
    serve(pipeline.draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
