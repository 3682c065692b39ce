"""LoRAs of a request: files read once, then stacked into the inputs of the graphs that take them.

    y = W x + sum_i weight_i * scale_i * up_i down_i x

Several LoRAs are one of the sum of their ranks. Every layer's rows lie in one tensor `down` [sum of in, rank] and one
`up` [sum of out, rank], filled up with zeros to one rank; `up` holds weight and scale, a graph knows of neither. A
call's stack is a value that is handed to the graphs of that call: nothing is left for the next.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.contracts import LORA_DOWN, LORA_NETWORKS, LORA_UP, LoraLayer, Sizes
from bolid_sdk.errors import InputError
from bolid_sdk.kept import Kept
from bolid_sdk.lora_format import HEADER, LowRank, parse_settings, read_changes, settings_beside
from bolid_sdk.lora_names import names_in_files
from bolid_sdk.safetensors_file import read_safetensors, tensor_names

FloatArray: TypeAlias = NDArray[np.float32]

MAX_FILE_BYTES = 2**31
KEPT_FILES, KEPT_STACKS = 4, 2
"""A LoRA of rank 16 on all of Stable Diffusion 1.5 is 27 MB in float32, on SDXL 170 MB, and so is its stack."""

OTHERS = (
    ". At run time LoRAs change the linear layers of attention blocks and of the text encoder; fuse one that changes "
    "others, such as convolutions: bolid-export --lora FILE:WEIGHT"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """A LoRA file that has been read for one bundle: a value for any number of requests.

    `digest` is the sha256 of the file and of its settings beside it, `rank` the largest of any layer.
    """

    name: str
    digest: str
    changes: Mapping[str, LowRank[FloatArray]] = field(repr=False)
    layers: tuple[LoraLayer, ...] = field(repr=False)

    @property
    def rank(self) -> int:
        return max(len(change.down) for change in self.changes.values())


LoraSource: TypeAlias = str | os.PathLike[str] | Lora
LoraRequest: TypeAlias = LoraSource | tuple[LoraSource, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraStack:
    """The LoRAs of one call. `key` says what they are, `inputs` [rows, rank] are each graph's, read-only."""

    key: tuple[tuple[str, float], ...] = ()
    names: tuple[str, ...] = ()
    inputs: Mapping[str, Mapping[str, FloatArray]] = field(default_factory=dict, repr=False)

    def of(self, graph: str) -> Mapping[str, FloatArray]:
        """`lora_down` and `lora_up`, for a graph that takes them."""
        return self.inputs.get(graph, {})

    def to_list(self) -> list[dict[str, Any]]:
        """File name, sha256 and weight of each."""
        return [
            {"file": name, "sha256": digest, "weight": weight}
            for name, (digest, weight) in zip(self.names, self.key, strict=True)
        ]


class Loras:
    """Reads and stacks LoRAs for graphs of these sizes. The latest are kept, by content. Safe between threads."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._names = names_in_files(layer.name for layer in sizes.lora_layers)
        self._files: Kept[Lora] = Kept(KEPT_FILES)
        self._stacks: Kept[LoraStack] = Kept(KEPT_STACKS)

    def load(self, source: LoraSource) -> Lora:
        """Reads a file, or passes on what is read already. Raises InputError."""
        if isinstance(source, Lora):
            if source.layers != self._sizes.lora_layers:
                raise InputError(f"the LoRA {source.name} was loaded for another model; load its file with this one")
            return source
        path = Path(source)
        content = _content(path)
        settings = settings_beside(path, tensor_names(content, str(path)))
        digest = hashlib.sha256(content + (settings or "").encode()).hexdigest()
        lora = self._files.get(digest, lambda: self._read(path, content, settings, digest))
        # what is kept may have come under another name
        return lora if lora.name == path.name else Lora(**{**vars(lora), "name": path.name})

    def _read(self, path: Path, content: bytes, settings: str | None, digest: str) -> Lora:
        state, metadata = read_safetensors(content, str(path))
        parsed = parse_settings(settings or metadata.get(HEADER), str(path))
        changes = read_changes(state, parsed, self._names, str(path), OTHERS)
        layers = {layer.name: layer for layer in self._sizes.lora_layers}
        return Lora(
            name=path.name,
            digest=digest,
            changes={name: _checked(change, layers[name], path) for name, change in changes.items()},
            layers=self._sizes.lora_layers,
        )

    def stack(self, requests: Sequence[tuple[LoraSource, float]]) -> LoraStack:
        """The inputs of all graphs, also without any LoRA. Raises InputError, also for too large a rank."""
        if not self._sizes.lora_rank:
            return LoraStack()
        loaded = [(self.load(source), weight) for source, weight in requests]
        # one without weight takes no rank
        used = [(lora, weight) for lora, weight in loaded if weight]
        self._check_rank([lora for lora, _ in used])
        key = tuple((lora.digest, weight) for lora, weight in used)
        inputs = self._stacks.get(key, lambda: LoraStack(inputs=self._inputs(used))).inputs
        return LoraStack(key=key, names=tuple(lora.name for lora, _ in used), inputs=inputs)

    def _check_rank(self, loras: Sequence[Lora]) -> None:
        ranks = [_rank(loras, layer) for layer in self._sizes.lora_layers]
        if max(ranks) > self._sizes.lora_rank:
            named = ", ".join(f"{lora.name} ({lora.rank})" for lora in loras)
            raise InputError(
                f"the LoRAs {named} have rank {max(ranks)} together; this bundle takes up to {self._sizes.lora_rank}: "
                f"take fewer or smaller ones, or export it with --hot-lora {max(ranks)}"
            )

    def _inputs(self, loras: Sequence[tuple[Lora, float]]) -> dict[str, dict[str, FloatArray]]:
        made: dict[tuple[LoraLayer, ...], dict[str, FloatArray]] = {}
        graphs = {graph: self._sizes.layers_of(graph) for graph in LORA_NETWORKS}
        for layers in filter(None, graphs.values()):
            # the denoiser and its shallow half share theirs
            if layers not in made:
                made[layers] = _stacked(layers, loras, self._sizes.lora_rank)
        return {graph: made[layers] for graph, layers in graphs.items() if layers}


def check_loras(value: Any) -> tuple[tuple[LoraSource, float], ...]:
    """A request's LoRAs with their weights: files or what was loaded, each alone or in a pair. Raises InputError."""
    if isinstance(value, str | os.PathLike | Lora) or not isinstance(value, Sequence):
        raise InputError(f"loras={value!r} is no list; expected [FILE, (FILE, WEIGHT), ...]")
    return tuple(_checked_request(entry) for entry in value)


def _checked_request(entry: Any) -> tuple[LoraSource, float]:
    source, weight = entry if isinstance(entry, tuple | list) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(source, str | os.PathLike | Lora):
        raise InputError(
            f"{entry!r} is no LoRA; expected a file, what load_lora has read, or a pair of one and a weight"
        )
    numeric = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
    if not numeric or not math.isfinite(weight):
        name = source.name if isinstance(source, Lora) else source
        raise InputError(f"the LoRA {name} has weight {weight!r}; expected a finite number, usually between 0 and 1")
    return source, float(weight)


def _content(path: Path) -> bytes:
    """Raises InputError."""
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} is no .safetensors file; name the file itself, and convert a pickle first")
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size:,} bytes; a LoRA has at most {MAX_FILE_BYTES:,}: is it a whole model?")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the LoRA {path} cannot be read ({error.strerror}); name an existing file") from error


def _checked(change: LowRank[FloatArray], layer: LoraLayer, path: Path) -> LowRank[FloatArray]:
    """As matrices, of a convolution too. Raises InputError when they do not fit the layer or are not finite."""
    down, up = (values.reshape(len(values), -1) if values.ndim > 1 else values for values in (change.down, change.up))
    rank = len(down)
    if down.shape != (rank, layer.inputs) or up.shape != (layer.outputs, rank) or not rank:
        raise InputError(
            f"{path} does not fit this model at {layer.name}: its matrices are {list(change.down.shape)} and "
            f"{list(change.up.shape)}, expected [rank, {layer.inputs}] and [{layer.outputs}, rank]; take a LoRA made "
            "for this family"
        )
    if not (np.isfinite(down).all() and np.isfinite(up).all() and math.isfinite(change.scale)):
        raise InputError(f"{path} holds NaN or infinite values at {layer.name}; get the file again, or another one")
    return LowRank(down=down, up=up, scale=change.scale)


def _rank(loras: Sequence[Lora], layer: LoraLayer) -> int:
    return sum(len(lora.changes[layer.name].down) for lora in loras if layer.name in lora.changes)


def _stacked(layers: Sequence[LoraLayer], loras: Sequence[tuple[Lora, float]], limit: int) -> dict[str, FloatArray]:
    """`lora_down` and `lora_up` for these layers."""
    rank = _padded(max(_rank([lora for lora, _ in loras], layer) for layer in layers), limit)
    down = np.zeros((sum(layer.inputs for layer in layers), rank), np.float32)
    up = np.zeros((sum(layer.outputs for layer in layers), rank), np.float32)
    row_in = row_out = 0
    for layer in layers:
        used = 0
        for lora, weight in loras:
            if layer.name in lora.changes:
                one, other = _balanced(lora.changes[layer.name], weight)
                columns = slice(used, used + len(one))
                down[row_in : row_in + layer.inputs, columns] = one.T
                up[row_out : row_out + layer.outputs, columns] = other
                used += len(one)
        row_in, row_out = row_in + layer.inputs, row_out + layer.outputs
    down.flags.writeable = up.flags.writeable = False
    return {LORA_DOWN: down, LORA_UP: up}


def _padded(rank: int, limit: int) -> int:
    """The next power of two, at least 1: runtimes that compile or plan by shape meet few of them."""
    return min(1 << max(rank - 1, 0).bit_length(), limit)


def _balanced(change: LowRank[FloatArray], weight: float) -> tuple[FloatArray, FloatArray]:
    """`down`, and `up` with weight and scale, brought to equal peaks by a power of two, which changes no product.

    Trained `up` matrices are small, and scales make them smaller: float16 would keep few of their digits.
    """
    with np.errstate(over="ignore"):
        up = (change.up * (weight * change.scale)).astype(np.float32)
    peaks = float(np.abs(change.down).max()), float(np.abs(up).max())
    if not math.isfinite(peaks[1]):
        raise InputError(f"a LoRA with weight {weight:g} is too large to compute with; expected one between 0 and 1")
    if min(peaks) == 0.0:
        return change.down, up
    shift = round((math.log2(peaks[1]) - math.log2(peaks[0])) / 2)
    return np.ldexp(change.down, shift), np.ldexp(up, -shift)
