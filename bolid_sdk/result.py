"""What a generation gives back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bolid_sdk.errors import InputError, Notice
from bolid_sdk.images import save_png
from bolid_sdk.sampling import ResolvedSampling


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished picture and how it came about.

    `timings` are seconds by stage, shared by the pictures of one call; `digest` is the bundle's; `warnings` are what
    the caller should know although it was no error. `pose_agreement`, in [0, 1], of the best of several: see
    `best_of.agreement`. `settings` are the other numbers of the request, by their names in `Options`.
    """

    image: Image.Image
    prompt: str
    seed: int
    sampling: ResolvedSampling
    settings: Mapping[str, Any]
    timings: Mapping[str, float]
    bundle: str
    digest: str
    backend: str
    warnings: tuple[Notice, ...] = ()
    pose_agreement: float | None = None
    loras: Sequence[Mapping[str, Any]] = ()
    """File name, sha256 and weight of each that the request brought."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, as JSON types."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.image.width,
            "height": self.image.height,
            "sampling": asdict(self.sampling),
            **self.settings,
            "bundle": self.bundle,
            "digest": self.digest,
            "backend": self.backend,
            "pose_agreement": None if self.pose_agreement is None else round(self.pose_agreement, 4),
            "loras": [dict(lora) for lora in self.loras],
            "timings": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "warnings": [asdict(notice) for notice in self.warnings],
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a PNG whole or not at all, with `to_dict` as JSON in its text chunk "bolid".

        Raises OutputError, and InputError when the name ends in another format's suffix.
        """
        if Path(path).suffix.lower() not in ("", ".png"):
            raise InputError(
                f"{path} is no PNG name; results are saved as .png, which keeps seed and settings with them"
            )
        return save_png(self.image, path, {"bolid": json.dumps(self.to_dict(), ensure_ascii=False)})


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished sampling step, `index` from 1 to `total`."""

    index: int
    total: int
    _preview: Callable[[], Image.Image] = field(repr=False)
    _result: Callable[[], Result] = field(repr=False)

    def preview(self) -> Image.Image:
        """Decodes what the model thinks the picture will be: costs one run of the decoder, when asked for."""
        return self._preview()

    def result(self) -> Result:
        """The finished picture; only the last step has one. Raises InputError before."""
        if self.index < self.total:
            raise InputError(
                f"step {self.index} of {self.total} has no result yet; use preview(), or go on to the last step"
            )
        return self._result()


class Timings:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
