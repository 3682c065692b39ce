"""Stage `lightning`: the guided model distilled to four steps without guidance, as a LoRA on the base's UNet.

Progressive distillation (arXiv:2202.00512) in one go: the teacher, which is the base with its adapter, draws 12 guided
DDIM steps from pure noise; the student learns to take three of them at once, and the guidance with them
(arXiv:2210.03142).
Trajectories are drawn once and kept, since one costs 24 runs of the UNet and teaches four of the student's steps.

A LoRA, as LCM-LoRA and SDXL-Lightning are published: the base stays what it was, any diffusers pipeline loads the file,
and an export fuses it. The adapter goes on from the teacher's: without guidance it has to speak up by itself.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import guided_features, skeleton_batch
from bolid_training.data import People, cached_chunks, digest
from bolid_training.lightning import Predict, ddim_table
from bolid_training.model.adapter import on_disk
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LORA_FILE, STEPS, read_lora
from bolid_training.model.sampling import sample_latents, sampling_states, seeded_noise
from bolid_training.precision import autocast
from bolid_training.stages.adapter import AdapterTask, ConditionedUNet, colour_error
from bolid_training.stages.unet import BODY_WEIGHT, diffusion_loss
from bolid_training.stages.vae import to_bytes

TEACHER_STEPS = 12
CHUNKS, CHUNK = 96, 64  # of trajectories
RANK = 32
ADAPTED = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out"),
)


class LightningUNet(ConditionedUNet):
    """The student: the frozen base, a LoRA on it, and an adapter. Conditions in, v out."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig):
        super().__init__(unet, config)
        self.colours.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ADAPTED)))
        # peft freezes all but its own, and the adapter's attention lives in the UNet
        self.adapter.requires_grad_(True)
        self.lora = nn.ModuleList(
            module for name, module in unet.named_modules() if name.endswith(("lora_A", "lora_B"))
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.predict(batch, self.attention(batch))

    def student(self, batch: dict[str, Tensor]) -> Predict:
        """What draws under the conditions of a batch, which are encoded once for all steps."""
        return self.predictor(batch | {"pose_features": self.pose_features(batch)}, self.attention(batch))

    def save(self, folder: Path) -> None:
        """The LoRA as diffusers' pipelines load it, and the adapter that goes with it."""
        self.adapter.save(folder / "adapter")
        lora = on_disk(get_peft_model_state_dict(self.frozen[0]))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=lora, weight_name=LORA_FILE)

    def load(self, folder: Path) -> None:
        self.adapter.load(folder / "adapter")
        set_peft_model_state_dict(self.frozen[0], read_lora(folder / LORA_FILE))


class LightningTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        self.pairs = AdapterTask(config, people, validation, runs)
        self.scheduler, self.config = self.pairs.scheduler, config
        self.teacher = self.pairs.module.eval().requires_grad_(False)
        self.teacher.adapter.load(runs / "adapter" / "model")
        drawn_by = digest(self.teacher.adapter, self.teacher.frozen[0], self.pairs.text_encoder)
        self.trajectories = cached_chunks(runs / "cache" / f"trajectories-{drawn_by}", self._draw, CHUNKS)
        self.module = LightningUNet(UNet2DConditionModel.from_pretrained(runs / "unet" / "model"), config)
        self.module.adapter.load_state_dict(self.teacher.adapter.state_dict())

    def _conditions(self, chunk: int) -> dict[str, Tensor]:
        """What the teacher was told when it drew the trajectories of a chunk."""
        return self.pairs.batch(np.random.default_rng([chunk, CHUNKS]), CHUNK)

    def _draw(self, chunk: int) -> np.ndarray:
        """float16 [CHUNK, STEPS + 1, c, h, w]: the teacher's latents where the student's steps begin and end."""
        conditions, shape = self._conditions(chunk), self.pairs.train_arrays["latents"].shape[1:]
        with torch.no_grad(), autocast():
            states = list(self._teach(conditions, seeded_noise((CHUNK, *shape), seed=chunk)))
        return torch.stack(states[:: TEACHER_STEPS // STEPS], 1).half().numpy()

    def _teach(self, conditions: dict[str, Tensor], noise: Tensor) -> Iterator[Tensor]:
        """The teacher's guided latents [B, c, h, w] before the first of its steps and after each."""
        nothing = self._nothing(conditions)
        told = [self.teacher.attention(c) for c in (nothing, conditions)]
        tokens = {name: torch.cat([t[name] for t in told]) for name in told[0] if name.endswith("tokens")}
        return sampling_states(
            self.teacher.frozen[0],
            self.scheduler,
            noise,
            steps=TEACHER_STEPS,
            guidance=self.config.guidance,
            encoder_hidden_states=torch.cat([c["encoder_hidden_states"] for c in (nothing, conditions)]),
            attention=told[1] | tokens,
            pose_features=guided_features(self.teacher.pose_features(conditions)),
        )

    def _nothing(self, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unconditional branch of as many samples."""
        null = {
            name: self.pairs.null.expand_as(conditions[name])
            for name in ("patch_tokens", "image_patch_tokens")
            if name in conditions
        }
        text = self.pairs.encode_text([""]).expand_as(conditions["encoder_hidden_states"])
        return conditions | null | {"encoder_hidden_states": text}

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """`size` <= CHUNK trajectories of one chunk, one step of each: the steps in equal shares."""
        chunk = int(rng.integers(CHUNKS))
        rows, step = torch.from_numpy(rng.permutation(CHUNK)[:size]), torch.arange(size) % STEPS
        states = torch.from_numpy(self.trajectories[chunk][rows.numpy()].astype(np.float32))
        each = torch.arange(size)
        told = {name: value[rows] for name, value in self._conditions(chunk).items()}
        return told | step_target(self.scheduler, states[each, step], states[each, step + 1], step)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return diffusion_loss(module(batch), batch, 1 + BODY_WEIGHT * batch["body"])

    def validate(self, sheet: Path) -> dict[str, float]:
        """Rows of reference, skeleton, the teacher's picture and the student's from the same noise."""
        pairs, arrays, people, count = self.pairs, self.pairs.validation_arrays, self.pairs.validation, 24
        indices = people.with_photos[np.linspace(0, len(people.with_photos) - 1, count).astype(int)]
        references = np.array([[people.siblings[i][0]] for i in indices])
        conditions = {
            "encoder_hidden_states": pairs.encode_text([people.captions_without_clothes[i][0] for i in indices]),
            "patch_tokens": pairs.patches(arrays["patches"], references, np.zeros(count, bool)),
            "parts": torch.arange(self.config.parts).expand(count, -1),
            "skeleton": skeleton_batch(arrays["skeletons"][indices]),
            "keep_pose": torch.ones(count),
        }
        noise = seeded_noise((count, *arrays["latents"].shape[1:]))
        with torch.no_grad(), autocast():
            *_, taught = self._teach(conditions, noise)
            latents = self._sample(conditions, noise)
        pictures = [to_bytes(pairs.vae.decode(x).sample) for x in (taught, latents)]
        rows = [people.images[references[:, 0]], arrays["skeletons"][indices], *pictures]
        contact_sheet(np.stack(rows, 1).reshape(-1, *pictures[0].shape[1:]), columns=8).save(sheet)
        errors = [colour_error(picture, people.images[indices], people.parts[indices]) for picture in pictures]
        distance = (latents - taught).square().mean() / taught.var()
        return {"colour_error": errors[1], "colour_error_teacher": errors[0], "latent_error": float(distance)}

    def _sample(self, conditions: dict[str, Tensor], noise: Tensor) -> Tensor:
        return sample_latents(
            self.module.frozen[0],
            self.scheduler,
            noise,
            steps=STEPS,
            guidance=1.0,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            attention=self.module.attention(conditions),
            pose_features=self.module.adapter.pose_guider(conditions["skeleton"]),
        )

    def save(self, folder: Path) -> None:
        self.module.save(folder)

    def load(self, folder: Path) -> None:
        self.module.load(folder)


def step_target(scheduler: DDIMScheduler, sample: Tensor, end: Tensor, step: Tensor) -> dict[str, Tensor]:
    """What makes one DDIM step of the student go from `sample` to `end` [B, c, h, w], where its `step` [B] begins.

    With x' = a' x0 + s' (x - a x0) / s: x0 = (x' - r x) / (a' - r a), r = s' / s, and v = (a x - x0) / s.
    """
    timesteps, starts, stops = (torch.stack(column) for column in zip(*ddim_table(scheduler, STEPS), strict=True))
    start, stop = starts[step][:, None, None, None], stops[step][:, None, None, None]
    ratio = ((1 - stop) / (1 - start)).sqrt()
    x0 = (end - ratio * sample) / (stop.sqrt() - ratio * start.sqrt())
    return {
        "sample": sample,
        "timestep": timesteps[step],
        "target": (start.sqrt() * sample - x0) / (1 - start).sqrt(),
        "weight": torch.ones(len(sample)),
    }
