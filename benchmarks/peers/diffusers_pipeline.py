"""diffusers with IP-Adapter-Plus: python diffusers_pipeline.py MODEL [fp32 | bf16 | compile].

bf16: weights and activations, channels last. compile: that, and torch.compile with frozen weights, as PyTorch's guide
to inference on CPUs recommends.
"""

import sys

import torch
import torch._inductor.config as inductor
from diffusers import StableDiffusionPipeline
from protocol import PROMPT, Request, serve

SCALE = 1.0
PATCH_TOKENS = 257


def load(model: str, mode: str) -> StableDiffusionPipeline:
    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=dtype, image_encoder=None)
    pipe.load_ip_adapter(model, subfolder="adapter", weight_name="image_prompt.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(SCALE)
    pipe.set_progress_bar_config(disable=True)
    if mode != "fp32":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if mode == "compile":
        inductor.freezing = True
        pipe.unet = torch.compile(pipe.unet, dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
    return pipe


def main(model: str, mode: str = "bf16") -> None:
    pipe = load(model, mode)
    width = pipe.unet.encoder_hid_proj.image_projection_layers[0].proj_in.in_features
    person = torch.randn(1, 1, PATCH_TOKENS, width, generator=torch.Generator().manual_seed(0)).to(pipe.dtype)

    @torch.no_grad()
    def draw(request: Request) -> None:
        guided = request.guidance > 1
        pipe(
            PROMPT,
            width=request.size,
            height=request.size,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.batch,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(person), person]) if guided else person],
            generator=torch.Generator().manual_seed(request.seed),
        )

    with torch.no_grad():
        serve(draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
