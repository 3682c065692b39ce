"""Stage `clip_text`: a text tower for CLIP's frozen image tower (LiT, arXiv:2111.07991), for L_CLIP.

The base trains CLIP's text encoder on until it no longer knows pictures, and a checkpoint keeps no other. What is
conditioned on the image tower must not change, so only the text's side is brought back to it: minutes, since the
pictures' embeddings are computed once.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from bolid_training.data import People, cached_of, pixels, with_recoloured
from bolid_training.model.checkpoint import build_feature_extractor
from bolid_training.model.config import AvatarConfig
from bolid_training.precision import autocast, use_fastest_attention
from bolid_training.stages.clip import ClipTask, contrastive_loss, without_padding


class TextTower(nn.Module):
    """The text's side of a CLIP: logits [B, B] of given image embeddings [B, E] and captions."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.text_model, self.text_projection = clip.text_model, clip.text_projection
        self.logit_scale = clip.logit_scale

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        texts = self.text_projection(self.text_model(input_ids=batch["input_ids"]).pooler_output)
        return self.logit_scale.exp() * F.normalize(batch["image_embeds"]) @ F.normalize(texts.float()).T


class ClipTextTask(ClipTask):
    """Begins with `runs/clip/model`, whose image tower it keeps, and with people in other colours beside the data's."""

    def __init__(self, config: AvatarConfig, people: People, validation: People, runs: Path):
        self.config, self.people, self.held_out = config, with_recoloured(people), validation
        self.tokenizer = CLIPTokenizer.from_pretrained(runs / "clip" / "model")
        self.clip = CLIPModel.from_pretrained(runs / "clip" / "model")
        self.clip.vision_model.requires_grad_(False)
        self.clip.visual_projection.requires_grad_(False)
        self.feature_extractor = build_feature_extractor(config)
        use_fastest_attention(self.clip)
        embed = lambda piece: self.embed(self.people.images[piece])  # noqa: E731
        self.image_embeds = cached_of(self.people, runs, "image-embeds", embed, by=self.clip)
        self.module = TextTower(self.clip)

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, E]."""
        with autocast():
            seen = self.clip.vision_model(pixel_values=self.normalise(pixels(images))).pooler_output
            return self.clip.visual_projection(seen).float().numpy()

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        return {
            "image_embeds": torch.from_numpy(self.image_embeds[indices]),
            "input_ids": without_padding(self.tokenizer, self.captions(indices, rng)),
        }

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, top1 = contrastive_loss(module(batch))
        return {"loss": loss, "top1": top1}


def clip_folder(runs: Path) -> Path:
    """The CLIP that L_CLIP asks: with a text tower of its own if `clip_text` has been trained."""
    aligned = runs / "clip_text" / "model"
    return aligned if aligned.is_dir() else runs / "clip" / "model"
