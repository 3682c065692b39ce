"""Which levers are measured, and what their words mean."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bolid_sdk import Sampling

ENGINES = Path(__file__).parents[1] / "engines"

Place = tuple[Path, str]
"""Bundle and backend."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Levers on one model. Each of `levers` is `base` with some words changed or added; the first picture is `base`'s.

    Words are fields of Sampling, `backend=NAME` and `bundle=FOLDER`, relative to `engines/`.
    """

    name: str
    base: str
    levers: tuple[str, ...]


GROUPS = (
    # At four steps caching=balanced makes one shallow, caching=fast two; at three only fast does, at two neither. There
    # is no guidance, hence no interval of it. Euler's method is DDIM here, so the samplers are those that take another
    # path.
    Group(
        name="four steps",
        base="bundle=avatar backend=onnxruntime",
        levers=(
            "backend=openvino",
            "caching=balanced",
            "caching=fast",
            "backend=openvino caching=balanced",
            "backend=openvino caching=fast",
            "steps=3",
            "steps=3 caching=fast",
            "steps=2",
            "steps=1",
            "sampler=dpm++2m",
            "sampler=dpm++2m steps=3",
            "sampler=lcm",
            "bundle=avatar-int8 backend=openvino",
            "bundle=avatar-int8 backend=openvino caching=balanced",
            "bundle=avatar-int8 backend=openvino caching=fast",
        ),
    ),
    # The distilled model has not learned to be guided: what caching and intervals cost over many steps is asked of its
    # teacher.
    Group(
        name="guided",
        base="bundle=avatar-guided backend=onnxruntime steps=20 guidance=3",
        levers=(
            "backend=openvino",
            "backend=openvino caching=balanced",
            "backend=openvino caching=fast",
            "bundle=avatar-guided-int8 backend=openvino",
            "bundle=avatar-guided-int8 backend=openvino caching=balanced",
            "bundle=avatar-guided-int8 backend=openvino caching=fast",
            "backend=openvino guidance_interval=0:0.75",
            "backend=openvino sampler=dpm++2m steps=12",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Lever:
    """`text` is what differs from its group's base, '' for the base itself."""

    text: str
    bundle: Path
    backend: str
    sampling: Sampling

    @property
    def place(self) -> Place:
        return self.bundle, self.backend


def lever_of(base: str, text: str) -> Lever:
    """Raises ValueError for words that are none."""
    words = pairs_of(base) | pairs_of(text)
    bundle, backend = words.pop("bundle", "avatar"), words.pop("backend", "onnxruntime")
    options = " ".join(f"{name}={value}" for name, value in words.items())
    return Lever(text=text, bundle=ENGINES / bundle, backend=backend, sampling=sampling_of(options))


def pairs_of(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split())


def sampling_of(options: str) -> Sampling:
    """Of "steps=8 guidance_interval=0:0.75". Raises ValueError for what is no such text."""
    kinds: dict[str, Callable[[str], Any]] = {
        "steps": int,
        "guidance": float,
        "sampler": str,
        "spacing": str,
        "eta": float,
        "caching": str,
        "guidance_interval": lambda text: tuple(float(end) for end in text.split(":")),
    }
    pairs = [part.partition("=") for part in options.split()]
    unknown = [name for name, _, _ in pairs if name not in kinds]
    if unknown:
        raise ValueError(f"{options!r} names {', '.join(unknown)}; expected some of {', '.join(kinds)}")
    return Sampling(**{name: kinds[name](value) for name, _, value in pairs})
