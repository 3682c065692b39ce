"""Stage `decoder`: the autoencoder's decoder goes on alone, and learns to draw what looks real and is read aright.

Latents stay what they were, and with them all that was trained on them. What latents do not tell, the mean absolute
error answers with a blur. So a discriminator of patches (PatchGAN, as in latent diffusion's autoencoder,
arXiv:2012.09841 and 2112.10752) says where a picture does not look like one, and the model's own pose estimator,
whether the person stands as in the picture: a blur has no face, and its left is taken for its right.

    L = L_pixels + ADVERSARIAL (-D(x)) + FEATURES |D_i(x) - D_i(y)| + POSE KL(keypoints) + TOKENS ||E(x) - E(y)||^2,

hinge loss for D, with D's features D_i (arXiv:1711.11585) and the estimator's last ones E, in units of their standard
deviations, of the drawing x and the picture y. Both sides take their steps together. A window about the person is
drawn, and most of the error counted is the person's.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from bolid_training.avatars.parts import Part
from bolid_training.data import People, pixels, with_recoloured
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import HEATMAP_STRIDE, PoseEstimator, load_pose_estimator
from bolid_training.stages.pose import draw_views, person_boxes, position_divergence, visible_heatmaps
from bolid_training.stages.unet import cached_latents
from bolid_training.stages.vae import VaeTask, pixel_losses
from bolid_training.views import Views

ADVERSARIAL_WEIGHT, FEATURE_WEIGHT, POSE_WEIGHT, TOKEN_WEIGHT = 0.1, 10.0, 0.1, 1.0
CHANNELS = (64, 128, 256)
WINDOW, CELL = 12, 8  # cells of latents on a side, pixels of a cell
LATENT_NOISE = 0.2  # at most, in standard deviations of a latent
PART_WEIGHTS = {Part.BACKGROUND: 1, Part.FACE: 10, Part.HAIR: 6, Part.HAT: 6}  # of a pixel's error
PERSON_WEIGHT = 4  # of the other parts' pixels


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


class JudgedDecoder(nn.Module):
    """A frozen encoder, the decoder, and who judges it."""

    def __init__(self, vae: AutoencoderTiny):
        super().__init__()
        self.vae, self.discriminator = vae, Discriminator()
        vae.encoder.requires_grad_(False)

    def forward(self, latents: Tensor, picture: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """The drawing, and D's features: of the picture and of the drawing for D to learn from, and of the drawing for
        the decoder, which D's weights take no gradient of."""
        drawn = self.vae.decode(latents).sample
        learnt = {"real": self.discriminator(picture), "fake": self.discriminator(drawn.detach())}
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(drawn)
        self.discriminator.requires_grad_(True)
        return {"drawn": drawn, "judged": judged} | learnt


class DecoderTask(VaeTask):
    """Begins with `runs/vae/model`; reads with `runs/pose/model`."""

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        people = with_recoloured(people)
        super().__init__(config, people, validation)
        self.load(runs / "vae" / "model")
        vae = self.module.vae
        self.latents = cached_latents(vae, people, runs)
        self.boxes = person_boxes(people)
        self.pose_estimator = load_pose_estimator(runs / "pose" / "model").eval().requires_grad_(False)
        # no group norm in it: channels last is the faster one in bfloat16, too (0.20 s a step instead of 0.25)
        self.module = JudgedDecoder(vae).to(memory_format=torch.channels_last)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """Windows about people: latents with noise, pixels, weights, keypoints, and how the estimator looks at them."""
        indices = rng.integers(len(self.people), size=size)
        boxes, people = self.boxes[indices], self.people
        cells = self.latents.shape[-1]
        window = min(WINDOW, cells)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 * cells + rng.normal(0, 1, (size, 2))
        corners = np.clip(np.round(middle - window / 2), 0, cells - window).astype(int)
        latents = windows(self.latents[indices].astype(np.float32), corners, window)
        noise = rng.uniform(0, LATENT_NOISE, (size, 1, 1, 1)) * rng.standard_normal(latents.shape)
        images = windows(people.images[indices].transpose(0, 3, 1, 2), corners * CELL, window * CELL)
        parts = windows(people.parts[indices], corners * CELL, window * CELL)
        keypoints = people.keypoints[indices].copy()
        keypoints[..., :2] = (keypoints[..., :2] * cells - corners[:, None]) / window
        keypoints[..., 2] *= ((keypoints[..., :2] >= 0) & (keypoints[..., :2] <= 1)).all(-1)
        views = draw_views((boxes * cells - np.tile(corners, 2)) / window, np.zeros(size, bool), rng)
        return {
            "latents": torch.from_numpy(latents + noise.astype(np.float32)),
            "pixels": pixels(np.ascontiguousarray(images.transpose(0, 2, 3, 1))),
            "weights": part_weights(parts),
            "keypoints": torch.from_numpy(keypoints)[:, None],
        } | vars(views)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = module(batch["latents"], batch["pixels"])
        drawn = out["drawn"].float()
        losses = pixel_losses(drawn, batch["pixels"], batch["weights"])
        real, fake, judged = ([layer.float() for layer in out[name]] for name in ("real", "fake", "judged"))
        discriminator = F.relu(1 - real[-1]).mean() + F.relu(1 + fake[-1]).mean()
        pairs = zip(judged[:-1], real[:-1], strict=True)
        features = torch.stack([F.l1_loss(x, y.detach()) for x, y in pairs]).mean()
        adversarial = -judged[-1].mean()
        views = Views(**{name: batch[name] for name in ("centre", "side", "angle", "mirror")})
        read = read_alike(self.pose_estimator, views, drawn, batch)
        loss = losses["loss"] + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * features + discriminator
        loss = loss + POSE_WEIGHT * read["pose"] + TOKEN_WEIGHT * read["tokens"]
        return losses | {"loss": loss, "features": features, "discriminator": discriminator} | read


def windows(arrays: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Squares [B, ..., side, side] of [B, ..., H, W], whose corners [B, 2] are (x, y)."""
    return np.stack([a[..., y : y + side, x : x + side] for a, (x, y) in zip(arrays, corners, strict=True)])


def part_weights(parts: np.ndarray) -> Tensor:
    """Labels [B, H, W] -> what a pixel counts, float32 [B, 1, H, W] of mean 1 in each picture."""
    table = np.array([PART_WEIGHTS.get(part, PERSON_WEIGHT) for part in Part], np.float32)
    weights = table[parts]
    return torch.from_numpy(weights / weights.mean((1, 2), keepdims=True))[:, None]


def read_alike(estimator: PoseEstimator, views: Views, drawn: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """KL divergence from the true keypoints, and the squared distance of tokens from the picture's in units of their
    variances."""
    side, _ = estimator.image_size
    tokens = estimator.tokens(views.cut(drawn, side, "border")).float()
    with torch.no_grad():
        expected = estimator.tokens(views.cut(batch["pixels"], side, "border")).float()
    variance = expected.var((0, 2, 3), keepdim=True) + 1e-3
    target = visible_heatmaps(views.locate(batch["keypoints"]), side // HEATMAP_STRIDE)
    return {
        "pose": position_divergence(estimator.vitpose.head(tokens).float(), target),
        "tokens": ((tokens - expected).square() / variance).mean(),
    }
