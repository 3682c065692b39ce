"""Engines bound for the sampling steps of a call, and what full steps leave for shallow ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import Array, Engine, Loop, Tensor
from bolid_sdk.caching import PlannedStep
from bolid_sdk.contracts import DEEP_FEATURE, EARLIER_DEEP_FEATURE
from bolid_sdk.errors import InputError

FloatArray: TypeAlias = NDArray[np.float32]


class BoundLoops:
    """A loop for each kind of step in a plan: whole UNet or shallow half, two guidance branches or one.

    Each is bound when it is first needed. `constants` hold the largest number of branches for B = `batch` pictures, the
    conditional rows last. The deep feature is given by the runs of a plan with shallow steps only.
    """

    def __init__(
        self,
        full: Engine,
        shallow: Engine | None,
        constants: Mapping[str, FloatArray],
        batch: int,
        plan: Sequence[PlannedStep],
    ) -> None:
        self._full, self._shallow = full, shallow
        self._constants, self._batch = constants, batch
        self._unwanted = {DEEP_FEATURE} if all(step.full for step in plan) else set()
        self._bound: dict[tuple[bool, int], Loop] = {}

    def __getitem__(self, step: PlannedStep) -> Loop:
        """Raises InputError for a shallow step where there is no shallow half."""
        kind = step.full, step.branches
        if kind not in self._bound:
            self._bound[kind] = self._bind(step)
        return self._bound[kind]

    def _bind(self, step: PlannedStep) -> Loop:
        engine = self._full if step.full else self._shallow
        if engine is None:
            raise InputError("the bundle has no shallow denoiser, which caching needs; use caching='off'")
        rows = step.branches * self._batch
        inputs = [tensor for tensor in engine.spec.inputs if tensor.name in self._constants]
        guided = {tensor.name for tensor in inputs if tensor.shape[0] == "guided_batch"}
        values = {tensor.name: self._constants[tensor.name] for tensor in inputs}
        constants = {name: value[-rows:] if name in guided else value for name, value in values.items()}
        return engine.bind(constants, [name for name in engine.spec.output_names if name not in self._unwanted])


class DeepFeatures:
    """What the last two full steps left for shallow ones. It stays on the device."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def keep(self, outputs: Mapping[str, Tensor]) -> None:
        """Of a step that gives a feature: a full one, of a plan with shallow ones."""
        if DEEP_FEATURE in outputs:
            self._kept = [*self._kept[-1:], outputs[DEEP_FEATURE]]

    def inputs(self, step: PlannedStep) -> dict[str, Tensor | Array]:
        """What a shallow step reads beside the rest; nothing for a full one."""
        if step.full:
            return {}
        latest = self._kept[-1]
        # without extrapolation the earlier one does not count, and may have another number of branches
        earlier = self._kept[0] if step.extrapolation else latest
        extrapolation = np.array([step.extrapolation], np.float32)
        return {DEEP_FEATURE: latest, EARLIER_DEEP_FEATURE: earlier, "extrapolation": extrapolation}
