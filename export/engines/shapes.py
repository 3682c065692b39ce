"""Ranges of the dynamic axes: what engines are built for, as far as the runtime's own limits leave it open."""

from __future__ import annotations

from dataclasses import dataclass

from bolid_sdk.built_engine import Profile, Shape
from bolid_sdk.contracts import Axis, GraphSpec, Sizes, TensorSpec
from bolid_sdk.errors import InputError
from bolid_sdk.identity import MAX_REFERENCES
from bolid_sdk.orthogonal import MAX_NUM_ZERO, NUM_ZERO

LORA_RANK = 16
"""Of a usual LoRA; without one it is 1."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Smallest, optimal (the fastest) and largest size of an axis."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def fixed(cls, size: int) -> Range:
        return cls(min=size, opt=size, max=size)

    @classmethod
    def parse(cls, text: str, name: str) -> Range:
        """ "1:1:4", or "4" for 4:4:4. Raises InputError."""
        numbers = [int(part) if part.isdecimal() else 0 for part in text.split(":")]
        smallest, optimal, largest = numbers if len(numbers) == 3 else (*numbers[:1] * 3,)
        if len(numbers) not in (1, 3) or not 1 <= smallest <= optimal <= largest:
            raise InputError(f"{name} {text!r} is no range; expected MIN:OPT:MAX such as 1:1:4, or one number")
        return cls(min=smallest, opt=optimal, max=largest)

    def divided(self, divisor: int) -> Range:
        return Range(min=self.min // divisor, opt=self.opt // divisor, max=self.max // divisor)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Pictures in a call, and their sides in pixels."""

    batch: Range
    height: Range
    width: Range

    def __str__(self) -> str:
        return f"batches of {self.batch}, pictures {self.height} pixels high and {self.width} wide"


def resolve_shapes(batch: Range, size: Range | None, sizes: Sizes) -> Shapes:
    """`size` is for both sides; None is the model's native size. Raises InputError for what the model cannot draw."""
    if size is None:
        native = Range.fixed(sizes.native_height), Range.fixed(sizes.native_width)
        return Shapes(batch=batch, height=native[0], width=native[1])
    sides = (size.min, size.opt, size.max)
    if size.min < sizes.min_side or size.max > sizes.max_side or any(side % sizes.size_step for side in sides):
        raise InputError(
            f"size {size} does not fit the model; expected multiples of {sizes.size_step} from {sizes.min_side} to "
            f"{sizes.max_side}"
        )
    return Shapes(batch=batch, height=size, width=size)


def graph_profile(spec: GraphSpec, shapes: Shapes, sizes: Sizes) -> Profile:
    """Shapes of every input of a graph that the runtime may bring."""
    axes = _axes(spec.name, shapes, sizes)
    return {tensor.name: _input_shapes(tensor, axes) for tensor in spec.inputs}


def _axes(graph: str, shapes: Shapes, sizes: Sizes) -> dict[str, Range]:
    batch = shapes.batch
    return {
        "batch": _batch(graph, batch, sizes),
        # one branch without guidance, two with it
        "guided_batch": Range(min=batch.min, opt=2 * batch.opt, max=2 * batch.max),
        "views": _references(sizes.parts),
        # the common multiple of people with different numbers of references (`bolid_sdk.conditioning`) may lie beyond
        "identity_tokens": _identity_tokens(sizes),
        "lora_rank": Range(min=1, opt=min(LORA_RANK, sizes.lora_rank), max=sizes.lora_rank),
        "height": shapes.height,
        "width": shapes.width,
        "latent_height": shapes.height.divided(sizes.vae_factor),
        "latent_width": shapes.width.divided(sizes.vae_factor),
    }


def _references(count: int) -> Range:
    """As many for one reference, usually, as for the most."""
    return Range(min=count, opt=count, max=count * MAX_REFERENCES)


def _identity_tokens(sizes: Sizes) -> Range:
    """PuLID's are as many for any number of references, and a request adds zeros."""
    if not sizes.vision_states:
        return _references(sizes.identity_tokens)
    count = sizes.identity_tokens
    return Range(min=count, opt=count + NUM_ZERO, max=count + MAX_NUM_ZERO)


def _batch(graph: str, batch: Range, sizes: Sizes) -> Range:
    """What the graphs in front of the loop count is not pictures (`bolid_sdk.conditioning`, `bolid_sdk.identity`)."""
    if graph in ("denoiser", "denoiser_shallow", "vae_decoder", "vae_encoder"):
        return batch
    if graph == "text_encoder":  # different prompts, and the unconditional one
        return Range(min=1, opt=2, max=batch.max + 1)
    if graph == "image_encoder":  # an image prompt, or all parts of all references
        return Range(min=1, opt=sizes.parts, max=sizes.parts * MAX_REFERENCES)
    return Range(min=1, opt=1, max=batch.max)


def _input_shapes(tensor: TensorSpec, axes: dict[str, Range]) -> tuple[Shape, Shape, Shape]:
    ranges = [_range(axis, axes) for axis in tensor.shape]
    return tuple(r.min for r in ranges), tuple(r.opt for r in ranges), tuple(r.max for r in ranges)


def _range(axis: Axis, axes: dict[str, Range]) -> Range:
    """Of a fixed axis, a named one, or a named one's fraction: "latent_height/4"."""
    if isinstance(axis, int):
        return Range.fixed(axis)
    name, _, divisor = axis.partition("/")
    return axes[name].divided(int(divisor or 1))
