"""What the training of an adapter needs of a user's pictures, computed once with networks that then may go.

Everything is kept in chunks on disk, shared out among the processes, so an interrupted preparation goes on, and a data
set need not fit into memory.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from bolid_sdk.crops import part_crops
from bolid_sdk.images import normalise
from bolid_sdk.parts import part_boxes
from bolid_training.avatars.parts import Part
from bolid_training.conditions import body_weight, penultimate_states, place_only
from bolid_training.data import People, cached_chunks, pixels, process_state
from bolid_training.model.base import Base
from bolid_training.userdata.framing import Frame, person_frame
from bolid_training.userdata.reading import Chosen
from bolid_training.userdata.texts import TextReader, as_records

CHUNK = 64
CROPS_AT_ONCE = 20


@dataclass(frozen=True)
class Chunked:
    """An array [N, ...] in `pieces` of CHUNK rows; only the rows that are asked for are read."""

    pieces: list[NDArray]

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def __getitem__(self, indices: NDArray | int) -> NDArray:
        """Rows [*indices.shape, ...]."""
        wanted = np.asarray(indices)
        rows = np.stack([self.pieces[i // CHUNK][i % CHUNK] for i in wanted.ravel()])
        return rows.reshape(*wanted.shape, *rows.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """`latents` [N, c, h, w] of unit scale; `patches` [N, 5, P, D] of the part crops and `places` [N, P, D] of the
    surroundings; `weights` [N, 2, h, w]: the shares of each latent pixel that the person and that the picture cover.

    `texts`: M records of what the UNet reads of every caption, the empty one first, `captions` their numbers for each
    picture; `time_ids` float32 [N, 6]: what SDXL is told of each picture's size; `null` [P, D].
    """

    people: People
    latents: Chunked
    patches: Chunked
    places: Chunked
    weights: Chunked
    texts: Chunked
    captions: list[list[int]]
    time_ids: NDArray[np.float32]
    null: Tensor


def prepare(base: Base, chosen: Chosen, cache: Path) -> Arrays:
    """Computes what is not in `cache` yet. The networks for it are in memory one after the other."""
    store = Store(folder=cache / data_key(base, chosen), count=len(chosen.entries))
    pictures = Pictures(base=base, chosen=chosen)
    people = pictures.people(store.rows("images", pictures.images), store.rows("labels", pictures.labels))
    texts, captions = number_captions(people)
    return Arrays(
        people=people,
        latents=_latents(base, people, store),
        weights=store.rows("weights", lambda rows: pictures.weights(people, rows)),
        texts=_texts(base, texts, store),
        captions=captions,
        time_ids=pictures.time_ids(),
        **_patches(base, pictures, people, store),
    )


def _latents(base: Base, people: People, store: "Store") -> Chunked:
    encode = LatentEncoder(base)
    return store.rows("latents", lambda rows: encode(people.images[rows]))


def _texts(base: Base, texts: list[str], store: "Store") -> Chunked:
    read = TextReader(base)
    return store.rows("captions", lambda rows: as_records(read([texts[row] for row in rows])), len(texts))


def _patches(base: Base, pictures: "Pictures", people: People, store: "Store") -> dict[str, Any]:
    encode = PatchEncoder(base)
    return {
        "patches": store.rows("straight", lambda rows: encode(pictures.crops(rows))),
        "places": store.rows("places", lambda rows: encode(pictures.places(people, rows))),
        "null": torch.from_numpy(store.rows("null", lambda rows: encode.null(), 1)[0].astype(np.float32)),
    }


@dataclass(frozen=True, kw_only=True)
class Store:
    """Arrays in chunks below `folder`, of `count` rows if nothing else is said."""

    folder: Path
    count: int

    def rows(self, name: str, compute: Callable[[range], NDArray], count: int | None = None) -> Chunked:
        """`compute` gives some rows of the array; only chunks that are missing are computed."""
        total = self.count if count is None else count
        chunk = lambda number: compute(range(number * CHUNK, min((number + 1) * CHUNK, total)))  # noqa: E731
        return Chunked(cached_chunks(self.folder / name, chunk, -(-total // CHUNK)))


def data_key(base: Base, chosen: Chosen) -> str:
    """Other files, other networks or other keypoints have another one."""
    encoders = [base.folder / "vae", *(base.folder / tower for tower in base.family.towers), base.image_encoder_folder]
    files = [file for folder in encoders for file in sorted(folder.iterdir()) if file.is_file()]
    content = [
        asdict(base.config) | ({"zero_unconditional": True} if base.zero_unconditional else {}),
        [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        [(entry.picture.stamp, entry.identity, entry.captions, entry.style) for entry in chosen.entries],
        [found.to_json() for found in chosen.looks],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def bytes_on_disk(base: Base, count: int, captions: int) -> int:
    """Of the cache for `count` pictures."""
    config, side = base.config, base.size
    patches = (config.vision_size // config.vision_patch) ** 2 + 1
    cells = (side // 8) ** 2
    picture = (
        4 * side**2 + 2 * cells * (config.latent_channels + 2) + 2 * (config.parts + 1) * patches * config.patch_width
    )
    caption = 2 * (77 * config.context_width + config.pooled_width)
    return count * picture + caption * (captions + 1)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The chosen pictures, cut to the model's size; a method gives an array of some rows."""

    base: Base
    chosen: Chosen

    def frame(self, row: int) -> Frame:
        found = self.chosen.looks[row]
        return person_frame(found.width, found.height, found.keypoints)

    def people(self, images: Chunked, labels: Chunked) -> People:
        looks, entries = self.chosen.looks, self.chosen.entries
        return People(
            images=images,  # type: ignore[arg-type]
            parts=labels,  # type: ignore[arg-type]
            keypoints=np.stack([self.frame(row).to_frame(found.keypoints) for row, found in enumerate(looks)]),
            identity=self.chosen.identities,
            metadata=[{"captions": list(entry.captions), "style": entry.style} for entry in entries],
        )

    def time_ids(self) -> NDArray[np.float32]:
        """float32 [N, 6]."""
        return np.stack([self.frame(row).told(self.base.size).time_ids() for row in range(len(self.chosen.looks))])

    def images(self, rows: range) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3]."""
        return np.stack([self.frame(row).cut(self.chosen.entries[row].open(), self.base.size) for row in rows])

    def labels(self, rows: range) -> NDArray[np.uint8]:
        """uint8 [n, H, W]: the entry's own labels; without any, all within the body's box counts as the person."""
        return np.stack([self._labels(row) for row in rows])

    def _labels(self, row: int) -> NDArray[np.uint8]:
        frame, size, labels = self.frame(row), self.base.size, self.chosen.entries[row].open_parts()
        if labels is not None:
            return frame.cut_labels(labels, size)
        box = part_boxes(frame.to_frame(self.chosen.looks[row].keypoints))[0]
        x0, y0, x1, y1 = (box * size).round().astype(int).clip(0, size)
        filled = np.full((size, size), Part.BACKGROUND, np.uint8)
        filled[y0:y1, x0:x1] = Part.UPPER
        return np.where(frame.inside(size) > 0.5, filled, np.uint8(Part.BACKGROUND))

    def weights(self, people: People, rows: range) -> NDArray[np.float16]:
        """float16 [n, 2, h, w]: coverage by the person, and by the picture."""
        side = self.base.size // 8
        body = body_weight(people.parts[rows], side).numpy()
        inside = np.stack([self.frame(row).inside(side) for row in rows])[:, None]
        return np.concatenate([body, inside], 1).astype(np.float16)

    def crops(self, rows: range) -> NDArray[np.uint8]:
        """uint8 [n, 5, S, S, 3] of the parts, from the pictures as they are, as the runtime cuts references."""
        return np.stack([self._crops(row) for row in rows])

    def _crops(self, row: int) -> NDArray[np.uint8]:
        image, found = self.chosen.entries[row].open(), self.chosen.looks[row]
        return part_crops(image, found.keypoints, self.base.config.vision_size)

    def places(self, people: People, rows: range) -> NDArray[np.uint8]:
        """uint8 [n, S, S, 3]: what surrounds the person."""
        size = self.base.config.vision_size
        return np.stack([_shrink(place_only(people.images[row], people.parts[row]), size) for row in rows])


class Encoder:
    """A network of the base that is read when it is first used, and goes with the object."""

    def __init__(self, base: Base):
        self.base, self.device = base, process_state().device


class LatentEncoder(Encoder):
    """uint8 [n, H, W, 3] -> float16 latents of unit scale; a variational encoder gives its mode."""

    @cached_property
    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        return self.base.vae().to(self.device)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        return np.concatenate([self._encode(image[None]) for image in images])

    def _encode(self, image: NDArray[np.uint8]) -> NDArray[np.float16]:
        config = self.vae.config
        encoded = self.vae.encode(pixels(image).to(self.device), return_dict=False)[0]
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return ((latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor).half().cpu().numpy()


class PatchEncoder(Encoder):
    """uint8 [..., S, S, 3] -> float16 [..., P, D] (`hidden_states[-2]`)."""

    @cached_property
    def network(self) -> CLIPVisionModelWithProjection:
        return self.base.image_encoder().to(self.device)

    @cached_property
    def extractor(self) -> CLIPImageProcessor:
        return self.base.feature_extractor()

    def null(self) -> NDArray[np.float16]:
        """[1, P, D] of a picture that is zero after normalisation: IP-Adapter-Plus' unconditional."""
        size = self.base.config.vision_size
        return self._encode(torch.zeros(1, 3, size, size))

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        flat = normalise(crops.reshape(-1, *crops.shape[-3:]), self.extractor.image_mean, self.extractor.image_std)
        tokens = np.concatenate([self._encode(piece) for piece in torch.from_numpy(flat).split(CROPS_AT_ONCE)])
        return tokens.reshape(*crops.shape[:-3], *tokens.shape[1:])

    @torch.no_grad()
    def _encode(self, batch: Tensor) -> NDArray[np.float16]:
        return penultimate_states(self.network, batch.to(self.device)).half().cpu().numpy()


def number_captions(people: People) -> tuple[list[str], list[list[int]]]:
    """All different captions, the empty one first, and for each picture the numbers of its own."""
    texts = ["", *dict.fromkeys(caption for captions in people.captions for caption in captions if caption)]
    numbers = {text: number for number, text in enumerate(texts)}
    return texts, [[numbers[caption] for caption in captions] for captions in people.captions]


def _shrink(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))
