"""Pictures of people as arrays in memory, and what is derived from them once for all steps.

Derived arrays (latents, patch tokens, skeletons) are computed once, kept as .npy files in a cache folder under a name
that holds digests of the data and of the network that computed them, and memory-mapped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bolid_training.avatars.captions import names_clothes
from bolid_training.avatars.reader import Samples, concatenate, load_split
from bolid_training.avatars.recolour import recoloured

RECOLOURED = 2  # how many times everybody comes back in other colours


class People(Samples):
    """One split of `bolid-train data`. Samples of one identity are pictures of one person in the same clothes."""

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that tell these samples from others."""
        known = hashlib.sha256(json.dumps(self.metadata).encode())
        for array in (self.images, self.parts, self.keypoints, self.identity):
            known.update(np.ascontiguousarray(array).data)
        return known.hexdigest()[:16]

    @cached_property
    def captions(self) -> list[list[str]]:
        return [entry["captions"] for entry in self.metadata]

    @cached_property
    def captions_without_clothes(self) -> list[list[str]]:
        """Those that leave it to the reference what is worn, or all where there are none such."""
        return [[text for text in texts if not names_clothes(text)] or texts for texts in self.captions]

    @cached_property
    def longest_captions(self) -> list[str]:
        """The caption of each sample that says most."""
        return [max(captions, key=len) for captions in self.captions]

    @cached_property
    def photos(self) -> NDArray[np.bool_]:
        """[N]: which samples look like photographs, as references do."""
        return np.array([entry["style"] == "photo" for entry in self.metadata])

    @cached_property
    def siblings(self) -> list[NDArray[np.int64]]:
        """For each sample, the other samples of the same person, photographs if there are any."""
        by_identity: dict[int, list[int]] = {}
        for index, identity in enumerate(self.identity):
            by_identity.setdefault(int(identity), []).append(index)
        return [self._siblings(index, by_identity[int(self.identity[index])]) for index in range(len(self))]

    @cached_property
    def with_photos(self) -> NDArray[np.int64]:
        """The samples with a photograph among their siblings: what a sketch does not show, it cannot teach."""
        return np.array([index for index, siblings in enumerate(self.siblings) if self.photos[siblings].all()])

    def _siblings(self, index: int, candidates: list[int]) -> NDArray[np.int64]:
        others = [i for i in candidates if i != index] or [index]
        photos = [i for i in others if self.photos[i]]
        return np.array(photos or others)


def load_people(folder: Path, split: str, limit: int | None = None) -> People:
    """The finished part of a split. Raises FileNotFoundError when there is none."""
    return People(**vars(load_split(folder, split, limit)))


def load_together(folders: Sequence[Path], split: str, limit: int | None = None) -> People:
    """The first `limit` samples of several data sets, whose people are all different. Raises FileNotFoundError."""
    loaded, first = [], 0
    for folder in folders:
        if limit is not None and sum(map(len, loaded)) >= limit:
            break
        people = load_people(folder, split, limit)
        people = replace(people, identity=np.where(people.identity < 0, people.identity, people.identity + first))
        loaded.append(people)
        first = int(people.identity.max()) + 1
    return loaded[0] if len(loaded) == 1 else People(**vars(concatenate(loaded, limit)))


def with_recoloured(people: People, variants: int = RECOLOURED) -> People:
    """The same people, and `variants` times as many who differ in the colours they wear."""
    return People(**vars(concatenate([people, *(recoloured(people, variant + 1) for variant in range(variants))])))


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """[B, H, W, 3] bytes -> float32 [B, 3, H, W] in [-1, 1], channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def resize(batch: Tensor, size: int) -> Tensor:
    """Area-averaged to [B, 3, size, size]."""
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True, align_corners=False)


def cached(
    file: Path, compute: Callable[[slice], NDArray], count: int, chunk: int = 64, by: nn.Module | None = None
) -> NDArray:
    """A read-only memory map of `compute` over all samples, computed on first use, `chunk` at a time, and then kept.

    `by`: the network that computes; when it has been trained on, what it once said is no longer asked for.
    """
    if by is not None:
        file = file.with_stem(f"{file.stem}-{digest(by)}")
    with process_state().local_main_process_first():
        if not file.exists():
            _compute(file, compute, count, chunk)
    return np.load(file, mmap_mode="r")


def cached_of(
    people: People, runs: Path, kind: str, compute: Callable[[slice], NDArray], by: nn.Module | None = None
) -> NDArray:
    """`cached`, over all of these people, in `runs/cache`."""
    file = runs / "cache" / f"{kind}-{len(people)}-{people.digest}.npy"
    return cached(file, compute, len(people), by=by)


def cached_chunks(folder: Path, compute: Callable[[int], NDArray], count: int) -> list[NDArray]:
    """Read-only memory maps of `compute(0 .. count - 1)`, computed on first use, shared out among the processes, kept.

    An interrupted computation goes on with the chunks that are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, state = [folder / f"{number:05d}.npy" for number in range(count)], process_state()
    missing = [number for number, file in enumerate(files) if not file.exists()]
    ours = missing[state.process_index :: state.num_processes]
    for number in tqdm(ours, desc=folder.name, dynamic_ncols=True, disable=not ours):
        partial = files[number].with_suffix(".partial.npy")
        np.save(partial, compute(number))
        partial.rename(files[number])
    state.wait_for_everyone()
    return [np.load(file, mmap_mode="r") for file in files]


def digest(*networks: nn.Module) -> str:
    """16 hexadecimal digits that tell weights apart."""
    weights = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return weights.hexdigest()[:16]


def process_state(*, gpu: bool = False) -> PartialState:
    """Which of how many processes this is, and on which device, about which the first call decides.

    Stages run on the CPU, where their batches and frozen networks are; `fit` asks for a `gpu` first, and has it if
    there is one. A CPU has to be asked for, else each process stands alone.
    """
    return PartialState(cpu=not (gpu and torch.cuda.is_available()))


def _compute(file: Path, compute: Callable[[slice], NDArray], count: int, chunk: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # two runs that begin together compute the same, each in its own file
    partial = file.with_suffix(f".{os.getpid()}.partial.npy")
    out = None
    for piece in tqdm(_slices(count, chunk), total=-(-count // chunk), desc=file.stem, dynamic_ncols=True):
        values = compute(piece)
        if out is None:
            out = np.lib.format.open_memmap(partial, "w+", values.dtype, (count, *values.shape[1:]))
        out[piece] = values
    out.flush()
    partial.rename(file)


def _slices(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))
