"""Stage `clip`: tokenizer and CLIP (arXiv:2103.00020), on pictures and their captions.

The adapter reads a person from this encoder's patch tokens, and a contrast of whole pictures with sentences need not
leave in them what a patch looks like. So a layer that is not kept reads each patch's mean colour and its share of each
part of the body from them, in whole pictures and in close-ups like the adapter's crops.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from bolid_training.conditions import BODY, body_masks
from bolid_training.data import People, pixels, resize
from bolid_training.model.checkpoint import MAX_TOKENS, build_clip, build_feature_extractor, train_tokenizer
from bolid_training.model.config import AvatarConfig
from bolid_training.precision import use_fastest_attention

MIN_CROP = 0.6
CLOSE_UP = 0.2  # smallest side of a close-up: a head's
PATCH_WEIGHT = 4.0


class PatchReadingCLIP(nn.Module):
    """A CLIP and a layer beside it: logits of pictures and captions, and what the patch tokens say of each patch.

    The tokens are `hidden_states[-2]`, which is what the adapter gets.
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.patches = nn.Linear(clip.config.vision_config.hidden_size, 3 + len(BODY))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, B], and predictions [2B, 3 + 6, h, w] of whole pictures and close-ups."""
        pixels = torch.cat([batch["pixel_values"], batch["close_up"]])
        vision = self.clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        images = self.clip.visual_projection(vision.pooler_output[: len(batch["pixel_values"])])
        texts = self.clip.text_projection(self.clip.text_model(input_ids=batch["input_ids"]).pooler_output)
        logits = self.clip.logit_scale.exp() * F.normalize(images.float()) @ F.normalize(texts.float()).T
        said = self.patches(vision.hidden_states[-2][:, 1:]).transpose(1, 2)
        side = round(said.shape[-1] ** 0.5)
        return logits, said.unflatten(-1, (side, side))


class ClipTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People):
        self.config, self.people, self.held_out = config, people, validation
        texts = [caption for captions in people.captions for caption in captions]
        self.tokenizer = train_tokenizer(texts, config.vocabulary)
        self.clip = build_clip(config, self.tokenizer)
        self.module = PatchReadingCLIP(self.clip)
        use_fastest_attention(self.clip)
        self.feature_extractor = build_feature_extractor(config)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        captions = self.captions(indices, rng)
        seen = torch.cat([pixels(self.people.images[indices]), body_masks(self.people.parts[indices])], 1)
        crops = [random_crop(seen, rng, MIN_CROP), random_crop(seen, rng, CLOSE_UP)]
        whole, close_up = (self.normalise(crop[:, :3]) for crop in crops)
        return {
            "pixel_values": whole,
            "close_up": close_up,
            "input_ids": without_padding(self.tokenizer, captions),
            "patches": torch.cat([self._patches(crop) for crop in crops]),
        }

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One of each picture's captions."""
        return [self.people.captions[i][rng.integers(len(self.people.captions[i]))] for i in indices]

    def _patches(self, seen: Tensor) -> Tensor:
        """[B, 3 + 6, H, W] -> mean colour in [0, 1] and each part's share of each patch, [B, 3 + 6, h, w]."""
        means = resize(seen, self.config.vision_size // self.config.vision_patch)
        return torch.cat([means[:, :3] / 2 + 0.5, means[:, 3:]], 1)

    def normalise(self, images: Tensor) -> Tensor:
        """[-1, 1] pictures of any size -> the image encoder's input."""
        return clip_pixels(images, self.config.vision_size, self.feature_extractor)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, said = module(batch)
        contrast, top1 = contrastive_loss(logits)
        patch = F.mse_loss(said.float(), batch["patches"])
        return {"loss": contrast + PATCH_WEIGHT * patch, "contrast": contrast, "patch": patch, "top1": top1}

    def validate(self, sheet: Path) -> dict[str, float]:
        """Retrieval of the full caption among 200 of other validation pictures."""
        count = min(200, len(self.held_out))
        images = self.normalise(pixels(self.held_out.images[:count]))
        texts = tokenize(self.tokenizer, [captions[0] for captions in self.held_out.captions[:count]])
        logits = self.clip(pixel_values=images, input_ids=texts).logits_per_image
        rank = (logits > logits.diag()[:, None]).sum(1)
        return {"top1": float((rank < 1).float().mean()), "top5": float((rank < 5).float().mean())}

    def save(self, folder: Path) -> None:
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.clip.load_state_dict(CLIPModel.from_pretrained(folder).state_dict())


def contrastive_loss(logits: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss of the logits [B, B] of pictures and their captions, and the share of pictures that find theirs."""
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """int64 [B, 77], padded and cut."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids


def without_padding(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """int64 [B, longest]. The text tower is causal and pools at the end token: padding only costs time."""
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids


def clip_pixels(images: Tensor, size: int, feature_extractor: object) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, 3, size, size] with the extractor's mean and standard deviation."""
    mean = torch.tensor(feature_extractor.image_mean)[:, None, None]
    std = torch.tensor(feature_extractor.image_std)[:, None, None]
    return (resize(images, size) / 2 + 0.5 - mean) / std


def random_crop(images: Tensor, rng: np.random.Generator, smallest: float) -> Tensor:
    """One random square of at least `smallest` of the side, the same for the batch; every other time all of it."""
    if rng.random() < 0.5:
        return images
    side = images.shape[-1]
    size = int(side * rng.uniform(smallest, 1))
    top, left = rng.integers(side - size + 1, size=2)
    return images[..., top : top + size, left : left + size]
