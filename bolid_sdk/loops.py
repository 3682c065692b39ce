"""Engines bound for one picture's sampling steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import Engine, Loop
from bolid_sdk.caching import PlannedStep
from bolid_sdk.errors import InputError

FloatArray: TypeAlias = NDArray[np.float32]


class BoundLoops:
    """A loop for each kind of step in a plan: whole UNet or shallow half, two guidance branches or one.

    Each is bound when it is first needed. `constants` hold the largest number of branches for B = `batch` pictures, the
    conditional rows last.
    """

    def __init__(self, full: Engine, shallow: Engine | None, constants: Mapping[str, FloatArray], batch: int) -> None:
        self._full, self._shallow = full, shallow
        self._constants, self._batch = constants, batch
        self._bound: dict[PlannedStep, Loop] = {}

    def __getitem__(self, step: PlannedStep) -> Loop:
        """Raises InputError for a shallow step where there is no shallow half."""
        if step not in self._bound:
            self._bound[step] = self._bind(step)
        return self._bound[step]

    def _bind(self, step: PlannedStep) -> Loop:
        engine = self._full if step.full else self._shallow
        if engine is None:
            raise InputError("the bundle has no shallow denoiser, which caching needs; use caching='off'")
        rows = step.branches * self._batch
        inputs = [tensor for tensor in engine.spec.inputs if tensor.name in self._constants]
        guided = {tensor.name for tensor in inputs if tensor.shape[0] == "guided_batch"}
        values = {tensor.name: self._constants[tensor.name] for tensor in inputs}
        return engine.bind({name: value[-rows:] if name in guided else value for name, value in values.items()})
