"""Stage `adapter`: the BoLID adapter on the frozen UNet.

L_rec (eq. 2 of the brief) on pairs: identity tokens come from one picture of a person, skeleton, text and noise from
another. So the adapter cannot copy; it has to carry over what stays when pose, place and style change.

What `stage words` has taught the identity branch stays as it is: noisy pairs take away more of it than they give
(docs/architecture.md). Without words, the identity tokens also have to tell the reference's colours, part by part, to a
layer that is not kept: a nearer target for the Resampler than the base's loss. What that brings is not measured yet.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from bolid_sdk.contracts import PARTS
from bolid_training.avatars.parts import Part
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import (
    draw_dropped,
    encode_patches,
    estimated_keypoints,
    guided_features,
    masked_features,
    null_patches,
    part_crops,
    place_only,
    shrink,
    skeleton_batch,
)
from bolid_training.data import People, cached_of, with_recoloured
from bolid_training.evaluate.metrics import clothes_colours, mean_colours
from bolid_training.lightning import Predict
from bolid_training.model.adapter import Adapter
from bolid_training.model.checkpoint import build_scheduler, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.model.sampling import sample_latents, seeded_noise
from bolid_training.precision import autocast, fastest_layout
from bolid_training.recipes.methods import Drops, IdentitySource
from bolid_training.stages.clip import tokenize
from bolid_training.stages.unet import (
    BODY_WEIGHT,
    cached_body_weights,
    cached_latents,
    cached_skeletons,
    diffusion_loss,
    noisy_batch,
)
from bolid_training.stages.vae import autoencoder_folder, to_bytes

NAME_CLOTHES = 0.3  # share of captions that may name clothes: what the text says, nobody looks up in the reference
IMAGE_PROMPT = 0.3  # share of steps with an image prompt; without one the branch is off, as at inference
TWO_REFERENCES = 0.2
COLOUR_WEIGHT = 1.0
COLOURED = ((Part.FACE,), (Part.HAIR, Part.HAT), (Part.UPPER,), (Part.LOWER,), (Part.SHOES,))


class ConditionedUNet(nn.Module):
    """The frozen UNet with a trainable adapter: conditions in, v and the reference's colours [B, 5, 3] out."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig):
        super().__init__()
        self.adapter = Adapter(unet.requires_grad_(False), config)
        self.colours = nn.Linear(config.identity_tokens * unet.config.cross_attention_dim, 3 * len(COLOURED))
        # in a tuple, so that the frozen UNet is neither saved with every checkpoint nor sent between processes
        self.frozen = (unet.to(memory_format=fastest_layout()),)

    def leave_identity(self) -> None:
        """The identity branch keeps what it has been taught."""
        for part in (self.adapter.identity_encoder, self.colours, *(layer.identity for layer in self.adapter.layers)):
            part.requires_grad_(False)

    def attention(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tokens and scales that body-ID attention takes."""
        ones = torch.ones(len(self.adapter.layers))
        identity_tokens = self.adapter.identity_encoder(batch["patch_tokens"], batch["parts"])
        attention = {"identity_tokens": identity_tokens, "identity_scale": ones}
        if "image_patch_tokens" in batch:
            image_tokens = self.adapter.image_projector(batch["image_patch_tokens"])
            attention |= {"image_tokens": image_tokens, "image_scale": ones}
        return attention

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        attention = self.attention(batch)
        return self.predict(batch, attention), self.read_colours(attention)

    def read_colours(self, attention: dict[str, Tensor]) -> Tensor:
        """The colours [B, 5, 3] that the identity tokens tell."""
        tokens = attention["identity_tokens"].flatten(1)
        # with a reference a view, those of the first, whose colours are asked for
        return self.colours(tokens[:, : self.colours.in_features]).unflatten(1, (len(COLOURED), 3))

    def predictor(
        self, told: dict[str, Tensor], attention: dict[str, Tensor], unet: UNet2DConditionModel | None = None
    ) -> Predict:
        """`predict` under the same conditions for all steps of a picture. `told` may hold their `pose_features`."""
        return lambda sample, timestep: self.predict(told | {"sample": sample, "timestep": timestep}, attention, unet)

    def predict(
        self, batch: dict[str, Tensor], attention: dict[str, Tensor], unet: UNet2DConditionModel | None = None
    ) -> Tensor:
        """v [B, c, h, w], by another `unet` of the same shape if one is given."""
        return (unet or self.frozen[0])(
            batch["sample"],
            batch["timestep"],
            batch["encoder_hidden_states"],
            cross_attention_kwargs=attention,
            **self.residuals(batch, attention),
        ).sample

    def residuals(self, batch: dict[str, Tensor], attention: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """What the UNet's call adds to its features."""
        features = batch["pose_features"] if "pose_features" in batch else self.pose_features(batch)
        # a list of its own, for the UNet pops from the one it is given
        return {} if features is None else {"down_intrablock_additional_residuals": list(features)}

    def pose_features(self, batch: dict[str, Tensor]) -> list[Tensor] | None:
        """What the guider says of the skeletons; None without one."""
        if self.adapter.pose_guider is None:
            return None
        return masked_features(self.adapter.pose_guider(batch["skeleton"]), batch["keep_pose"])


class AdapterTask:
    """L_rec and the colours, on pairs. What differs between methods is a recipe's: see `stages.method`."""

    drops = Drops()
    begins_with: str | None = "words"
    """The run whose adapter this one begins with, if it has been trained."""
    identity: IdentitySource = "words"
    """What teaches the identity branch, where the run that this one begins with has been trained."""
    shares: np.ndarray | None = None
    """How often each sample with photographs is drawn; equally often without."""
    views = "patches"
    """The array that holds what a person is read from."""
    pairs = True
    """Whether it trains on pairs, which are computed beforehand, of everybody also in other colours."""

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        people = with_recoloured(people) if self.pairs else people
        self.config, self.people, self.validation, self.runs = config, people, validation, runs
        self.vae = AutoencoderTiny.from_pretrained(autoencoder_folder(runs)).eval().requires_grad_(False)
        clip = CLIPModel.from_pretrained(runs / "clip" / "model")
        self.tokenizer = CLIPTokenizer.from_pretrained(runs / "clip" / "model")
        text_encoder = CLIPTextModel.from_pretrained(runs / "unet" / "model" / "text_encoder")
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.image_encoder = clip_parts(clip)["image_encoder"].eval().requires_grad_(False)
        self.extractor = CLIPImageProcessor.from_pretrained(runs / "clip" / "model")
        self.scheduler = build_scheduler(config)
        self.null = null_patches(self.image_encoder, config.vision_size)
        self.train_arrays = self._arrays(people) if self.pairs else {}
        self.validation_arrays = self._arrays(validation)
        unet = UNet2DConditionModel.from_pretrained(runs / "unet" / "model")
        self.module = self.build(unet).to(memory_format=fastest_layout())
        if self.module.adapter.pose_guider is not None:
            guider = T2IAdapter.from_pretrained(runs / "unet" / "model" / "pose_guider")
            self.module.adapter.pose_guider.load_state_dict(guider.state_dict())
        if self.begins_with and (taught := runs / self.begins_with / "model").is_dir():
            self.module.adapter.load(taught)
            if self.identity == "words":
                self.module.leave_identity()

    def build(self, unet: UNet2DConditionModel) -> ConditionedUNet:
        """The trained module around the frozen UNet."""
        return ConditionedUNet(unet, self.config)

    def _arrays(self, people: People) -> dict[str, np.ndarray]:
        """Latents, patch tokens of the part crops and of the place alone, skeletons, body weights: computed once."""
        points = np.stack([estimated_keypoints(k, i) for i, k in enumerate(people.keypoints)])
        size = self.config.vision_size

        def crops(piece: slice) -> np.ndarray:
            """Of photographs only: nothing else is a reference."""
            indices = np.arange(len(people))[piece]
            photos = people.photos[indices]
            cut = [part_crops(people.images[i], points[i], size) for i in indices[photos]]
            tokens = np.zeros((len(indices), PARTS, *self.null.shape), np.float16)
            if cut:
                tokens[photos] = self._encode(np.stack(cut))
            return tokens

        def places(piece: slice) -> np.ndarray:
            pairs = zip(people.images[piece], people.parts[piece], strict=True)
            return self._encode(np.stack([place_only(shrink(i, size), _nearest(p, size)) for i, p in pairs]))

        def colours(piece: slice) -> np.ndarray:
            return part_colours(people.images[piece], people.parts[piece])

        return {
            "latents": cached_latents(self.vae, people, self.runs),
            "patches": cached_of(people, self.runs, "straight", crops, by=self.image_encoder),
            "places": cached_of(people, self.runs, "places", places, by=self.image_encoder),
            "skeletons": cached_skeletons(people, self.runs),
            "body": cached_body_weights(people, self.runs),
            "colours": cached_of(people, self.runs, "colours", colours),
        }

    def _encode(self, crops: np.ndarray) -> np.ndarray:
        return encode_patches(self.image_encoder, self.extractor, crops).half().numpy()

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        arrays, people = self.train_arrays, self.people
        indices = rng.choice(people.with_photos, size, p=self.shares)
        drops = self.drops
        drop_identity, drop_text, drop_pose = draw_dropped(
            rng, size, drops.together, drops.identity, drops.text, drops.pose
        )
        captions = [self._caption(i, rng) for i in indices]
        captions = ["" if dropped else caption for caption, dropped in zip(captions, drop_text, strict=True)]
        references = 2 if rng.random() < TWO_REFERENCES else 1
        chosen = np.stack([rng.choice(people.siblings[i], references) for i in indices])
        batch = noisy_batch(arrays["latents"][indices], self.scheduler, rng) | {
            "index": torch.from_numpy(indices),
            "encoder_hidden_states": self.encode_text(captions),
            "patch_tokens": self.patches(arrays[self.views], chosen, drop_identity),
            "parts": torch.arange(self.config.parts).repeat(references).expand(size, -1),
            "skeleton": skeleton_batch(arrays["skeletons"][indices]),
            "keep_identity": torch.from_numpy(~drop_identity),
            "keep_text": torch.from_numpy(~drop_text),
            "keep_pose": torch.from_numpy(~drop_pose),
            "body": torch.from_numpy(arrays["body"][indices]),
            "colours": torch.from_numpy(arrays["colours"][chosen[:, 0]] * ~drop_identity[:, None, None]),
        }
        if rng.random() < IMAGE_PROMPT:
            places = torch.from_numpy(arrays["places"][indices].astype(np.float32))
            places[torch.from_numpy((drop_identity & drop_text) | (rng.random(size) < drops.image))] = self.null
            batch["image_patch_tokens"] = places
        return batch | self.extras(indices, chosen, captions, rng)

    def extras(
        self, indices: np.ndarray, chosen: np.ndarray, captions: list[str], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """What further losses need to know of the targets [B], their references [B, R] and captions."""
        return {}

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        captions = self.people.captions if rng.random() < NAME_CLOTHES else self.people.captions_without_clothes
        captions = captions[index]
        return captions[rng.integers(len(captions))]

    def patches(self, patches: np.ndarray, chosen: np.ndarray, dropped: np.ndarray) -> Tensor:
        """float32 [B, V, P, D]: the crops of the chosen references [B, R], or those of nobody."""
        tokens = torch.from_numpy(patches[chosen].astype(np.float32)).flatten(1, 2)
        tokens[torch.from_numpy(dropped)] = self.null
        return tokens

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        with autocast():
            return self.text_encoder(tokenize(self.tokenizer, captions))[0].float()

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output, colours = module(batch)
        losses = diffusion_loss(output, batch, 1 + BODY_WEIGHT * batch["body"])
        if not self.module.colours.weight.requires_grad:
            return {"loss": losses["loss"], "mse": losses["mse"]}
        colour = self.colour_loss(colours, batch)
        return {"loss": losses["loss"] + COLOUR_WEIGHT * colour, "mse": losses["mse"], "colour": colour}

    def colour_loss(self, colours: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the colours [B, 5, 3] that were seen in the reference."""
        target, seen = batch["colours"].split([3, 1], -1)
        return ((colours.float() - target).square() * seen).sum() / (3 * seen.sum()).clamp(min=1)

    def validate(self, sheet: Path) -> dict[str, float]:
        """Rows of reference, skeleton, target, generated: validation people that the adapter has not seen."""
        arrays, people, count = self.validation_arrays, self.validation, 24
        indices = people.with_photos[np.linspace(0, len(people.with_photos) - 1, count).astype(int)]
        references = np.array([[people.siblings[i][0]] for i in indices])
        batch = {
            "patch_tokens": torch.cat(
                [self.patches(arrays[self.views], references, np.full(count, nobody)) for nobody in (True, False)]
            ),
            "parts": torch.arange(self.config.parts).expand(2 * count, -1),
        }
        captions = [people.captions_without_clothes[i][0] for i in indices]
        batch["encoder_hidden_states"] = self.encode_text([""] * count + captions)
        latents = self.draw(batch, skeleton_batch(arrays["skeletons"][indices]))
        out = to_bytes(self.vae.decode(latents).sample)
        rows = [people.images[references[:, 0]], arrays["skeletons"][indices], people.images[indices], out]
        contact_sheet(np.stack(rows, 1).reshape(-1, *out.shape[1:]), columns=8).save(sheet)
        return {"colour_error": colour_error(out, people.images[indices], people.parts[indices])}

    def draw(self, batch: dict[str, Tensor], skeletons: Tensor, steps: int = 20, guidance: float = 3.0) -> Tensor:
        """Latents [B, c, h, w] with guidance; `batch` holds the unconditional half first, `skeletons` [B, 3, H, W]."""
        return sample_latents(
            self.module.frozen[0],
            self.scheduler,
            seeded_noise((len(skeletons), *self.validation_arrays["latents"].shape[1:])),
            steps=steps,
            guidance=guidance,
            encoder_hidden_states=batch["encoder_hidden_states"],
            attention=self.module.attention(batch),
            pose_features=guided_features(self.module.adapter.pose_guider(skeletons)),
        )

    def save(self, folder: Path) -> None:
        self.module.adapter.save(folder)

    def load(self, folder: Path) -> None:
        self.module.adapter.load(folder)


def part_colours(images: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """float32 [N, 5, 4]: mean colour of each of `COLOURED` in [0, 1], and 1 where there is enough of it to tell."""
    colours = np.stack([mean_colours(i, p, COLOURED) for i, p in zip(images, parts, strict=True)])
    seen = np.isfinite(colours[..., :1])
    return np.concatenate([np.nan_to_num(colours), seen], -1).astype(np.float32)


def colour_error(images: np.ndarray, truth: np.ndarray, parts: np.ndarray) -> float:
    """Mean distance (in [0, 1] RGB) of the mean colour of clothes between generated and true pictures.

    The parts are the true picture's: where the pose is followed the generated body covers them too.
    """
    found, expected = (
        np.stack([clothes_colours(i, p) for i, p in zip(pictures, parts, strict=True)]) for pictures in (images, truth)
    )
    return float(np.nanmean(np.linalg.norm(found - expected, axis=-1)))


def _nearest(parts: np.ndarray, size: int) -> np.ndarray:
    step = parts.shape[0] // size
    return parts[::step, ::step]
