"""The adapter stage by a recipe: BoLID with its losses on finished pictures, IP-Adapter, InstantID, PuLID.

All train on the pairs of `stages.adapter`, on one frozen base. A recipe says what the person is read from, which
networks are trained, and the losses' weights in each phase (`recipes.methods`).
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from bolid_sdk.images import crop_resize
from bolid_sdk.parts import centre_box
from bolid_training.data import People, cached_of, pixels, resize
from bolid_training.lightning import lightning_sample
from bolid_training.losses import (
    Recorded,
    cosine_loss,
    keypoint_loss,
    layout_alignment,
    recorded_queries,
    semantic_alignment,
)
from bolid_training.model.attention import share_body_id_attention
from bolid_training.model.config import AvatarConfig
from bolid_training.model.identity_net import identity_residuals
from bolid_training.model.lightning import LORA_FILE, fuse_lora
from bolid_training.model.pose_estimator import draw_heatmaps, load_pose_estimator
from bolid_training.model.sampling import seeded_noise
from bolid_training.precision import autocast, fastest_layout
from bolid_training.recipes.methods import Recipe, Weights, recipe_config, words_run
from bolid_training.stages.adapter import AdapterTask, ConditionedUNet
from bolid_training.stages.clip import clip_pixels, tokenize
from bolid_training.stages.clip_text import clip_folder
from bolid_training.stages.pose import position_divergence
from bolid_training.stages.reid import Reid
from bolid_training.stages.unet import BODY_WEIGHT, diffusion_loss

KNOWN = 0.15  # of 64 captions; chance is 0.016


class MethodUNet(ConditionedUNet):
    """The frozen UNet, perhaps its few-step sibling, and what the recipe trains on them. A batch in, named tensors out.

    `output` [B, c, h, w] and `colours` [B, 5, 3]; with `branch_noise` in the batch also finished `latents` of its first
    samples, and, if the alignment has weight, what was recorded of the attention `with_id` and `text_only`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: AvatarConfig,
        recipe: Recipe,
        scheduler: DDIMScheduler,
        fast: UNet2DConditionModel | None = None,
    ):
        super().__init__(unet, config)
        self.recipe, self.scheduler, self.weights = recipe, scheduler, recipe.losses
        if self.adapter.pose_guider is not None:
            self.adapter.pose_guider.requires_grad_(recipe.pose_guider == "trained")
        self.colours.requires_grad_(any(phase.weights.colour for phase in recipe.phases))
        if fast is not None:
            share_body_id_attention(fast.requires_grad_(False), self.adapter.layers)
            fast.to(memory_format=fastest_layout())
        self.frozen = (self.frozen[0], fast or self.frozen[0])

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Recorded]:
        attention = self.attention(batch)
        out = {"output": self.predict(batch, attention)}
        if self.weights.colour:
            out["colours"] = self.read_colours(attention)
        if "branch_noise" in batch:
            out |= self.branch(batch, attention)
        return out

    def residuals(self, batch: dict[str, Tensor], attention: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """The guider's, and IdentityNet's."""
        guided = super().residuals(batch, attention)
        if self.adapter.identity_net is None or "identity_tokens" not in attention:
            return guided
        return guided | identity_residuals(
            self.adapter.identity_net,
            batch["sample"],
            batch["timestep"],
            attention["identity_tokens"],
            batch["skeleton"] * batch["keep_pose"][:, None, None, None],
        )

    def branch(self, batch: dict[str, Tensor], attention: dict[str, Tensor]) -> dict[str, Tensor | Recorded]:
        """The lightning branch on the first samples of the batch, by the few-step UNet if there is one."""
        count, options = len(batch["branch_noise"]), self.recipe.branch
        told = {name: batch[name][:count] for name in ("encoder_hidden_states", "skeleton", "keep_pose")}
        told["pose_features"] = self.pose_features(told)
        tokens = {name: v if name.endswith("scale") else v[:count] for name, v in attention.items()}
        sizes = {"steps": options.steps, "gradient_steps": options.gradient_steps}
        fast, noise = self.frozen[1], batch["branch_noise"]
        with recorded_queries(fast) as with_id:
            latents = lightning_sample(self.predictor(told, tokens, fast), self.scheduler, noise, **sizes)
        if not self.weights.alignment:
            return {"latents": latents}
        nobody = {name: value for name, value in tokens.items() if not name.startswith("identity")}
        with recorded_queries(fast) as text_only, torch.no_grad():
            lightning_sample(self.predictor(told, nobody, fast), self.scheduler, noise, **sizes)
        last = options.gradient_steps * len(self.adapter.layers)
        return {"latents": latents, "with_id": with_id.last(last), "text_only": text_only.last(last)}


class MethodTask(AdapterTask):
    """One recipe. Raises FileNotFoundError when its losses need a few-step UNet, or a network of `stage reid`, that is
    not there."""

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path, recipe: Recipe):
        self.recipe, self.drops, self.identity = recipe, recipe.drops, recipe.identity
        self.fast = few_step_unet(runs) if recipe.losses.branch and recipe.branch.distilled else None
        self.reid = Reid(runs) if recipe.losses.embedding else None
        self.views = "whole" if recipe.parts == 1 else "patches"
        self.begins_with = words_run(recipe) if recipe.words else None
        if self.begins_with and not (taught := runs / self.begins_with / "model").is_dir():
            raise FileNotFoundError(
                f"{taught} is missing, which this recipe begins with: run `bolid-train stage words "
                f"--recipe {recipe.name}` first, or take a recipe without (bolid_no_words)"
            )
        super().__init__(recipe_config(config, recipe), people, validation, runs)
        self.clip = CLIPModel.from_pretrained(clip_folder(runs)).eval().requires_grad_(False)
        self.pose_estimator = load_pose_estimator(runs / "pose" / "model").eval().requires_grad_(False)
        if self.reid is not None:
            self.persons = self.reid.of(self.people, runs)
        if any(phase.weights.clip for phase in recipe.phases):
            warn_of_strangers(self.retrieval())
        self.reach(0.0)

    def reach(self, share: float) -> None:
        """The phase after this share of the steps."""
        self.weights = self.module.weights = self.recipe.at(share)

    def build(self, unet: UNet2DConditionModel) -> MethodUNet:
        return MethodUNet(unet, self.config, self.recipe, self.scheduler, self.fast)

    def _arrays(self, people: People) -> dict[str, np.ndarray]:
        arrays = super()._arrays(people)
        if self.views == "whole":
            whole = lambda piece: self._whole(people.images[piece])  # noqa: E731
            arrays["whole"] = cached_of(people, self.runs, "whole", whole, by=self.image_encoder)
        return arrays

    def _whole(self, images: np.ndarray) -> np.ndarray:
        """float16 [N, 1, P, D]: patch tokens of whole pictures, as the runtime sees one without keypoints."""
        size, centre = self.config.vision_size, centre_box(images.shape[2] / images.shape[1])
        crops = [crop_resize(Image.fromarray(image), centre, size) for image in images]
        return self._encode(np.stack(crops))

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """In the recipe's share of the steps, for the lightning branch: noise, and what the picture has to show."""
        options = self.recipe.branch
        if not self.weights.branch or rng.random() >= options.share:
            return {}
        some = slice(options.samples)
        shape = (len(indices[some]), *self.train_arrays["latents"].shape[1:])
        extras = {
            "branch_noise": torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
            "keypoints": torch.from_numpy(self.people.keypoints[indices[some]]),
            "text_embeds": self.embed_text(captions[some]),
        }
        if self.weights.embedding:
            extras["person"] = torch.from_numpy(self.persons[chosen[some, 0]])
            extras["photo"] = torch.from_numpy(self.people.photos[indices[some]])
        return extras

    @torch.no_grad()
    def embed_text(self, captions: list[str]) -> Tensor:
        """CLIP's own embeddings [B, E]; the base's text encoder has moved away from them."""
        text = self.clip.text_model(input_ids=tokenize(self.tokenizer, captions)).pooler_output
        return self.clip.text_projection(text)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = module(batch)
        rec = diffusion_loss(out["output"], batch, 1 + BODY_WEIGHT * batch["body"])
        losses = {"rec": rec["loss"]}
        if "colours" in out:
            losses["colour"] = self.colour_loss(out["colours"], batch)
        if "latents" in out:
            losses |= self.branch_losses(out, batch)
        return {"loss": weighted(losses, self.weights), "mse": rec["mse"]} | losses

    @torch.no_grad()
    def retrieval(self, count: int = 64) -> float:
        """The share of `count` validation pictures whose own caption is nearest to them, in CLIP."""
        captions = [captions[0] for captions in self.validation.captions[:count]]
        images = self.embed_image(pixels(self.validation.images[:count]))
        cosines = F.normalize(images) @ F.normalize(self.embed_text(captions)).T
        return float((cosines.argmax(1) == torch.arange(len(captions))).float().mean())

    def branch_losses(self, out: dict[str, Tensor | Recorded], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses with weight on what the lightning branch has drawn; a condition that was dropped binds nobody."""
        count, weights, losses = len(out["latents"]), self.weights, {}
        keep = {name: batch[f"keep_{name}"][:count] for name in ("identity", "text", "pose")}
        with autocast():
            images = self.vae.decode(out["latents"]).sample.float()
        found, heatmaps = self._see(images)
        if weights.keypoints:
            losses["keypoints"] = keypoint_loss(found, batch["keypoints"], keep["pose"])
        if weights.heatmaps:
            losses["heatmaps"] = position_divergence(
                heatmaps, self._targets(batch["keypoints"], keep["pose"], heatmaps)
            )
        if weights.clip:
            losses["clip"] = cosine_loss(self.embed_image(images), batch["text_embeds"], keep["text"])
        if weights.embedding:
            person = self.reid(images, found.detach().numpy())
            losses["embedding"] = cosine_loss(person, batch["person"], keep["identity"] & batch["photo"])
        if weights.alignment:
            both = out["with_id"], out["text_only"]
            losses["semantic"] = semantic_alignment(*both, keep["identity"])
            losses["layout"] = layout_alignment(*both, keep["identity"])
        return losses

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints [B, 12, 3] and heatmaps of generated pictures, through the differentiable estimator."""
        return self.pose_estimator(resize(images, self.pose_estimator.image_size[0]))

    @staticmethod
    def _targets(keypoints: Tensor, keep: Tensor, heatmaps: Tensor) -> Tensor:
        """The heatmaps of the keypoints that are in the picture, of the samples that were shown a pose."""
        drawn = draw_heatmaps(keypoints[..., :2], *heatmaps.shape[-2:])
        return drawn * ((keypoints[..., 2] > 0) & keep[:, None])[..., None, None]

    def embed_image(self, images: Tensor) -> Tensor:
        """CLIP's embeddings [B, E] of pictures in [-1, 1], differentiable."""
        return self.image_encoder(pixel_values=self._clip_pixels(images)).image_embeds

    def _clip_pixels(self, images: Tensor) -> Tensor:
        return clip_pixels(images, self.config.vision_size, self.extractor)

    def draw(self, batch: dict[str, Tensor], skeletons: Tensor, steps: int = 20, guidance: float = 3.0) -> Tensor:
        count, attention = len(skeletons), self.module.attention(batch)
        told = batch | {
            "skeleton": torch.cat([torch.zeros_like(skeletons), skeletons]),
            "keep_pose": torch.arange(2 * count) >= count,
        }
        told["pose_features"] = self.module.pose_features(told)

        def guided(sample: Tensor, timestep: Tensor) -> Tensor:
            both = {"sample": torch.cat([sample] * 2), "timestep": torch.cat([timestep] * 2)}
            first, last = self.module.predict(told | both, attention).chunk(2)
            return first + guidance * (last - first)

        noise = seeded_noise((count, *self.train_arrays["latents"].shape[1:]))
        return lightning_sample(guided, self.scheduler, noise, steps=steps, gradient_steps=0)


def warn_of_strangers(retrieval: float) -> None:
    """L_CLIP teaches nothing when pictures and sentences have moved apart: the base trains its text encoder on, and an
    unpacked checkpoint has no other."""
    if retrieval < KNOWN:
        warnings.warn(
            f"CLIP finds {retrieval:.0%} of 64 captions by their pictures: L_CLIP would mislead. Run "
            "`bolid-train stage clip_text` first, or take a recipe without L_CLIP (bolid_no_clip)",
            stacklevel=2,
        )


def few_step_unet(runs: Path) -> UNet2DConditionModel:
    """The base with the LoRA of `stage lightning` fused into it. Raises FileNotFoundError."""
    file = runs / "lightning" / "model" / LORA_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing, which the lightning branch of this recipe draws with: run "
            "`bolid-train stage lightning` first, or let the base itself draw with --undistilled"
        )
    unet = UNet2DConditionModel.from_pretrained(runs / "unet" / "model")
    fuse_lora(unet, file)
    return unet


def weighted(losses: dict[str, Tensor], weights: Weights) -> Tensor:
    """The sum that is minimised (eq. 1)."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
