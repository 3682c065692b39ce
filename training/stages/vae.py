"""Stage `vae`: AutoencoderTiny on the pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional as F

from bolid_training.avatars.sheets import contact_sheet
from bolid_training.data import People, pixels
from bolid_training.model.checkpoint import build_vae
from bolid_training.model.config import AvatarConfig

CROP = 64
ON_PERSON = 0.7
LATENT_NOISE = 0.1  # of a standard deviation: the decoder has to forgive what the denoiser gets wrong
LATENT_WEIGHT = 0.02
EDGE_WEIGHT = 1.0
CHROMA_WEIGHT = 3.0  # brightness explains most of the error; without this, colours come last
SWAP_CHANNELS = 0.5  # share of batches with red, green and blue exchanged: few pictures have purple in them


class Autoencoder(nn.Module):
    """Encoder, noise on the latents, decoder: pixels [B, 3, H, W] -> reconstruction, latents [B, c, H/8, W/8]."""

    def __init__(self, vae: AutoencoderTiny):
        super().__init__()
        self.vae = vae

    def forward(self, batch: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(batch).latents
        return self.vae.decode(latents + LATENT_NOISE * noise).sample, latents


def initialise(vae: AutoencoderTiny) -> None:
    """Keeps the signal's size through fifty layers without norms: He's initialisation, residual branches near zero.

    PyTorch's own lets it shrink, and the first minutes of training go into undoing that.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            module.conv[-1].weight.data.mul_(0.1)
    for stack in (vae.encoder.layers, vae.decoder.layers):
        nn.init.xavier_normal_(stack[-1].weight)


class VaeTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People):
        self.config, self.people = config, people
        self.module = Autoencoder(build_vae(config)).to(memory_format=torch.channels_last)
        initialise(self.module.vae)
        self.held_out = pixels(validation.images[:64])

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        images = np.stack([self._crop(index, rng) for index in rng.integers(len(self.people), size=size)])
        if rng.random() < 0.5:
            images = np.ascontiguousarray(images[:, :, ::-1])
        if rng.random() < SWAP_CHANNELS:
            images = np.ascontiguousarray(images[..., rng.permutation(3)])
        noise = rng.standard_normal((size, self.config.latent_channels, CROP // 8, CROP // 8), dtype=np.float32)
        return {"pixels": pixels(images), "noise": torch.from_numpy(noise)}

    def _crop(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A square of `CROP` pixels, mostly around a keypoint: faces and clothes are harder than sky."""
        image = self.people.images[index]
        limit = image.shape[0] - CROP
        left, top = rng.integers(limit + 1, size=2)
        if rng.random() < ON_PERSON:
            x, y = self.people.keypoints[index, rng.integers(12), :2] * image.shape[0] - CROP / 2
            left, top = np.clip([x, y] + rng.normal(0, CROP / 4, 2), 0, limit).astype(int)
        return image[top : top + CROP, left : left + CROP]

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out, latents = module(batch["pixels"], batch["noise"])
        losses, spread = pixel_losses(out.float(), batch["pixels"]), unit_variance(latents.float())
        return losses | {"loss": losses["loss"] + LATENT_WEIGHT * spread, "spread": spread}

    def validate(self, sheet: Path) -> dict[str, float]:
        vae = self.module.vae
        latents = vae.encode(self.held_out).latents
        out = vae.decode(latents).sample.clamp(-1, 1)
        pairs = torch.stack([self.held_out[:12], out[:12]], 1).flatten(0, 1)
        contact_sheet(to_bytes(pairs), columns=6).save(sheet)
        mse = F.mse_loss(out, self.held_out, reduction="none").mean((1, 2, 3))
        return {"psnr": float((10 * torch.log10(4 / mse)).mean()), "latent_std": float(latents.std())}

    def save(self, folder: Path) -> None:
        self.module.vae.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.module.vae.load_state_dict(AutoencoderTiny.from_pretrained(folder).state_dict())


def pixel_losses(out: Tensor, target: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Of pictures [B, 3, H, W] in [-1, 1]: in brightness and colour, in edges, and in colour alone; `weights`
    [B, 1, H, W] of the pixels, of mean 1."""
    weights = torch.ones_like(out[:, :1]) if weights is None else weights
    error = (weights * ((out - target).abs() + (out - target).square())).mean()
    tint = (weights * (chroma(out) - chroma(target)).abs()).mean()
    differences = zip(gradients(out), gradients(target), (weights[..., 1:], weights[..., 1:, :]), strict=True)
    edges = sum((w * (a - b).abs()).mean() for a, b, w in differences)
    return {"loss": error + EDGE_WEIGHT * edges + CHROMA_WEIGHT * tint, "error": error, "chroma": tint}


def autoencoder_folder(runs: Path) -> Path:
    """The autoencoder that draws: with the decoder that went on, if it has been trained."""
    decoder = runs / "decoder" / "model"
    return decoder if decoder.is_dir() else runs / "vae" / "model"


def chroma(image: Tensor) -> Tensor:
    """Pixels without their brightness, the mean of the three channels."""
    return image - image.mean(1, keepdim=True)


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]


def unit_variance(latents: Tensor) -> Tensor:
    """How far each channel's mean and standard deviation over the batch are from 0 and 1."""
    return latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()


def to_bytes(batch: Tensor) -> np.ndarray:
    """float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return ((batch.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
