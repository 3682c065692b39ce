"""Stage `words`: identity tokens learn the base's language before they are heard.

Cross-attention to identity tokens begins with the text's keys and values. So a token that is the text encoder's state
of "a red shirt" is painted as a red shirt from the first step, while L_rec alone has to find both the tokens and how to
read them. Token i is taught the i-th of six states in turn, each where the text encoder has read one phrase of the
person's description (`avatars.description`): mean squared error, from a photograph of the person. Nobody, whom guidance
asks for, is the empty prompt. No picture is drawn.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from bolid_training.avatars.description import TOLD, Phrase, description, place_of
from bolid_training.data import People, cached_of
from bolid_training.model.config import AvatarConfig
from bolid_training.recipes.methods import Recipe, recipe_config
from bolid_training.stages.adapter import AdapterTask, ConditionedUNet
from bolid_training.stages.clip import tokenize

NOBODY = 0.1  # share of samples without a person


class SpeakingUNet(ConditionedUNet):
    """The identity encoder learns, the rest of the adapter stays as it begins: a batch in, identity tokens out."""

    def __init__(self, unet: UNet2DConditionModel, config: AvatarConfig):
        super().__init__(unet, config)
        self.requires_grad_(False)
        self.adapter.identity_encoder.requires_grad_(True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.adapter.identity_encoder.learned_tokens(batch["patch_tokens"], batch["parts"])


class WordsTask(AdapterTask):
    """BoLID's identity encoder, or that of a recipe with another budget of tokens."""

    begins_with = None

    def __init__(
        self, config: AvatarConfig, people: People, validation: People, runs: Path, recipe: Recipe | None = None
    ):
        super().__init__(recipe_config(config, recipe) if recipe else config, people, validation, runs)
        # both end in a LayerNorm: with the text's, tokens are of the states' size from the start
        norm = self.text_encoder.final_layer_norm
        self.module.adapter.identity_encoder.resampler.norm_out.load_state_dict(norm.state_dict())
        states = cached_of(self.people, runs, "words", self._states, by=self.text_encoder)
        self.states = torch.from_numpy(np.array(states))
        self.photos = np.flatnonzero(self.people.photos)
        self.nothing = self.encode_text([""])[0, 1 : 1 + len(TOLD)]
        self.spread = self.states.var(0).mean(-1)

    def build(self, unet: UNet2DConditionModel) -> SpeakingUNet:
        return SpeakingUNet(unet, self.config)

    def _states(self, piece: slice) -> np.ndarray:
        return self._told(self.people.metadata[piece]).numpy()

    def _told(self, metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """float32 [B, 6, C]: what is said of the people of samples."""
        told = [description(entry["attributes"]["person"]) for entry in metadata]
        return word_states(self.text_encoder, self.tokenizer, told)

    @cached_property
    def _validation_photos(self) -> tuple[np.ndarray, Tensor]:
        """Indices [B] of the validation photographs, and what is said of who is in them."""
        photos = np.flatnonzero(self.validation.photos)
        return photos, self._told([self.validation.metadata[index] for index in photos])

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices, nobody = rng.choice(self.photos, size), rng.random(size) < NOBODY
        states = self.states[indices]
        states[torch.from_numpy(nobody)] = self.nothing
        return {
            "patch_tokens": self.patches(self.train_arrays["patches"], indices[:, None], nobody),
            "parts": torch.arange(self.config.parts).expand(size, -1),
            "states": states,
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The squared error as a share of the variance. Phrases are not made equal, though the states of shoes and hair
        differ a tenth as much as those of clothes: nearer to equal kept people no better (docs/architecture.md)."""
        return {"loss": squared_error(module(batch), batch["states"]).mean() / self.spread.mean()}

    @torch.no_grad()
    def validate(self, sheet: Path) -> dict[str, float]:
        """Also what is not explained of each phrase, in all validation photographs."""
        photos, states = self._validation_photos
        batch = {
            "patch_tokens": self.patches(
                self.validation_arrays["patches"], photos[:, None], np.zeros(len(photos), bool)
            ),
            "parts": torch.arange(self.config.parts).expand(len(photos), -1),
        }
        shares = unexplained(self.module(batch), states, self.spread).mean(0)
        by_phrase = {f"unexplained_{name}": float(shares[i :: len(TOLD)].mean()) for i, name in enumerate(TOLD)}
        return super().validate(sheet) | {"unexplained": float(shares.mean())} | by_phrase


def unexplained(tokens: Tensor, states: Tensor, spread: Tensor) -> Tensor:
    """The squared error of tokens [B, N, C] as a share [B, N] of the variance [6] of the phrase each is taught, whose
    states are [B, 6, C]: on average 1 for who says the same of everybody."""
    return squared_error(tokens, states) / spread[phrase_of(tokens)]


def squared_error(tokens: Tensor, states: Tensor) -> Tensor:
    """[B, N], of tokens [B, N, C] from those of the states [B, 6, C] that they are taught."""
    return (tokens.float() - states[:, phrase_of(tokens)]).square().mean(-1)


def phrase_of(tokens: Tensor) -> Tensor:
    """[N]: which of `TOLD` each of tokens [B, N, C] is taught: one after the other, in turn."""
    return torch.arange(tokens.shape[1]) % len(TOLD)


@torch.no_grad()
def word_states(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, told: Sequence[list[Phrase]]) -> Tensor:
    """float32 [B, 6, C]: the hidden states at the end of the phrase that tells each of `TOLD`."""
    sentences = [" ".join(words for _, words in phrases) for phrases in told]
    states = text_encoder(tokenize(tokenizer, sentences))[0].float()
    ends = torch.tensor([_ends(tokenizer, phrases) for phrases in told])
    return states.gather(1, ends[..., None].expand(-1, -1, states.shape[-1]))


def _ends(tokenizer: CLIPTokenizer, phrases: list[Phrase]) -> list[int]:
    """For each of `TOLD` the index of its phrase's last token."""
    tokens = tokenizer([words for _, words in phrases])["input_ids"]
    lengths = [len(phrase) - 2 for phrase in tokens]  # without the two special tokens
    ends = np.cumsum(lengths)  # the sentence begins with a special token, too
    return [int(ends[index]) for index in place_of(phrases).values()]
