"""Who a picture shows, by metric learning on pairs of pictures of one person in one outfit.

A network sees the person's box and gives an embedding; the pairs of a batch are each other's negatives (InfoNCE,
arXiv:1807.03748, both ways as in CLIP). Two pictures of a person differ in pose, place and light, so these cannot be
what the embedding says.

Contrast alone is slow to find the person in the picture: beside it the network learns, through a layer that is not
kept, the mean colours of the person's parts, and some views have the place replaced by a plain colour.

Two networks learn so, of different architectures and seeds: `stage reid`, for a loss, and `stage judge_identity`, which
judges.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bolid_sdk.parts import DOUBTFUL, part_boxes
from bolid_training.avatars.parts import Part
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.conditions import estimated_keypoints
from bolid_training.data import People, pixels, with_recoloured
from bolid_training.degrade import degrade, uniform
from bolid_training.evaluate.metrics import mean_colours
from bolid_training.model.batch_norm import STATISTICS_BATCHES, settle
from bolid_training.stages.vae import to_bytes
from bolid_training.views import Views, upright

TEMPERATURE = 0.07
COLOUR_WEIGHT = 10.0
PLAIN = 0.3  # share of views without the place
WANDER, ZOOM = 0.06, 0.15  # of a box's side, and of its logarithm: about what an estimator gets wrong
BODY = ((Part.FACE, Part.ARMS, Part.LEGS), (Part.HAIR, Part.HAT), (Part.UPPER,), (Part.LOWER,), (Part.SHOES,))
VARIANTS = 1  # how many others each person is beside themselves, in other colours
BATCH = 64
GALLERY = 100


class ColouringIdentity(nn.Module):
    """A network and a layer beside it: pixels -> embeddings [B, D], mean colours [B, 5, 3] of `BODY`.

    The network is one of transformers' image classifiers, whose last layer gives the embedding instead of classes.
    """

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network
        self.colours = nn.Linear(network.config.hidden_sizes[-1], 3 * len(BODY))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.network.base_model(pixels).pooler_output.flatten(1)
        return self.network.classifier(pooled), self.colours(pooled).unflatten(1, (len(BODY), 3))

    @property
    def last_bias(self) -> nn.Parameter:
        """The embedding's."""
        return [layer for layer in self.network.classifier.modules() if isinstance(layer, nn.Linear)][-1].bias


def box_views(boxes: NDArray) -> Views:
    """Views of square boxes [B, 4]."""
    corners = torch.from_numpy(np.asarray(boxes, np.float32)).unflatten(1, (2, 2))
    return upright(corners.mean(1), corners[:, 1, 0] - corners[:, 0, 0])


def body_boxes(keypoints: NDArray) -> NDArray[np.float64]:
    """The boxes [N, 4] of people with keypoints [N, 12, 3], without `person_box`'s margin: a second look is over."""
    return np.stack([part_boxes(points, min_confidence=DOUBTFUL)[0] for points in keypoints])


def found_keypoints(people: People) -> NDArray[np.float32]:
    """Everybody's keypoints [N, 12, 3] as an estimator finds them."""
    return np.stack([estimated_keypoints(points, seed) for seed, points in enumerate(people.keypoints)])


def colours_of(people: People) -> NDArray[np.float32]:
    """Mean colours [N, 5, 3] of `BODY`, NaN for what is not seen or has no colour in the picture's style."""
    found = [mean_colours(image, parts, BODY) for image, parts in zip(people.images, people.parts, strict=True)]
    return np.where(people.photos[:, None, None], np.stack(found), np.nan).astype(np.float32)


class PairsTask:
    """A batch of size P is P people, twice."""

    def __init__(self, network: PreTrainedModel, people: People, validation: People):
        people = with_recoloured(people, VARIANTS)
        self.network, self.size, self.people, self.held_out = network, network.config.image_size, people, validation
        self.boxes, self.samples = body_boxes(found_keypoints(people)), samples_by_person(people)
        self.colours = colours_of(people)
        self.module = ColouringIdentity(network).to(memory_format=torch.channels_last)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        indices = draw_pairs(self.samples, size, rng).reshape(-1)
        return {"pixels": self.see(indices, rng), "colours": torch.from_numpy(self.colours[indices])}

    def see(self, indices: NDArray, rng: np.random.Generator) -> Tensor:
        images = pixels(self.people.images[indices])
        place = torch.from_numpy(self.people.parts[indices] == Part.BACKGROUND)[:, None]
        plain = torch.from_numpy(rng.random((len(indices), 1, 1, 1)) < PLAIN)
        images = torch.where(place & plain, uniform(rng, (-1, 1), len(indices), 3), images)
        return degrade(wandering_views(self.boxes[indices], rng).cut(images, self.size), rng)

    def losses(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        embeddings, colours = (output.float() for output in module(batch["pixels"]))
        # without the batch's mean: at first embeddings have little else, and all are alike
        first, second = F.normalize(embeddings - embeddings.mean(0)).chunk(2)
        logits, target = first @ second.T / TEMPERATURE, torch.arange(len(first))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        known = batch["colours"].isfinite()
        error = F.mse_loss(colours[known], batch["colours"][known], reduction="sum")
        colour = error / known.sum().clamp(min=1)
        top1 = (logits.argmax(1) == target).float().mean()
        return {"loss": contrast + COLOUR_WEIGHT * colour, "contrast": contrast, "colour": colour, "top1": top1}

    def validate(self, sheet: Path) -> dict[str, float]:
        """Identification among 100 people who were not trained on, of pictures as they are and of damaged ones."""
        self.settle()
        rng = np.random.default_rng(0)
        pairs = draw_pairs(samples_by_person(self.held_out), GALLERY, rng)
        boxes = body_boxes(found_keypoints(self.held_out))
        cuts = [box_views(boxes[i]).cut(pixels(self.held_out.images[i]), self.size) for i in pairs]
        queries, gallery, damaged = (F.normalize(self.module(cut)[0].float()) for cut in (*cuts, degrade(cuts[0], rng)))
        self.module.train()
        contact_sheet(to_bytes(torch.stack(cuts, 1).flatten(0, 1)[:24]), columns=6).save(sheet)
        return identification(queries @ gallery.T) | {"top1_damaged": identification(damaged @ gallery.T)["top1"]}

    @torch.no_grad()
    def settle(self) -> None:
        """Eval mode, with the mean embedding taken away by the last bias, as the loss does with a batch's."""
        batches = [self.batch(np.random.default_rng(number), BATCH)["pixels"] for number in range(STATISTICS_BATCHES)]
        settle(self.module, batches)
        self.module.last_bias.sub_(torch.cat([self.module(batch)[0].float() for batch in batches]).mean(0))

    def save(self, folder: Path) -> None:
        self.settle()
        self.network.save_pretrained(folder)
        self.module.train()

    def load(self, folder: Path) -> None:
        self.network.load_state_dict(type(self.network).from_pretrained(folder).state_dict())


def samples_by_person(people: People) -> list[NDArray[np.int64]]:
    """The samples of each person of whom there are two or more: the photographs, if there are two of these.

    Sketches have no colours, and nobody is asked to judge any.
    """
    groups = [np.flatnonzero(people.identity == identity) for identity in np.unique(people.identity)]
    photos = [group[people.photos[group]] for group in groups]
    return [p if len(p) > 1 else group for p, group in zip(photos, groups, strict=True) if len(group) > 1]


def wandering_views(boxes: NDArray, rng: np.random.Generator) -> Views:
    """Views of boxes [B, 4], moved, scaled and mirrored."""
    views, count = box_views(boxes), len(boxes)
    offset = torch.from_numpy(rng.uniform(-WANDER, WANDER, (count, 2))).float() * views.side[:, None]
    zoom = torch.from_numpy(np.exp(rng.uniform(-ZOOM, ZOOM, count))).float()
    mirror = torch.from_numpy(rng.random(count) < 0.5)
    return replace(views, centre=views.centre + offset, side=views.side * zoom, mirror=mirror)


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
