"""Stage `judge_identity`: who a picture shows, by metric learning on pairs of pictures of one person in one outfit.

A ResNet sees the person's box and gives an embedding; the pairs of a batch are each other's negatives (InfoNCE,
arXiv:1807.03748, both ways as in CLIP). Two pictures of a person differ in pose, place, light and often in style, so
these cannot be what the embedding says.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from bolid_sdk.parts import person_box
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import estimated_keypoints
from bolid_training.data import People, pixels
from bolid_training.judges.config import JudgeConfig
from bolid_training.judges.degrade import degrade
from bolid_training.judges.resnet import resnet_config, settle
from bolid_training.stages.pose import draw_views
from bolid_training.stages.vae import to_bytes
from bolid_training.views import Views, upright

TEMPERATURE = 0.1
BATCH = 64
GALLERY = 100


def build_identity_judge(config: JudgeConfig) -> ResNetForImageClassification:
    """transformers' classifier, whose last layer gives the embedding instead of classes."""
    sizes = {"num_labels": config.identity_embedding, "image_size": config.identity_size}
    return ResNetForImageClassification(resnet_config(config.identity_widths, config.identity_depths, **sizes))


@torch.no_grad()
def embed(judge: ResNetForImageClassification, images: NDArray[np.uint8], keypoints: NDArray) -> NDArray[np.float32]:
    """Unit embeddings [B, D] of the people at `keypoints` [B, 12, 3] (x, y in [0, 1], confidence) in [B, H, W, 3]."""
    views = box_views(np.stack([person_box(points) for points in keypoints]))
    cuts = views.cut(pixels(images), judge.config.image_size)
    return F.normalize(torch.cat([judge(chunk).logits.float() for chunk in cuts.split(BATCH)])).numpy()


def box_views(boxes: NDArray) -> Views:
    """Views of square boxes [B, 4]."""
    corners = torch.from_numpy(np.asarray(boxes, np.float32)).unflatten(1, (2, 2))
    return upright(corners.mean(1), corners[:, 1, 0] - corners[:, 0, 0])


def people_boxes(people: People) -> NDArray[np.float64]:
    """The boxes [N, 4] of everybody as an estimator finds them."""
    return np.stack([person_box(estimated_keypoints(points, seed)) for seed, points in enumerate(people.keypoints)])


class IdentityTask:
    """A batch of size P is P people, twice."""

    def __init__(self, config: JudgeConfig, people: People, validation: People):
        self.size, self.people, self.held_out = config.identity_size, people, validation
        self.boxes, self.samples = people_boxes(people), samples_by_person(people)
        self.module = build_identity_judge(config).to(memory_format=torch.channels_last)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        first, second = (self.see(indices, rng) for indices in draw_pairs(self.samples, size, rng))
        return {"first": first, "second": second}

    def see(self, indices: NDArray, rng: np.random.Generator) -> Tensor:
        views = draw_views(self.boxes[indices], np.zeros(len(indices), bool), rng)
        return degrade(views.cut(pixels(self.people.images[indices]), self.size), rng)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        embeddings = module(torch.cat([batch["first"], batch["second"]])).logits.float()
        first, second = F.normalize(embeddings).chunk(2)
        logits, target = first @ second.T / TEMPERATURE, torch.arange(len(first))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": loss, "top1": (logits.argmax(1) == target).float().mean()}

    def validate(self, sheet: Path) -> dict[str, float]:
        """Identification among 100 people who were not trained on, of pictures as they are and of damaged ones."""
        self.settle()
        rng = np.random.default_rng(0)
        pairs = draw_pairs(samples_by_person(self.held_out), GALLERY, rng)
        views = [box_views(people_boxes(self.held_out)[indices]) for indices in pairs]
        cuts = [v.cut(pixels(self.held_out.images[i]), self.size) for v, i in zip(views, pairs, strict=True)]
        queries, gallery, damaged = (
            F.normalize(self.module(cut).logits.float()) for cut in (*cuts, degrade(cuts[0], rng))
        )
        self.module.train()
        contact_sheet(to_bytes(torch.stack(cuts, 1).flatten(0, 1)[:24]), columns=6).save(sheet)
        return identification(queries @ gallery.T) | {"top1_damaged": identification(damaged @ gallery.T)["top1"]}

    def settle(self) -> None:
        settle(self.module, lambda number: self.batch(np.random.default_rng(number), BATCH)["first"])

    def save(self, folder: Path) -> None:
        self.settle()
        self.module.save_pretrained(folder)
        self.module.train()

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(ResNetForImageClassification.from_pretrained(folder).state_dict())


def samples_by_person(people: People) -> list[NDArray[np.int64]]:
    """The samples of each person of whom there are two or more."""
    groups = [np.flatnonzero(people.identity == identity) for identity in np.unique(people.identity)]
    return [group for group in groups if len(group) > 1]


def draw_pairs(samples: list[NDArray[np.int64]], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices [2, P] of two pictures of each of `count` different people, or of as many as there are."""
    chosen = rng.choice(len(samples), min(count, len(samples)), replace=False)
    return np.stack([rng.choice(samples[person], 2, replace=False) for person in chosen], 1)


def identification(cosines: Tensor) -> dict[str, float]:
    """From cosines [P, P] of queries and a gallery in the same order: who is found first, and how alike they are."""
    same, count = cosines.diag(), len(cosines)
    return {
        "top1": float((cosines.argmax(1) == torch.arange(count)).float().mean()),
        "cos_same": float(same.mean()),
        "cos_other": float((cosines.sum() - same.sum()) / (count * (count - 1))),
    }
