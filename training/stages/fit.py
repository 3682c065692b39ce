"""`bolid-train fit`: the BoLID adapter on any Stable Diffusion 1.5 or SDXL, with a user's pictures.

As in stage `adapter`: identity tokens come from one picture of a person; skeleton, text and noise from another. Base
and encoders are frozen; what they say of the pictures is computed beforehand, so only UNet and adapter are in memory.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from bolid_sdk.conditioning import SizeConditioning
from bolid_sdk.contracts import ADDED_CONDITIONS
from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import draw_dropped, guided_features, masked_features, skeleton_batch
from bolid_training.data import process_state
from bolid_training.model.adapter import Adapter
from bolid_training.model.base import Base
from bolid_training.model.config import AvatarConfig
from bolid_training.model.sampling import sample_latents, seeded_noise
from bolid_training.stages.vae import to_bytes
from bolid_training.userdata.arrays import Arrays

SNR_GAMMA = 5.0
BODY_WEIGHT = 2.0  # extra weight of a latent pixel of the person; a box about it holds some background, too
SAMPLING_STEPS = 20
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Shares of samples that lose a condition (IP-Adapter's 0.05 each), of steps with an image prompt and with two
    references, and of what is kept in memory of a step."""

    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    drop_all: float = 0.05
    drop_identity: float = 0.05
    drop_text: float = 0.05
    drop_pose: float = 0.1
    drop_image: float = 0.05
    image_prompt: float = 0.3
    two_references: float = 0.2

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen UNet's weights."""
        return PRECISIONS[self.mixed_precision]


class FitModule(nn.Module):
    """The adapter in float32 on a frozen UNet in the precision of the products; what it gives is float32."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig, *, gradient_checkpointing: bool = False):
        super().__init__()
        self.dtype = unet.dtype
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.adapter = Adapter(unet, config)
        # in a tuple, so that the frozen UNet is neither saved with every checkpoint nor sent between processes
        self.frozen = (unet,)

    def attention(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tokens and scales that body-ID attention takes. A Resampler's products overflow float16."""
        patches = batch["patch_tokens"]
        ones = torch.ones(len(self.adapter.layers), device=patches.device)
        with torch.autocast(patches.device.type, enabled=False):
            told = {"identity_tokens": self.adapter.identity_encoder(patches, batch["parts"]), "identity_scale": ones}
            if "image_patch_tokens" in batch:
                image_tokens = self.adapter.image_projector(batch["image_patch_tokens"])
                told |= {"image_tokens": image_tokens, "image_scale": ones}
        return told

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, c, h, w]: noise or v, as the base was trained to predict."""
        features = masked_features(self.adapter.pose_guider(batch["skeleton"]), batch["keep_pose"])
        output = self.frozen[0](
            batch["sample"],
            batch["timestep"],
            batch["encoder_hidden_states"],
            cross_attention_kwargs=self.attention(batch),
            added_cond_kwargs=added_conditions(batch),
            down_intrablock_additional_residuals=features,
        ).sample
        return output.float()


class FitTask:
    """`arrays` are the training pictures; the first of them are looked at again in the sheets."""

    def __init__(self, base: Base, arrays: Arrays, options: FitOptions):
        self.base, self.arrays, self.options = base, arrays, options
        unet = base.unet(options.dtype)
        self.module = FitModule(unet, base.config, gradient_checkpointing=options.gradient_checkpointing)
        if base.adapter:
            self.load(base.adapter)
        device = process_state().device
        self.module.frozen[0].to(device)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        arrays, people, options = self.arrays, self.arrays.people, self.options
        indices = rng.choice(people.with_photos, size)
        no_identity, no_text, no_pose = draw_dropped(
            rng, size, options.drop_all, options.drop_identity, options.drop_text, options.drop_pose
        )
        references = 2 if rng.random() < options.two_references else 1
        chosen = np.stack([rng.choice(people.siblings[i], references) for i in indices])
        captions = [rng.choice(arrays.captions[i]) for i in indices]
        batch = noisy_latents(arrays.latents[indices], self.base.scheduler, rng) | {
            **self.texts(np.where(no_text, 0, captions)),
            **self.sizes(arrays.time_ids[indices]),
            "patch_tokens": self.patches(chosen, no_identity),
            "parts": torch.arange(self.base.config.parts).repeat(references).expand(size, -1),
            "skeleton": self.skeletons(indices),
            "keep_pose": torch.from_numpy(~no_pose),
            "where": loss_weights(_floats(arrays.weights[indices])),
        }
        if rng.random() < options.image_prompt:
            places = _floats(arrays.places[indices])
            places[torch.from_numpy((no_identity & no_text) | (rng.random(size) < options.drop_image))] = arrays.null
            batch["image_patch_tokens"] = places
        return send_to_device(batch, process_state().device)

    def texts(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """`encoder_hidden_states` [B, 77, C], and `text_embeds` [B, P] of SDXL, of the captions of these numbers."""
        records = self.arrays.texts[numbers]
        return {name: _floats(records[name]) for name in records.dtype.names}

    def sizes(self, time_ids: np.ndarray) -> dict[str, Tensor]:
        """`time_ids` [B, 6], if the base is told of sizes."""
        return {"time_ids": _floats(time_ids)} if "time_ids" in self.base.family.added else {}

    def patches(self, chosen: np.ndarray, dropped: np.ndarray) -> Tensor:
        """float32 [B, V, P, D]: the crops of the chosen references [B, R], or those of nobody."""
        tokens = _floats(self.arrays.patches[chosen]).flatten(1, 2)
        tokens[torch.from_numpy(dropped)] = self.arrays.null
        return tokens

    def skeletons(self, indices: np.ndarray) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1]."""
        size, keypoints = self.base.size, self.arrays.people.keypoints
        return skeleton_batch(np.stack([draw_skeleton(keypoints[i], size, size) for i in indices])).contiguous()

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """L_rec, a mean over samples whatever the batch's size: so batches may be split and accumulated."""
        error = (module(batch) - batch["target"]).square()
        weighted = (error * batch["where"]).mean((1, 2, 3)) * batch["weight"]
        return {"loss": weighted.mean(), "mse": error.mean()}

    def validate(self, sheet: Path) -> dict[str, float]:
        """Rows of reference, skeleton, target and generated; the error at fixed noise. Of training pictures: a handful
        of a user's own are too few to keep some apart, so this shows what has been learned, not how it generalises."""
        people, device = self.arrays.people, process_state().device
        indices = people.with_photos[np.linspace(0, len(people.with_photos) - 1, 4).astype(int)]
        references = np.array([[people.siblings[i][0]] for i in indices])
        drawn = self._draw(indices, references, device)
        skeletons = (self.skeletons(indices).permute(0, 2, 3, 1) * 255).byte().numpy()
        rows = [people.images[references[:, 0]], skeletons, people.images[indices], drawn]
        contact_sheet(np.stack(rows, 1).reshape(-1, *drawn.shape[1:]), columns=4).save(sheet)
        return {"mse": self._fixed_error()}

    def _fixed_error(self) -> float:
        errors = []
        for seed in range(4):
            batch = self.batch(np.random.default_rng(seed), 2)
            with self._autocast():
                errors.append(float(self.losses(self.module, batch)["mse"]))
        return float(np.mean(errors))

    def _draw(self, indices: np.ndarray, references: np.ndarray, device: torch.device) -> np.ndarray:
        """uint8 [B, H, W, 3]."""
        count, arrays = len(indices), self.arrays
        conditions = {
            "patch_tokens": torch.cat([self.patches(references, np.full(count, nobody)) for nobody in (True, False)]),
            "parts": torch.arange(self.base.config.parts).expand(2 * count, -1),
        }
        told = send_to_device(self._told(indices), device)
        with self._autocast():
            latents = sample_latents(
                partial(self.module.frozen[0], added_cond_kwargs=added_conditions(told)),
                DDIMScheduler.from_config(self.base.scheduler.config),
                seeded_noise((count, *arrays.latents[0].shape)).to(device),
                steps=SAMPLING_STEPS,
                guidance=self.base.config.guidance,
                encoder_hidden_states=told["encoder_hidden_states"],
                attention=self.module.attention(send_to_device(conditions, device)),
                pose_features=guided_features(self.module.adapter.pose_guider(self.skeletons(indices).to(device))),
            )
        return self._decode(latents.float().cpu())

    def _told(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Texts and sizes [2B, ...] for guidance, no text first; sizes are what the runtime tells by default."""
        count, side = len(indices), self.base.size
        size = SizeConditioning(original_size=(side, side), target_size=(side, side))
        captions = [self.arrays.captions[i][0] for i in indices]
        return self.texts(np.array([0] * count + captions)) | self.sizes(np.tile(size.time_ids(), (2 * count, 1)))

    def _decode(self, latents: Tensor) -> np.ndarray:
        """By a decoder that is in memory for as long as this takes."""
        vae = self.base.vae()
        unscaled = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        return np.concatenate([to_bytes(vae.decode(each[None]).sample) for each in unscaled])

    def _autocast(self) -> torch.autocast:
        dtype, device = self.module.dtype, process_state().device
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def save(self, folder: Path) -> None:
        self.module.adapter.save(folder)

    def load(self, folder: Path) -> None:
        self.module.adapter.load(folder)


def added_conditions(batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What SDXL's UNet adds to its timestep; None for a UNet that is told nothing beside the text."""
    return {name: batch[name] for name in ADDED_CONDITIONS if name in batch} or None


def noisy_latents(latents: np.ndarray, scheduler: DDIMScheduler, rng: np.random.Generator) -> dict[str, Tensor]:
    """x_t, t, what the base predicts of them, and each sample's min-SNR weight (arXiv:2303.09556), for noise or v.

    Timesteps are stratified over the batch: the same expectation as independent draws, less variance.
    """
    x0 = _floats(latents)
    share = (np.arange(len(x0)) + rng.random(len(x0))) / len(x0)
    timestep = torch.from_numpy((share * scheduler.config.num_train_timesteps).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    alphas = scheduler.alphas_cumprod[timestep]
    snr = alphas / (1 - alphas)
    if scheduler.config.prediction_type == "epsilon":
        target, weight = noise, snr.clamp(max=SNR_GAMMA) / snr
    else:
        target, weight = scheduler.get_velocity(x0, noise, timestep), (snr + 1).clamp(max=SNR_GAMMA + 1) / (snr + 1)
    sample = scheduler.add_noise(x0, noise, timestep)
    return {"sample": sample, "timestep": timestep, "target": target, "weight": weight}


def loss_weights(coverage: Tensor) -> Tensor:
    """[B, 1, h, w] of mean 1 a sample: more where the person is, nothing where there is no picture; of [B, 2, h, w]."""
    body, inside = coverage.split(1, 1)
    weight = inside * (1 + BODY_WEIGHT * body)
    return weight / weight.mean((1, 2, 3), keepdim=True)


def _floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
