"""Stage `unet`: the text-to-image base, on latents and captions, with the pose guider beside it.

From captions alone two cores learn places and light first and figures last. So most samples also show the skeleton,
through the T2I-Adapter that the next stage goes on with; without it the base still is an ordinary text-to-image model.

The text encoder begins as CLIP's and is trained along, as in latent diffusion (arXiv:2112.10752, eq. 3): to tell
pictures apart, CLIP need not know which word of a caption colours which garment. Once `stage words` has taught what it
says, a base that goes on leaves it as it is.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import (
    body_weight,
    draw_dropped,
    estimated_keypoints,
    guided_features,
    masked_features,
    skeleton,
    skeleton_batch,
)
from bolid_training.data import People, cached_of, pixels, with_recoloured
from bolid_training.model.adapter import build_pose_guider
from bolid_training.model.attention import PlainAttnProcessor
from bolid_training.model.checkpoint import build_scheduler, build_unet, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.model.sampling import sample_latents, seeded_noise
from bolid_training.precision import autocast, fastest_layout, use_fastest_attention
from bolid_training.stages.clip import tokenize
from bolid_training.stages.vae import to_bytes

SNR_GAMMA = 5.0
DROP_BOTH, DROP_TEXT, DROP_POSE = 0.08, 0.04, 0.08
DETAILED = 0.5  # share of captions that are the picture's longest: half of all captions name no clothes
LATE = 0.7  # timesteps are 1000 u^LATE of a uniform u: half of them beyond 600, a tenth before 200
ERROR_TIMESTEPS = (250, 500, 750, 950)
BODY_WEIGHT = 6.0  # extra weight of a latent pixel that the person covers (a tenth of the picture; after StoryMaker)


class GuidedUNet(nn.Module):
    """The base, its text encoder and its pose guider: latents, captions and skeletons in, v out."""

    def __init__(self, config: AvatarConfig, text_encoder: CLIPTextModel):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = build_unet(config)
        self.unet.set_attn_processor(PlainAttnProcessor())
        self.pose_guider = build_pose_guider(self.unet)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.unet(
            batch["sample"],
            batch["timestep"],
            self.text_encoder(batch["input_ids"])[0],
            down_intrablock_additional_residuals=masked_features(
                self.pose_guider(batch["skeleton"]), batch["keep_pose"]
            ),
        ).sample


class UnetTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        people = with_recoloured(people)
        self.people, self.validation = people, validation
        self.vae = AutoencoderTiny.from_pretrained(runs / "vae" / "model").eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(runs / "clip" / "model")
        clip = CLIPModel.from_pretrained(runs / "clip" / "model")
        self.scheduler = build_scheduler(config)
        self.latents = cached_latents(self.vae, people, runs)
        self.skeletons = cached_skeletons(people, runs)
        self.body = cached_body_weights(people, runs)
        self.validation_latents = cached_latents(self.vae, validation, runs)
        self.validation_skeletons = np.array(cached_skeletons(validation, runs))
        text_encoder = clip_parts(clip)["text_encoder"]
        use_fastest_attention(text_encoder)
        text_encoder.requires_grad_(not (runs / "words" / "model").is_dir())
        self.module = GuidedUNet(config, text_encoder).to(memory_format=fastest_layout())

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        drop_text, drop_pose = draw_dropped(rng, size, DROP_BOTH, DROP_TEXT, DROP_POSE)
        captions = ["" if dropped else self._caption(i, rng) for i, dropped in zip(indices, drop_text, strict=True)]
        return noisy_batch(self.latents[indices], self.scheduler, rng) | {
            "input_ids": tokenize(self.tokenizer, captions),
            "skeleton": skeleton_batch(self.skeletons[indices]),
            "keep_pose": torch.from_numpy(~drop_pose),
            "body": torch.from_numpy(self.body[indices]),
        }

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        if rng.random() < DETAILED:
            return self.people.longest_captions[index]
        return self.people.captions[index][rng.integers(len(self.people.captions[index]))]

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """encoder_hidden_states [B, 77, C]."""
        with autocast():
            return self.module.text_encoder(tokenize(self.tokenizer, captions))[0].float()

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return diffusion_loss(module(batch), batch, 1 + BODY_WEIGHT * batch["body"])

    def validate(self, sheet: Path) -> dict[str, float]:
        """Rows of skeleton, picture with it, picture by the text alone."""
        count = min(16, len(self.validation))
        captions = [captions[0] for captions in self.validation.captions[:count]]
        drawn = self.validation_skeletons[:count]
        features = guided_features(self.module.pose_guider(skeleton_batch(drawn)))
        out = [self._sample(captions, pose_features) for pose_features in (features, None)]
        cells = np.stack([drawn, *out], 1).reshape(-1, *drawn.shape[1:])
        labels = [label for caption in captions for label in ("", caption, "text alone")]
        contact_sheet(cells, columns=12, labels=labels).save(sheet)
        return self._errors()

    def _errors(self) -> dict[str, float]:
        """Mean squared errors of v at fixed timesteps and noise: at late ones little but text and skeleton is known."""
        x0 = torch.from_numpy(self.validation_latents.astype(np.float32))
        noise = seeded_noise(tuple(x0.shape))
        conditions = {
            "input_ids": tokenize(self.tokenizer, self.validation.longest_captions),
            "skeleton": skeleton_batch(self.validation_skeletons),
            "keep_pose": torch.ones(len(x0)),
        }
        errors = {}
        for t in ERROR_TIMESTEPS:
            batch = conditions | noised(x0, noise, torch.full((len(x0),), t), self.scheduler)
            errors[f"mse_{t}"] = float(diffusion_loss(self.module(batch), batch)["mse"])
        return errors

    def _sample(self, captions: list[str], pose_features: list[Tensor] | None) -> np.ndarray:
        latents = sample_latents(
            self.module.unet,
            self.scheduler,
            seeded_noise((len(captions), *self.latents.shape[1:])),
            steps=20,
            guidance=3.0,
            encoder_hidden_states=self.encode([""] * len(captions) + captions),
            pose_features=pose_features,
        )
        return to_bytes(self.vae.decode(latents).sample)

    def save(self, folder: Path) -> None:
        self.module.unet.save_pretrained(folder)
        self.module.text_encoder.save_pretrained(folder / "text_encoder")
        self.module.pose_guider.save_pretrained(folder / "pose_guider")

    def load(self, folder: Path) -> None:
        self.module.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder).state_dict())
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.module.text_encoder.load_state_dict(text_encoder.state_dict())
        guider = T2IAdapter.from_pretrained(folder / "pose_guider")
        self.module.pose_guider.load_state_dict(guider.state_dict())


def cached_latents(vae: AutoencoderTiny, people: People, runs: Path) -> np.ndarray:
    """float16 [N, c, H/8, W/8]."""
    vae = vae.to(memory_format=torch.channels_last)

    def encode(piece: slice) -> np.ndarray:
        with torch.no_grad(), autocast():
            return vae.encode(pixels(people.images[piece])).latents.float().half().numpy()

    return cached_of(people, runs, "latents", encode, by=vae.encoder)


def draw_skeletons(people: People, piece: slice) -> np.ndarray:
    """uint8 [N, H, W, 3]: the skeletons as an estimator would find them."""
    first, side = piece.start or 0, people.images.shape[1]
    points = [estimated_keypoints(k, first + i) for i, k in enumerate(people.keypoints[piece])]
    return np.stack([skeleton(k, side) for k in points])


def cached_skeletons(people: People, runs: Path) -> np.ndarray:
    """uint8 [N, H, W, 3]."""
    return cached_of(people, runs, "skeletons", lambda piece: draw_skeletons(people, piece))


def cached_body_weights(people: People, runs: Path) -> np.ndarray:
    """float32 [N, 1, H/8, W/8]: the person's share of each latent pixel."""
    side = people.images.shape[1] // 8
    return cached_of(people, runs, "body", lambda piece: body_weight(people.parts[piece], side).numpy())


def noisy_batch(latents: np.ndarray, scheduler: DDIMScheduler, rng: np.random.Generator) -> dict[str, Tensor]:
    """x_t, t, the target v = alpha eps - sigma x0, and the weight of each sample of a batch.

    The weight is min-SNR's (arXiv:2303.09556) for v, softened so that pure noise (SNR 0) still counts.

    Timesteps are stratified over the batch (the same expectation as independent draws with less variance), and more of
    them are late: colours and layout are decided there, by the text and the person or by nothing.
    """
    x0 = torch.from_numpy(latents.astype(np.float32))
    size = len(x0)
    share = (np.arange(size) + rng.random(size)) / size
    timestep = torch.from_numpy((share**LATE * 1000).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    return noised(x0, noise, timestep, scheduler)


def noised(x0: Tensor, noise: Tensor, timestep: Tensor, scheduler: DDIMScheduler) -> dict[str, Tensor]:
    """What `noisy_batch` says, of given noise [B, c, h, w] and timesteps [B]."""
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
