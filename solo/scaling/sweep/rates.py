"""The best learning rate of each width. If it is the same for all widths, it can be tuned at a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from solo.config import ConfigError
from solo.scaling.sweep.folder import SweepFolder

AXIS = "stages.0.optimizer.learning_rate"
_FEWEST_RATES = 3


@dataclass(frozen=True)
class Curve:
    """Losses of one width for several learning rates, smallest rate first, after the same number of steps.

    best, best_loss   vertex of the parabola through the lowest point and its neighbours; None if the lowest point is
                      at an edge
    """

    width: int
    steps: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best: float | None
    best_loss: float | None
    group: str = ""

    @property
    def name(self) -> str:
        """The group, if there is one, and the width."""
        return _name(self.group, self.width)


def curves(folder: SweepFolder, loss: str, by: str | None = None) -> list[Curve]:
    """Returns a curve for each width of a sweep over `stages.0.optimizer.learning_rate`.

    Each width uses its longest length with at least three finished learning rates. Runs that differ only in other axes,
    such as the seed, are averaged.

    Args:
        folder: the sweep.
        loss: one of its held-out losses.
        by: an axis of the sweep, such as the design: each of its values, a group, has its own curves.

    Raises:
        ConfigError: the sweep has no such axis, or a width has no length with three finished learning rates.
    """
    found: dict[tuple[str, int], dict[int, dict[float, list[float]]]] = {}
    for point in folder.read_plan():
        result = folder.result(point.id)
        if point.is_stable or result is None or result["status"] != "done":
            continue
        if AXIS not in point.labels:
            raise ConfigError(f"{folder.path}: the sweep has no axis {AXIS}")
        if loss not in result["losses"]:
            raise ConfigError(f"{folder.path}: there is no loss {loss!r}; there are {', '.join(result['losses'])}")
        if by is not None and by not in point.labels:
            raise ConfigError(f"--by {by}: the sweep has the axes {', '.join(point.labels)}")
        group = str(point.labels[by]) if by is not None else ""
        rates = found.setdefault((group, point.config.model.width), {}).setdefault(point.steps, {})
        rates.setdefault(float(point.labels[AXIS]), []).append(float(result["losses"][loss]))
    if not found:
        raise ConfigError(f"{folder.path}: no run is finished")
    groups = list(dict.fromkeys(group for group, _ in found))  # in the order of the plan
    return [_curve(*key, found[key]) for key in sorted(found, key=lambda key: (groups.index(key[0]), key[1]))]


def _curve(group: str, width: int, lengths: dict[int, dict[float, list[float]]]) -> Curve:
    steps = max((steps for steps, losses in lengths.items() if len(losses) >= _FEWEST_RATES), default=None)
    if steps is None:
        most = max(map(len, lengths.values()))
        raise ConfigError(
            f"{_name(group, width)} has {most} finished learning rates of one length; an optimum needs three"
        )
    rates = tuple(sorted(lengths[steps]))
    values = tuple(float(np.mean(lengths[steps][rate])) for rate in rates)
    best, best_loss = vertex(rates, values) or (None, None)
    return Curve(width, steps, rates, values, best, best_loss, group)


def _name(group: str, width: int) -> str:
    return f"{group}, width {width}" if group else f"width {width}"


def vertex(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """Returns rate and loss at the vertex of a parabola, in log rate, through the lowest point and its neighbours.

    Returns None if the lowest point is at an edge.
    """
    lowest = int(np.argmin(losses))
    if lowest in (0, len(rates) - 1):
        return None
    near = slice(lowest - 1, lowest + 2)
    centre = log(rates[lowest])
    square, slope, level = np.polyfit(np.log(np.asarray(rates[near])) - centre, np.asarray(losses[near]), 2)
    return exp(centre - slope / (2 * square)), float(level - slope**2 / (4 * square))
