"""Losses over a run's steps, as figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from solo.drawing import ACCENT, INK, QUIET, Drawing, shades, styled
from solo.evaluation.results import titled
from solo.training.evaluators import TRAINED

SMOOTHING = 0.9


@styled
def loss_chart(lines: Sequence[Mapping[str, Any]]) -> Markup:
    """Draws the loss in nats per target over the steps: faint for every step, bold for the running mean of a stage.

    Args:
        lines: lines of `metrics.jsonl`.

    Returns:
        An SVG element; empty if there are fewer than two training steps with a finite loss.
    """
    steps = [line for line in lines if line["kind"] == "train" and line["loss"] is not None]
    if len(steps) < 2:
        return Markup("")
    drawing = Drawing("loss", height=3.0)
    draw_losses(drawing.first, steps)
    first, last = steps[0], steps[-1]
    return drawing.svg(
        f"Loss from {first['loss']:.2f} at the first step to {last['loss']:.2f} at step {last['step']:,}"
    )


def draw_losses(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    """Draws two curves for each stage. The axis is scaled to the means, so single high losses are cut off."""
    top = -float("inf")
    for stage, group in groupby(steps, key=lambda line: line["stage"]):
        numbers, losses = zip(*((line["step"], line["loss"]) for line in group), strict=True)
        mean = running_mean(losses)
        top = max(top, *mean)
        axes.plot(numbers, losses, color=ACCENT, alpha=0.28, linewidth=0.8)
        axes.plot(numbers, mean, color=ACCENT)
        axes.axvline(numbers[0] - 1, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(
            stage,
            (numbers[0] - 1, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, 4),
            textcoords="offset points",
            color=INK,
            parse_math=False,
        )
    low = min(line["loss"] for line in steps)
    margin = 0.03 * max(top - low, 1e-6)
    axes.set_ylim(low - margin, top + margin)
    axes.set_xlim(0, steps[-1]["step"])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")


def held_out_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Returns the finite held-out losses of every evaluator as (step, nats), sorted by step.

    Keys are the evaluators' names, followed by the name of the weights if these are an average. If a step has several
    lines, the last one is used.
    """
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["kind"] == "held_out" and line["loss"] is not None:
            found.setdefault(titled(line["task"], line.get("weights", TRAINED)), {})[line["step"]] = line["loss"]
    return {name: sorted(losses.items()) for name, losses in found.items()}


@styled
def held_out_chart(lines: Sequence[Mapping[str, Any]]) -> Markup:
    """Draws the held-out losses in nats per target over the steps. A ring marks the lowest point of each curve.

    Args:
        lines: lines of `metrics.jsonl`.

    Returns:
        An SVG element; empty if nothing was measured twice.
    """
    curves = {name: points for name, points in held_out_curves(lines).items() if len(points) > 1}
    if not curves:
        return Markup("")
    drawing = Drawing("held-out", height=3.0)
    axes = drawing.first
    for (name, points), color in zip(curves.items(), shades(len(curves)), strict=True):
        steps, losses = zip(*points, strict=True)
        label = name.replace("$", r"\$")
        axes.plot(steps, losses, color=color, marker="o", markersize=3.5 if len(points) < 40 else 0, label=label)
        place = losses.index(min(losses))
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": color}
        axes.plot(steps[place], losses[place], linestyle="none", **ring)
    axes.legend()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    return drawing.svg("Held-out losses over the steps of the run: " + ", ".join(curves))


def running_mean(losses: Sequence[float]) -> list[float]:
    """Returns the exponential running mean, with the bias correction of Adam."""
    total, weight, found = 0.0, 0.0, []
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        found.append(total / weight)
    return found
