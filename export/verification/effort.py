"""How much of a model is run to verify it: everything, until that takes too long on a CPU.

Two pictures of twelve guided steps at the native size are seconds for the avatar and three quarters of an hour for
Stable Diffusion 1.5. Above a bound on arithmetic one small picture of a few steps is made: through the same graphs,
under the same limits. The report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bolid_export.graphs import Graph
from bolid_sdk.contracts import Sizes

# Multiplications and additions of the denoiser, by an upper bound: every weight at every latent. The avatar's two
# pictures count 4e11, those of SD1.5 3e14.
MOST_OPERATIONS = 2e13

BRANCHES = 2


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Guided pictures of `steps` steps, `height` x `width` pixels.

    `reduced`: the reference is a drawn figure and no picture by the model, and seen whole instead of in parts.
    """

    pictures: int
    steps: int
    height: int
    width: int
    reduced: bool = False

    def sizes(self, sizes: Sizes) -> Sizes:
        """`sizes` with this picture's as the native one."""
        return replace(sizes, native_height=self.height, native_width=self.width)

    def summary(self) -> dict[str, Any]:
        """For the manifest's report."""
        return asdict(self)


def choose_effort(graphs: Mapping[str, Graph], sizes: Sizes, *, pictures: int, steps: int) -> Effort:
    """`pictures` of `steps` at the native size, or one of four at the smallest: with fewer, none would be shallow."""
    full = Effort(pictures=pictures, steps=steps, height=sizes.native_height, width=sizes.native_width)
    if operations(graphs.values(), full, sizes) <= MOST_OPERATIONS:
        return full
    return Effort(pictures=1, steps=4, height=sizes.min_side, width=sizes.min_side, reduced=True)


def operations(graphs: Iterable[Graph], effort: Effort, sizes: Sizes) -> float:
    """An upper bound on what the largest network, which is the denoiser, computes for these pictures once."""
    latents = effort.height * effort.width / sizes.vae_factor**2
    weights = max(sum(parameter.numel() for parameter in graph.parameters()) for graph in graphs)
    return 2.0 * weights * latents * BRANCHES * effort.steps * effort.pictures
