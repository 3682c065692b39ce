"""Stage `judge_clip`: a second CLIP, of other sizes and another seed, on half of the people.

The CLIP that conditions has learned from everybody's pictures, this one from those of people with odd numbers; neither
has seen validation or test people.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from bolid_training.data import People, pixels
from bolid_training.degrade import soften
from bolid_training.judges.config import JudgeConfig
from bolid_training.stages.clip import ClipTask, clip_pixels, tokenize

BATCH = 64


class ClipJudgeTask(ClipTask):
    """The stage `clip` with its own sizes, words and people, on softened pictures."""

    def __init__(self, config: JudgeConfig, people: People, validation: People):
        super().__init__(config.clip, odd_people(people), validation)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        batch = super().batch(rng, size)
        if rng.random() < 0.5:
            batch["pixel_values"] = soften(batch["pixel_values"], rng)
        return batch


def odd_people(people: People) -> People:
    """The half with odd identities."""
    kept = np.flatnonzero(people.identity % 2)
    arrays = {name: getattr(people, name)[kept] for name in ("images", "parts", "keypoints", "identity")}
    return People(**arrays, metadata=[people.metadata[index] for index in kept])


@dataclass(frozen=True, kw_only=True)
class ClipJudge:
    """A trained CLIP and how it reads."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    feature_extractor: CLIPImageProcessor

    @torch.no_grad()
    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit embeddings [B, D] of pictures [B, H, W, 3]."""
        size = self.model.config.vision_config.image_size
        inputs = clip_pixels(pixels(images), size, self.feature_extractor)
        return np.concatenate([_unit(self.model.get_image_features(chunk)) for chunk in inputs.split(BATCH)])

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit embeddings [B, D] of texts."""
        return _unit(self.model.get_text_features(tokenize(self.tokenizer, texts)))


def _unit(features: object) -> NDArray[np.float32]:
    """transformers returns the projected features as a tensor before version 5, and as `pooler_output` since."""
    return F.normalize(getattr(features, "pooler_output", features)).numpy()
