"""Stage `clothes`: the few-step student's identity tokens learn anew what people wear.

At this size clothes are most of who somebody is, so their words (`stages.words`) are worth learning well. One
photograph of each person will do, of as many people as can be rendered, and for every batch they are dyed anew. The
other tokens have become the student's own in the stages before: they stay what its encoder said of the same crops, and
nobody stays nobody. All else is frozen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from bolid_sdk.contracts import KEYPOINTS
from bolid_training.avatars.description import TOLD, description
from bolid_training.avatars.recolour import draw_dyes, dyed, renamed
from bolid_training.conditions import encode_patches, estimated_keypoints, part_crops
from bolid_training.data import People
from bolid_training.model.config import AvatarConfig
from bolid_training.stages.lightning import LightningUNet
from bolid_training.stages.student import StudentTask
from bolid_training.stages.words import SpeakingUNet, phrase_of, squared_error, unexplained, word_states

CLOTHES = ("upper", "lower")
DYED = 0.75  # share of photographs in other colours
KEYPOINT_NOISE = (0.0, 0.006, 0.015)  # added to an estimator's, of the picture's side: one of these for each photograph
KEPT = 1.0  # what the other tokens count,
NOBODY = 0.25  # and nobody's beside them
SAMPLES = 500  # photographs of which the spread of words is measured


class SpeakingStudent(SpeakingUNet, LightningUNet):
    """The student, of which only the identity encoder learns and is run."""


class ClothesTask(StudentTask):
    follows = "guider"
    pairs = False

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        super().__init__(config, people, validation, runs)
        self.photos = np.flatnonzero(self.people.photos)
        some = self.photos[np.linspace(0, len(self.photos) - 1, SAMPLES).astype(int)]
        self.spread = self._told([self._person(self.people, index) for index in some]).var(0).mean(-1)
        self.held_out = np.flatnonzero(self.validation.photos)
        self.held_out_states = self._told([self._person(self.validation, index) for index in self.held_out])

    def build(self, unet: UNet2DConditionModel) -> SpeakingStudent:
        return SpeakingStudent(unet, self.config)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """Photographs as patch tokens, dyed and mirrored by chance, and what is said of who is in them; nobody last."""
        crops, persons = zip(*(self._photograph(index, rng) for index in rng.choice(self.photos, size)), strict=True)
        patches = encode_patches(self.image_encoder, self.extractor, np.stack(crops))
        nobody = self.null.expand(1, *patches.shape[1:])
        return {
            "patch_tokens": torch.cat([patches, nobody]),
            "parts": torch.arange(self.config.parts).expand(size + 1, -1),
            "states": self._told(persons),
        }

    def _photograph(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Mapping[str, Any]]:
        """Part crops [5, S, S, 3] and the person of the metadata."""
        image, person = self.people.images[index], self._person(self.people, index)
        if rng.random() < DYED:
            dyes = draw_dyes(rng)
            image, person = dyed(image, self.people.parts[index], dyes), renamed(person, dyes)
        keypoints = estimated_keypoints(self.people.keypoints[index], int(rng.integers(1 << 30)))
        keypoints[:, :2] += rng.normal(0, rng.choice(KEYPOINT_NOISE), (KEYPOINTS, 2))
        crops = part_crops(image, keypoints, self.config.vision_size)
        # the mirror image of a person's crops are the crops of a person in a mirror
        return crops[:, :, ::-1] if rng.random() < 0.5 else crops, person

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors as shares of the mean variance of words."""
        tokens = module(batch).float()
        with torch.no_grad():
            before = self.before.adapter.identity_encoder.learned_tokens(batch["patch_tokens"], batch["parts"])
        clothes = phrase_of(tokens) < len(CLOTHES)
        told = squared_error(tokens[:-1], batch["states"])
        moved = (tokens - before).square().mean(-1)
        losses = {
            "words": told[:, clothes].mean() / self.spread.mean(),
            "kept": moved[:-1, ~clothes].mean() / self.spread.mean(),
            "nobody": moved[-1].mean() / self.spread.mean(),
        }
        return {"loss": losses["words"] + KEPT * losses["kept"] + NOBODY * losses["nobody"]} | losses

    @torch.no_grad()
    def validate(self, sheet: Path) -> dict[str, float]:
        """Also what is not explained of the words of clothes, in all validation photographs."""
        somebody = np.zeros(len(self.held_out), bool)
        batch = {
            "patch_tokens": self.patches(self.validation_arrays["patches"], self.held_out[:, None], somebody),
            "parts": torch.arange(self.config.parts).expand(len(self.held_out), -1),
        }
        shares = unexplained(self.module(batch), self.held_out_states, self.spread).mean(0)
        by_word = {f"unexplained_{name}": float(shares[i :: len(TOLD)].mean()) for i, name in enumerate(CLOTHES)}
        return super().validate(sheet) | by_word

    def _told(self, persons: list[Mapping[str, Any]]) -> Tensor:
        """float32 [B, 6, C]."""
        return word_states(self.text_encoder, self.tokenizer, [description(person) for person in persons])

    @staticmethod
    def _person(people: People, index: int) -> Mapping[str, Any]:
        return people.metadata[index]["attributes"]["person"]
