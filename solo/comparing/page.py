"""Renders the comparison of several runs as a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

import solo
from solo.comparing.charts import color, held_out_figure, loss_figure, smooth
from solo.comparing.reading import AXES, Run
from solo.config.compare import flat
from solo.files import write_whole
from solo.units import duration, short

_SOURCES = 12  # figures at most
_OF_THE_FOLDER = ("name", "folder")


def write_page(path: Path, runs: Sequence[Run]) -> None:
    """Writes the page atomically."""
    write_whole(path, render(runs))


def render(runs: Sequence[Run]) -> str:
    """Returns the page's HTML. Equal arguments give equal text."""
    source = files("solo.comparing").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    tasks = list(dict.fromkeys(task for run in runs for task in run.held_out))
    sources = list(dict.fromkeys(name for run in runs for name in run.by_source))
    return environment.from_string(source).render(
        axes=AXES,
        figures={axis: _figures(runs, axis, tasks, sources) for axis in AXES},
        runs=[_row(number, run, tasks) for number, run in enumerate(runs)],
        tasks=tasks,
        differences=differences(runs),
        unread=[run.label for run in runs if run.config is None],
        more_sources=max(0, len(sources) - _SOURCES),
        version=solo.__version__,
    )


def _figures(runs: Sequence[Run], axis: str, tasks: Sequence[str], sources: Sequence[str]) -> list[tuple[str, Any]]:
    """Returns the figures on an axis with their titles, without figures that have no curve."""
    found = [("Training loss", loss_figure(runs, axis, f"loss-{axis}", lambda run: run.loss))]
    for number, task in enumerate(tasks):
        found.append((f"Held-out loss, {task}", held_out_figure(runs, axis, f"held-out-{number}-{axis}", task)))
    if len(sources) > 1:
        for number, name in enumerate(sources[:_SOURCES]):
            figure = loss_figure(runs, axis, f"source-{number}-{axis}", partial(_on_source, name))
            found.append((f"Training loss on {name}", figure))
    return [(title, figure) for title, figure in found if figure]


def _on_source(name: str, run: Run) -> np.ndarray | None:
    return run.by_source.get(name)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Returns the config keys that differ between runs, with the value of every run; empty if it lacks the key."""
    configs = [None if run.config is None else flat(run.config) for run in runs]
    known = [config for config in configs if config is not None]
    keys = dict.fromkeys(key for config in known for key in config)
    found = []
    for key in keys:
        values = [config.get(key) for config in known]
        if key not in _OF_THE_FOLDER and any(value != values[0] for value in values):
            found.append((key, ["" if config is None else _value(config.get(key)) for config in configs]))
    return found


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(number: int, run: Run, tasks: Sequence[str]) -> dict[str, Any]:
    mean = smooth(run.loss)
    finite = mean[np.isfinite(mean)]
    glance, hours = run.glance, float(run.axes["hours"][-1])
    parent = run.parent
    return {
        "color": color(number),
        "label": run.label,
        "state": glance.state,
        "branch": f"from step {parent.step:,} of {parent.path.name}" if parent else "",
        "steps": f"{int(run.steps[-1]):,}" + (f" of {glance.steps:,}" if glance.steps else ""),
        "tokens": short(float(run.axes["tokens"][-1])),
        "flops": f"{float(run.axes['flops'][-1]):.2e}",
        "time": duration(hours * 3600),
        "loss": f"{finite[-1]:.4f}" if len(finite) else "",
        "diverged": "" if run.diverged_at is None else f"not finite from step {run.diverged_at:,}",
        "held_out": [_last(run, task) for task in tasks],
        "tokens_per_second": "" if glance.tokens_per_second is None else f"{glance.tokens_per_second:,.0f}",
        "goodput": "" if glance.goodput is None else f"{glance.goodput:.1%}",
    }


def _last(run: Run, task: str) -> str:
    _, losses = run.held_out.get(task, (None, np.zeros(0)))
    if not len(losses):
        return ""
    return f"{losses[-1]:.4f}" if np.isfinite(losses[-1]) else "not finite"
