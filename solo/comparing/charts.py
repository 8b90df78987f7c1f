"""Draws the curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from solo.comparing.reading import AXES, Run
from solo.drawing import Drawing, styled
from solo.files import resolved

# Colours that are legible on light and dark pages. Further runs reuse them with dashed lines.
COLORS = ("#4477cc", "#cc6633", "#2f9e6e", "#a95fbd", "#b08a1e", "#d0506e", "#2f9fb0", "#8a8f98")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_POINTS = 400
_SHORT = 28


def color(number: int) -> str:
    """Returns the colour of a run by its position on the page."""
    return COLORS[number % len(COLORS)]


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns [S] exponential moving averages over about 1% of the run, NaN where a value is NaN."""
    decay = 1 - 1 / max(10.0, len(values) / 100)
    total = weight = 0.0
    found = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if value == value:
            total, weight = decay * total + value, decay * weight + 1
            found[place] = total / weight
    return found


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns at most 400 points of a curve, and the lowest and highest value around each; NaN if there is none."""
    if len(x) <= _POINTS:
        return x, y, y
    edges = np.linspace(0, len(x), _POINTS + 1).astype(int)[:-1]
    low = np.fmin.reduceat(y, edges)
    high = np.fmax.reduceat(y, edges)
    return x[np.append(edges[1:], len(x)) - 1], low, high


@styled
def loss_figure(runs: Sequence[Run], axis: str, name: str, curve: Callable[[Run], np.ndarray | None]) -> Markup:
    """Draws a per-step loss of the runs that have it: the moving average as a bold line, the range of steps faintly.

    Args:
        runs: all runs of the page, in order.
        axis: name of `AXES`.
        name: of the figure, unique on the page.
        curve: returns [S] losses of a run, or None.

    Returns:
        An SVG element; empty if no run has two finite losses.
    """
    drawing = Drawing(name, height=3.6)
    axes, tops, lows = drawing.first, [], []
    for number, run in enumerate(runs):
        losses = curve(run)
        if losses is None or np.isfinite(losses).sum() < 2:
            continue
        x, mean = run.axes[axis], smooth(losses)
        places, low, high = thinned(x, losses)
        shown, _, bold = thinned(x, mean)
        tint, dash = color(number), _DASHES[number // len(COLORS) % len(_DASHES)]
        if len(x) > _POINTS:
            axes.fill_between(places, low, high, color=tint, alpha=0.16, linewidth=0)
        else:
            axes.plot(places, losses, color=tint, alpha=0.25, linewidth=0.8)
        axes.plot(shown, bold, color=tint, linestyle=dash, label=_short(run.label))
        _join(axes, runs, run, axis, mean, tint)
        if run.diverged_at is not None:
            last = np.flatnonzero(np.isfinite(mean))[-1]
            axes.plot([x[last]], [mean[last]], marker="x", color=tint, markersize=7, markeredgewidth=2)
        finite = mean[np.isfinite(mean)]
        tops.append(np.percentile(finite, 98))
        lows.append(np.nanmin(mean))
    return _finished(drawing, axis, tops, lows, name)


@styled
def held_out_figure(runs: Sequence[Run], axis: str, name: str, task: str) -> Markup:
    """Draws a held-out loss of the runs that have it, with a mark for each measurement."""
    drawing = Drawing(name, height=3.0)
    axes, values = drawing.first, []
    for number, run in enumerate(runs):
        steps, losses = run.held_out.get(task, (np.zeros(0), np.zeros(0)))
        if not np.isfinite(losses).any():
            continue
        dash = _DASHES[number // len(COLORS) % len(_DASHES)]
        axes.plot(
            run.at(axis, steps),
            losses,
            color=color(number),
            linestyle=dash,
            marker="o",
            markersize=3 if len(steps) < 100 else 0,
            label=_short(run.label),
        )
        values.append(losses[np.isfinite(losses)])
    tops = [np.percentile(found, 98) for found in values]
    return _finished(drawing, axis, tops, [found.min() for found in values], name)


def _join(axes: Axes, runs: Sequence[Run], run: Run, axis: str, mean: np.ndarray, tint: str) -> None:
    """Draws a line from a run's parent to the start of the run, if the parent is on the page."""
    parent = next((other for other in runs if run.parent and resolved(other.path) == resolved(run.parent.path)), None)
    if parent is None or run.parent is None or axis == "hours":
        return
    before = np.flatnonzero(parent.steps <= run.parent.step)
    first = np.flatnonzero(np.isfinite(mean))
    if not len(before) or not len(first):
        return
    start = smooth(parent.loss)[before[-1]]
    axes.plot(
        [parent.axes[axis][before[-1]], run.axes[axis][first[0]]],
        [start, mean[first[0]]],
        color=tint,
        linewidth=1.0,
        linestyle=(0, (2, 2)),
        marker="o",
        markersize=3,
        markevery=[0],
    )


def _finished(drawing: Drawing, axis: str, tops: Sequence[float], lows: Sequence[float], label: str) -> Markup:
    if not tops:
        return Markup("")
    axes = drawing.first
    top, low = max(tops), min(lows)
    margin = 0.06 * max(top - low, 1e-6)
    axes.set_ylim(low - margin, top + margin)
    axes.set_xlim(left=0)
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("nats per target")
    axes.xaxis.set_major_formatter("{x:,.0f}" if axis == "steps" else _scaled)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper right", ncols=2)
    return drawing.svg(f"{label} over {AXES[axis]}")


def _scaled(value: float, _: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _short(label: str) -> str:
    label = label.replace("$", r"\$")
    return label if len(label) <= _SHORT else f"{label[: _SHORT // 2]}…{label[-_SHORT // 2 + 1 :]}"
