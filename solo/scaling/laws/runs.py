"""The runs that a law is fitted to, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from solo.scaling.laws.law import FLOPS_PER_PARAMETER_AND_TOKEN, Array

# The active parameters of one model differ slightly with the share of patches among its tokens.
SAME_SIZE = 1.02
_SAME_LENGTH = 1.005  # the tokens of two seeds differ slightly too
_SAME_BUDGET = 1.1  # sizes are discrete, so runs planned for one budget differ by a few percent


@dataclass(frozen=True)
class Runs:
    """R finished runs, with one of their losses.

    id       name of each run
    n        parameters (the active ones, if the model is sparse): float64 [R]
    d        training tokens: float64 [R]
    flops    training compute: float64 [R]
    loss     nats: float64 [R]
    cluster  id of the stable run that a run branched from, or its own id; runs of a cluster are not independent
    unique   distinct training tokens: float64 [R], infinite if none repeats
    score    score of a downstream task: float64 [R], NaN if missing
    group    place of the run's group in a joint law: int [R]
    more     other variables of laws by name, such as `images` (tokens of images): float64 [R]
    """

    id: tuple[str, ...]
    n: Array
    d: Array
    flops: Array
    loss: Array
    cluster: tuple[str, ...]
    unique: Array
    score: Array
    group: np.ndarray
    more: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.n)

    def __getitem__(self, rows: Any) -> Runs:
        """Returns the runs selected by an index array or a boolean mask."""
        places = np.arange(len(self))[rows]
        picked: dict[str, Any] = {
            entry.name: tuple(map(value.__getitem__, places.tolist())) if isinstance(value, tuple) else value[places]
            for entry in fields(self)
            if entry.name != "more"
            for value in [getattr(self, entry.name)]
        }
        picked["more"] = {name: values[places] for name, values in self.more.items()}
        return Runs(**picked)

    @property
    def flops_factor(self) -> float:
        """Median compute per parameter and token; 6 if compute was not measured."""
        return float(np.median(self.flops / (self.n * self.d)))

    @property
    def clusters(self) -> int:
        """Number of independent training runs."""
        return len(set(self.cluster))

    def variables(self) -> dict[str, Array]:
        """Returns the arrays that a law is evaluated on."""
        found = {"n": self.n, "d": self.d, "flops": self.flops, "unique": self.unique, "group": self.group}
        return {**found, **self.more}

    def nameless(self, rows: np.ndarray) -> Runs:
        """Returns the runs of a boolean mask without `id` and `cluster`, which is cheap; for checks of the numbers."""
        numbers = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        more = {name: values[rows] for name, values in self.more.items()}
        return replace(self, id=(), cluster=(), more=more, **numbers)

    def with_loss(self, loss: Array) -> Runs:
        """Returns the same runs with other losses."""
        return replace(self, loss=np.asarray(loss, float))

    def parts(self, count: int) -> list[Runs]:
        """Returns the runs of each of `count` groups; all runs if there are no groups."""
        return [self[self.group == place] for place in range(count)] if count else [self]


def join(parts: Sequence[Runs]) -> Runs:
    """Returns the runs of several groups as one, with the place of their group. Clusters do not span groups."""
    joined: dict[str, Any] = {
        entry.name: sum((getattr(part, entry.name) for part in parts), ())
        if isinstance(getattr(parts[0], entry.name), tuple)
        else np.concatenate([getattr(part, entry.name) for part in parts])
        for entry in fields(Runs)
        if entry.name not in ("more", "group", "cluster")
    }
    joined["cluster"] = tuple(f"{place}/{name}" for place, part in enumerate(parts) for name in part.cluster)
    more = {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more}
    return Runs(**joined, group=np.repeat(np.arange(len(parts)), [len(part) for part in parts]), more=more)


def make_runs(
    n: Any,
    d: Any,
    loss: Any,
    flops: Any = None,
    cluster: Sequence[str] | None = None,
    unique: Any = None,
    id: Sequence[str] | None = None,
    score: Any = None,
    **more: Any,
) -> Runs:
    """Builds runs from plain sequences. Compute defaults to 6 n d; `more` holds other variables of laws.

    Raises:
        ValueError: the sequences differ in length, or a number is not positive and finite.
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
        cluster=tuple(id if cluster is None else cluster),
        unique=np.full(len(n), np.inf) if unique is None else np.asarray(unique, float),
        score=np.full(len(n), np.nan) if score is None else np.asarray(score, float),
        group=np.zeros(len(n), int),
        more={name: np.asarray(values, float) for name, values in more.items()},
    )
    for name, values in {**vars(runs), **runs.more}.items():
        if name != "more" and len(values) != len(runs):
            raise ValueError(f"{name} has {len(values)} entries for {len(runs)} runs")
    for name in ("n", "d", "flops", "loss"):
        values = getattr(runs, name)
        if len(wrong := np.flatnonzero(~(np.isfinite(values) & (values > 0)))):
            raise ValueError(f"{name} of {runs.id[wrong[0]]} is {values[wrong[0]]}; it must be positive and finite")
    return runs


def group_budgets(flops: Array) -> list[np.ndarray]:
    """Groups runs by compute budget. Returns the indices of each group, smallest budget first."""
    return _groups(flops, _SAME_BUDGET)


def group_sizes(n: Array) -> list[np.ndarray]:
    """Groups runs by number of parameters. Returns the indices of each group, smallest first."""
    return _groups(n, SAME_SIZE)


def group_repeats(runs: Runs) -> list[np.ndarray]:
    """Groups runs by number of parameters and tokens. Returns the indices of each group."""
    cells = []
    for size in group_sizes(runs.n):
        cells += [size[places] for places in _groups(runs.d[size], _SAME_LENGTH)]
    return cells


def _groups(values: Array, factor: float) -> list[np.ndarray]:
    """Groups nearly equal values: the largest of a group is at most `factor` times the smallest.

    Returns the indices of each group, smallest values first.
    """
    order = np.argsort(-values, kind="stable")
    falling = -values[order]
    groups, first = [], 0
    while first < len(order):
        last = int(np.searchsorted(falling, falling[first] / factor, side="right"))
        groups.append(np.sort(order[first : max(last, first + 1)]))
        first = max(last, first + 1)
    return groups[::-1]
