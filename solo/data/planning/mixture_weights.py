"""The weights of a stage's sources at every step: constant, on a schedule, changed during the run, or learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from solo.config import StageConfig
from solo.config.mixture import weight_points


class MixtureWeights:
    """The weights of `stage.sources` at every step of the stage. Steps count from 0: step n follows n others."""

    def __init__(self, stage: StageConfig) -> None:
        self.sources = stage.sources
        self._linear = stage.mixture_between == "linear"
        self._points = [weight_points(name, stage.mixture, stage.mixture_schedule) for name in stage.mixture]
        self._changes = {step: dict(stage.mixture_changes[step]) for step in sorted(stage.mixture_changes)}

    @property
    def steps(self) -> list[int]:
        """The steps from which on other weights may hold than before; between them, weights may follow a line."""
        return sorted({*(step for points in self._points for step, _ in points[1:]), *self._changes})

    @property
    def first_change(self) -> int | None:
        """The first step whose weights differ from those of step 0, or None."""
        steps = self.steps
        if not steps:
            return None
        scheduled = any(len(points) > 1 for points in self._points)
        return 1 if scheduled and self._linear else steps[0]

    def at(self, step: int) -> np.ndarray:
        """Returns the weights of a step, float64 [sources]."""
        weights = np.zeros(len(self.sources))
        for number, points in enumerate(self._points):
            steps, values = np.asarray(points, np.float64).T
            at = np.interp(step, steps, values) if self._linear else values[np.searchsorted(steps, step, "right") - 1]
            weights[number] = at
        for changed, entry in self._changes.items():
            if changed <= step:
                for name, weight in entry.items():
                    weights[self.sources.index(name)] = weight
        return weights

    def change(self, step: int, weights: Mapping[str, float]) -> None:
        """Adds weights that hold from a step on."""
        self._changes = dict(sorted({**self._changes, step: dict(weights)}.items()))
