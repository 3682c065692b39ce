"""Stage `unet`: the text-to-image base, on latents and captions."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People, cached, pixels
from bolid_training.model.attention import PlainAttnProcessor
from bolid_training.model.checkpoint import build_scheduler, build_unet, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.sampling import sample_latents
from bolid_training.stages.clip import tokenize
from bolid_training.stages.vae import to_bytes

SNR_GAMMA = 5.0
DROP_TEXT = 0.1


class UnetTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        self.people, self.validation = people, validation
        self.vae = AutoencoderTiny.from_pretrained(runs / "vae" / "model").eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(runs / "clip" / "model")
        clip = CLIPModel.from_pretrained(runs / "clip" / "model")
        self.text_encoder = clip_parts(clip)["text_encoder"].eval().requires_grad_(False)
        self.scheduler = build_scheduler(config)
        self.latents = cached_latents(self.vae, people, runs / "cache" / f"latents-train-{len(people)}.npy")
        self.module = build_unet(config).to(memory_format=torch.channels_last)
        self.module.set_attn_processor(PlainAttnProcessor())

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        captions = [self.people.captions[i][rng.integers(len(self.people.captions[i]))] for i in indices]
        captions = ["" if rng.random() < DROP_TEXT else caption for caption in captions]
        return noisy_batch(self.latents[indices], self.scheduler, rng) | {
            "encoder_hidden_states": self.encode(captions)
        }

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """encoder_hidden_states [B, 77, C]."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.text_encoder(tokenize(self.tokenizer, captions))[0].float()

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output = module(batch["sample"], batch["timestep"], batch["encoder_hidden_states"]).sample
        return diffusion_loss(output, batch)

    def validate(self, sheet: Path) -> dict[str, float]:
        captions = [captions[0] for captions in self.validation.captions[:24]]
        text = self.encode([""] * len(captions) + captions)
        shape = (len(captions), *self.latents.shape[1:])
        latents = sample_latents(self.module, self.scheduler, shape, steps=20, guidance=3.0, encoder_hidden_states=text)
        contact_sheet(to_bytes(self.vae.decode(latents).sample), columns=8, labels=captions).save(sheet)
        return {}

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)


def cached_latents(vae: AutoencoderTiny, people: People, file: Path) -> np.ndarray:
    """float16 [N, c, H/8, W/8]."""
    vae = vae.to(memory_format=torch.channels_last)

    def encode(piece: slice) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return vae.encode(pixels(people.images[piece])).latents.float().half().numpy()

    return cached(file, encode, len(people))


def noisy_batch(latents: np.ndarray, scheduler: DDIMScheduler, rng: np.random.Generator) -> dict[str, Tensor]:
    """x_t, t, the target v = alpha eps - sigma x0, and the weight of each sample of a batch.

    The weight is min-SNR's (arXiv:2303.09556) for v, softened so that pure noise (SNR 0) still counts.

    Timesteps are stratified over the batch: the same expectation as independent draws with less variance.
    """
    x0 = torch.from_numpy(latents.astype(np.float32))
    size = len(x0)
    timestep = torch.from_numpy(((np.arange(size) + rng.random(size)) / size * 1000).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    alphas = scheduler.alphas_cumprod[timestep]
    snr = alphas / (1 - alphas)
    return {
        "sample": scheduler.add_noise(x0, noise, timestep),
        "timestep": timestep,
        "target": scheduler.get_velocity(x0, noise, timestep),
        "weight": (snr + 1).clamp(max=SNR_GAMMA + 1) / (snr + 1),
    }


def diffusion_loss(output: Tensor, batch: dict[str, Tensor], where: Tensor | None = None) -> dict[str, Tensor]:
    """L_rec (eq. 2 of the brief, in v instead of epsilon), weighted; and unweighted for comparison.

    `where` [B, 1, h, w] weights the latent pixels.
    """
    error = (output.float() - batch["target"]).square()
    mse = error.mean()
    if where is not None:
        error = error * where / where.mean()
    return {"loss": (error.mean((1, 2, 3)) * batch["weight"]).mean(), "mse": mse}
