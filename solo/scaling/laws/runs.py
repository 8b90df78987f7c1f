"""The runs that one law is fitted to, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from solo.scaling.laws.law import FLOPS_PER_PARAMETER_AND_TOKEN, Array


@dataclass(frozen=True)
class Runs:
    """R finished runs and one of their losses.

    id       name of each run
    n        parameters, the active ones of a sparse model: float64 [R]
    d        tokens seen in training: float64 [R]
    flops    training compute: float64 [R]
    loss     nats: float64 [R]
    trunk    name of the run it was branched from, its own where there is none; runs of a trunk are one cluster
    unique   different tokens among those seen: float64 [R], infinite where nothing repeats
    score    of a downstream task: float64 [R], NaN where there is none
    """

    id: tuple[str, ...]
    n: Array
    d: Array
    flops: Array
    loss: Array
    trunk: tuple[str, ...]
    unique: Array
    score: Array

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: Any) -> Runs:
        """The runs at the places of an index array or where a mask is True."""
        places = np.arange(len(self))[rows]
        picked: dict[str, Any] = {
            field.name: tuple(value[place] for place in places) if isinstance(value, tuple) else value[places]
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return Runs(**picked)

    @property
    def flops_factor(self) -> float:
        """Compute per parameter and token, the median of the runs; 6 where compute was not measured."""
        return float(np.median(self.flops / (self.n * self.d)))

    def variables(self) -> dict[str, Array]:
        """What a law is evaluated on."""
        return {"n": self.n, "d": self.d, "flops": self.flops, "unique": self.unique}

    def with_loss(self, loss: Array) -> Runs:
        """The same runs with other losses."""
        return replace(self, loss=np.asarray(loss, float))


def make_runs(
    n: Any,
    d: Any,
    loss: Any,
    flops: Any = None,
    trunk: Sequence[str] | None = None,
    unique: Any = None,
    id: Sequence[str] | None = None,
    score: Any = None,
) -> Runs:
    """Runs from plain sequences. Compute is 6 n d where it is not given.

    Raises:
        ValueError: the sequences are not equally long, or a number is not positive and finite.
    """
    n, d, loss = (np.atleast_1d(np.asarray(values, float)) for values in (n, d, loss))
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * n * d if flops is None else np.asarray(flops, float)
    id = [f"run {number}" for number in range(1, len(n) + 1)] if id is None else list(id)
    runs = Runs(
        id=tuple(id),
        n=n,
        d=d,
        flops=flops,
        loss=loss,
        trunk=tuple(id if trunk is None else trunk),
        unique=np.full(len(n), np.inf) if unique is None else np.asarray(unique, float),
        score=np.full(len(n), np.nan) if score is None else np.asarray(score, float),
    )
    for field in fields(runs):
        if len(getattr(runs, field.name)) != len(runs):
            raise ValueError(f"{field.name} has {len(getattr(runs, field.name))} entries for {len(runs)} runs")
    for name in ("n", "d", "flops", "loss"):
        values = getattr(runs, name)
        if len(wrong := np.flatnonzero(~(np.isfinite(values) & (values > 0)))):
            raise ValueError(f"{name} of {runs.id[wrong[0]]} is {values[wrong[0]]}; it must be positive and finite")
    return runs
