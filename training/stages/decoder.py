"""Stage `decoder`: the autoencoder's decoder goes on alone, and learns to draw what looks real.

Latents stay what they were, and with them all that was trained on them. What latents do not tell, the mean absolute
error answers with a blur. So a discriminator of patches (PatchGAN, as in latent diffusion's autoencoder,
arXiv:2012.09841 and 2112.10752) says where a picture does not look like one:

    L = L_pixels + ADVERSARIAL (-D(x)) + FEATURES |D_i(x) - D_i(y)|,    hinge loss for D

with D's features D_i of the drawing x and the picture y (arXiv:1711.11585). Both sides take their steps together.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from bolid_training.data import People
from bolid_training.model.config import AvatarConfig
from bolid_training.stages.vae import Autoencoder, VaeTask, pixel_losses

ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.1, 10.0
CHANNELS = (64, 128, 256)


class Discriminator(nn.ModuleList):
    """Pictures [B, 3, H, W] -> each layer's features; the last are the logits [B, 1, H/8, W/8] of being real."""

    def __init__(self) -> None:
        pairs = zip((3, *CHANNELS), CHANNELS, strict=False)
        layers = [nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairs]
        super().__init__(spectral_norm(layer) for layer in [*layers, nn.Conv2d(CHANNELS[-1], 1, 3, padding=1)])

    def forward(self, picture: Tensor) -> list[Tensor]:
        features = [picture]
        for layer in self:
            before = features[-1] if layer is self[0] else F.leaky_relu(features[-1], 0.2)
            features.append(layer(before))
        return features[1:]


class JudgedDecoder(Autoencoder):
    """A frozen encoder, the decoder, and who judges it."""

    def __init__(self, vae: AutoencoderTiny):
        super().__init__(vae)
        vae.encoder.requires_grad_(False)
        self.discriminator = Discriminator()

    def forward(self, batch: Tensor, noise: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """The drawing, and D's features: of the picture and of the drawing for D to learn from, and of the drawing for
        the decoder, which D's weights take no gradient of."""
        drawn, _ = super().forward(batch, noise)
        learnt = {"real": self.discriminator(batch), "fake": self.discriminator(drawn.detach())}
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(drawn)
        self.discriminator.requires_grad_(True)
        return {"drawn": drawn, "judged": judged} | learnt


class DecoderTask(VaeTask):
    """Begins with `runs/vae/model`."""

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation)
        self.load(runs / "vae" / "model")
        self.module = JudgedDecoder(self.module.vae).to(memory_format=torch.channels_last)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = module(batch["pixels"], batch["noise"])
        losses = pixel_losses(out["drawn"].float(), batch["pixels"])
        real, fake, judged = ([layer.float() for layer in out[name]] for name in ("real", "fake", "judged"))
        discriminator = F.relu(1 - real[-1]).mean() + F.relu(1 + fake[-1]).mean()
        pairs = zip(judged[:-1], real[:-1], strict=True)
        features = torch.stack([F.l1_loss(x, y.detach()) for x, y in pairs]).mean()
        adversarial = -judged[-1].mean()
        loss = losses["loss"] + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * features + discriminator
        return losses | {"loss": loss, "features": features, "discriminator": discriminator}


def autoencoder_folder(runs: Path) -> Path:
    """The autoencoder that draws: with the decoder that went on, if it has been trained."""
    decoder = runs / "decoder" / "model"
    return decoder if decoder.is_dir() else runs / "vae" / "model"
