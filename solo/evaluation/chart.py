"""The loss over a run's steps as inline SVG; colours come from the page's style sheet, by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 880, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 20, 26, 28
SMOOTHING = 0.9


@dataclass(frozen=True)
class _Frame:
    """Where steps and losses lie on the drawing."""

    last_step: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step

    def y(self, loss: float) -> float:
        share = (loss - self.low) / (self.high - self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class _Curve:
    """A stage's losses by step."""

    stage: str
    steps: list[int]
    losses: list[float]

    @cached_property
    def mean(self) -> list[float]:
        """The running mean, divided by its weight so that its first values are not drawn towards 0 (as in Adam)."""
        total, weight, found = 0.0, 0.0, []
        for loss in self.losses:
            total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
            found.append(total / weight)
        return found


def loss_chart(lines: Sequence[Mapping[str, Any]]) -> Markup:
    """Loss in nats per target: every step faintly, its running mean boldly, begun anew in each stage.

    `lines` are those of `metrics.jsonl`. Empty where there are fewer than two training steps with a finite loss.
    """
    steps = [line for line in lines if line["kind"] == "train" and line["loss"] is not None]
    if len(steps) < 2:
        return Markup("")
    stages = [
        _Curve(stage, [int(line["step"]) for line in group], [float(line["loss"]) for line in group])
        for stage, group in ((stage, list(group)) for stage, group in groupby(steps, key=lambda line: line["stage"]))
    ]
    # The axis fits the means: a single loss that towers above the rest is cut off.
    low, high = min(min(curve.losses) for curve in stages), max(max(curve.mean) for curve in stages)
    tick = _tick(high - low)
    low = floor(low / tick) * tick
    frame = _Frame(stages[-1].steps[-1], low, max(ceil(high / tick) * tick, low + tick))
    parts = [*_grid(frame, tick)]
    for curve in stages:
        parts += _draw(frame, curve)
    first, last = stages[0].losses[0], stages[-1].losses[-1]
    label = f"Loss from {first:.2f} at the first step to {last:.2f} at step {frame.last_step}"
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")


def _grid(frame: _Frame, tick: float) -> Iterator[str]:
    count = round((frame.high - frame.low) / tick)
    for loss in (frame.low + number * tick for number in range(count + 1)):
        y = frame.y(loss)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.4g}</text>'
    spacing = max(1, round(_tick(frame.last_step)))
    for step in range(0, frame.last_step + 1, spacing):
        yield f'<text class="tick" x="{frame.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:,}</text>'


def _draw(frame: _Frame, curve: _Curve) -> Iterator[str]:
    start = frame.x(curve.steps[0] - 1)
    yield f'<line class="stage" x1="{start:.1f}" x2="{start:.1f}" y1="{TOP - 14}" y2="{HEIGHT - BOTTOM}"/>'
    yield f'<text class="stage-name" x="{start + 6:.1f}" y="{TOP - 6}">{escape(curve.stage)}</text>'
    for kind, losses in (("raw", curve.losses), ("mean", curve.mean)):
        points = " ".join(
            f"{frame.x(step):.1f},{frame.y(loss):.1f}" for step, loss in zip(curve.steps, losses, strict=True)
        )
        yield f'<polyline class="{kind}" points="{points}"/>'


def _tick(span: float) -> float:
    """The distance of about five ticks over a span: 1, 2 or 5 times a power of ten."""
    rough = max(span, 1e-6) / 5
    power = 10.0 ** floor(log10(rough))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= rough)
