"""Stage `clip`: tokenizer and CLIP (arXiv:2103.00020), on pictures and their captions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from bolid_training.data import People, pixels, resize
from bolid_training.model.checkpoint import MAX_TOKENS, build_clip, build_feature_extractor, train_tokenizer
from bolid_training.model.config import AvatarConfig
from bolid_training.precision import fastest_precision

MIN_CROP = 0.6


class ClipTask:
    def __init__(self, config: AvatarConfig, people: People, validation: People):
        self.config, self.people, self.held_out = config, people, validation
        texts = [caption for captions in people.captions for caption in captions]
        self.tokenizer = train_tokenizer(texts, config.vocabulary)
        self.module = build_clip(config, self.tokenizer)
        if fastest_precision() == "bf16":
            # on CPUs the backward of bfloat16 scaled_dot_product_attention is slower than that of its parts
            self.module.set_attn_implementation("eager")
        self.feature_extractor = build_feature_extractor(config)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = rng.integers(len(self.people), size=size)
        captions = [self.people.captions[i][rng.integers(len(self.people.captions[i]))] for i in indices]
        images = random_crop(pixels(self.people.images[indices]), rng)
        return {"pixel_values": self.normalise(images), "input_ids": without_padding(self.tokenizer, captions)}

    def normalise(self, images: Tensor) -> Tensor:
        """[-1, 1] pictures of any size -> the image encoder's input."""
        return clip_pixels(images, self.config.vision_size, self.feature_extractor)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = module(**batch).logits_per_image.float()
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": loss, "top1": (logits.argmax(1) == target).float().mean()}

    def validate(self, sheet: Path) -> dict[str, float]:
        """Retrieval of the full caption among 200 of other validation pictures."""
        count = min(200, len(self.held_out))
        images = self.normalise(pixels(self.held_out.images[:count]))
        texts = tokenize(self.tokenizer, [captions[0] for captions in self.held_out.captions[:count]])
        logits = self.module(pixel_values=images, input_ids=texts).logits_per_image
        rank = (logits > logits.diag()[:, None]).sum(1)
        return {"top1": float((rank < 1).float().mean()), "top5": float((rank < 5).float().mean())}

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.module.load_state_dict(CLIPModel.from_pretrained(folder).state_dict())


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


def random_crop(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One random square of at least `MIN_CROP` of the side, the same for the batch: part crops are seen later."""
    if rng.random() < 0.5:
        return images
    side = images.shape[-1]
    size = int(side * rng.uniform(MIN_CROP, 1))
    top, left = rng.integers(side - size + 1, size=2)
    return images[..., top : top + size, left : left + size]
