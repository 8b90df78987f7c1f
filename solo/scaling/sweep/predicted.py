"""The config of a predicted compute-optimal run: the sweep's base and ladder at another size."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from solo.config import Config, ConfigError, parse_config, read_config
from solo.model.flops import BatchStats
from solo.model.parameters import define
from solo.scaling.laws.table_file import Row, text
from solo.scaling.sweep.estimate import active
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.ladder import size
from solo.scaling.sweep.points import with_values
from solo.scaling.sweep.spec import Ladder, SweepSpec

_WIDEST = 65_536


def predicted_config(folder: SweepFolder, rows: Sequence[Row], n: float, d: float) -> Config:
    """Returns the config of a run with `n` parameters and `d` tokens.

    Args:
        folder: a sweep with finished runs, which give the number of tokens per step.
        rows: the results that the law was fitted to. They must agree on the values of all axes.
        n: active parameters; the nearest width is used.
        d: tokens.

    Raises:
        ConfigError: the rows differ in an axis, or no run has finished.
    """
    spec = folder.read_spec()
    base = with_values(read_config(spec.base), {**spec.set, **_changes(spec, rows)})
    visual, text_tokens, steps = _counted(folder)
    mixture = BatchStats(visual, text_tokens, 0, 0)

    start = parse_config(base, origin=spec.base)
    ladder = spec.ladder or Ladder(width=(start.model.width,))

    def at(width: int) -> Config:
        return parse_config(with_values(base, size(ladder, start, width)), origin=spec.base)

    def distance(width: int) -> float:
        config = at(width)
        vocab_size = None if config.data.tokenizer.path else config.data.tokenizer.vocab_size
        return log(active(define(config, vocab_size), mixture) / n)

    unit = ladder.head_dim or start.model.dim_per_head
    low, high = 1, _WIDEST // unit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if distance(middle * unit) <= 0 else (low, middle)
    width = min((low, high), key=lambda count: abs(distance(count * unit))) * unit
    return _trained(at(width), spec, max(2, round(d * steps / (visual + text_tokens))))


def _changes(spec: SweepSpec, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the dotted keys and values of the axes in the runs of these rows."""
    of_rows = {name: {text(row.get(name)) for row in rows} for name in spec.axes}
    fitting = [
        changes
        for labels, changes in spec.combinations()
        if all(of_rows[name] == {text(value)} for name, value in labels.items())
    ]
    if len(fitting) != 1:
        several = ", ".join(name for name, values in of_rows.items() if len(values) != 1)
        raise ConfigError(f"the law was fitted to runs that differ in {several}: choose with --where AXIS=VALUE")
    return fitting[0]


def _counted(folder: SweepFolder) -> tuple[int, int, int]:
    """Returns visual tokens, text tokens and steps of all finished runs."""
    visual = read = steps = 0
    for point in folder.read_plan():
        result = folder.result(point.id)
        if result and result["status"] == "done":
            visual, read = visual + result["visual_tokens"], read + result["text_tokens"]
            steps += point.steps
    if not steps:
        raise ConfigError(f"{folder.path}: no run is finished")
    return visual, read, steps


def _trained(config: Config, spec: SweepSpec, steps: int) -> Config:
    stage = config.stages[0]
    optimizer: dict[str, Any] = {}
    if spec.warmup is not None:
        optimizer["warmup_steps"] = max(1, round(spec.warmup * steps))
    if spec.design and spec.design.horizons:
        decay = max(1, round(spec.design.horizons.decay * steps))
        optimizer |= {"schedule": "wsd", "decay_steps": decay}
    changed = stage.model_copy(update={"steps": steps, "optimizer": stage.optimizer.model_copy(update=optimizer)})
    return config.model_copy(update={"name": f"{spec.name}-predicted", "stages": (changed,)})
