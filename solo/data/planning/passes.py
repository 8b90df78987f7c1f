"""How often a stage will read each source, estimated before it is planned, and the check of `max_epochs`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from solo.config import ConfigError, StageConfig
from solo.data.planning.draws import Draws, most_draws
from solo.data.planning.mixture import SourceSize
from solo.data.planning.row_shape import RowShape

# Parts of a stage; each is assumed to have the weights of its middle.
_PARTS = 512
# Estimates may be this far off, because rows are not quite full.
_MARGIN = 1.01


def expected_draws(
    stage: StageConfig, draws: Draws, sizes: Sequence[SourceSize], means: np.ndarray, shape: RowShape
) -> tuple[np.ndarray, float]:
    """Estimates the draws of each source in a stage counted in steps.

    Args:
        stage: its steps, rows and caps.
        draws: its mixture.
        sizes: sizes of the sources.
        means: float64 [sources, 3], mean patch, text and target slots of a source's chunks.
        shape: slots of a row.

    Returns:
        The draws of each source, float64 [sources], and the share of the stage's rows that they fill, below 1 only if
        every source reaches its cap.
    """
    assert stage.steps is not None
    most = most_draws(stage, sizes)
    found = np.zeros(len(sizes))
    edges = np.unique(np.linspace(0, stage.steps, min(_PARTS, stage.steps) + 1).astype(np.int64))
    filled = 0.0
    for start, stop in pairwise(edges.tolist()):
        rows = float(stop - start) * stage.batch_rows
        wanted = draws.shares(int((start + stop) // 2) // draws.window_steps)
        while rows > 1e-9:
            shares = wanted if most is None else np.where(found < most - 1e-6, wanted, 0.0)
            if not shares.any():
                break
            shares = shares / shares.sum()
            per_row = documents_per_row(shares @ means, shape)
            room = np.inf if most is None else np.min((most - found)[shares > 0] / shares[shares > 0])
            count = min(rows * per_row, room)
            found += shares * count
            rows -= count / per_row
            filled += count / per_row
    return found, filled / (stage.steps * stage.batch_rows)


def check_passes(
    stage: StageConfig, draws: Draws, sizes: Sequence[SourceSize], means: np.ndarray, shape: RowShape
) -> dict[str, float]:
    """Returns the expected passes over each source, and compares them with `max_epochs`.

    Raises:
        ConfigError: a source would be read more often than `max_epochs` allows, or no source is left before the end.
    """
    chunks = np.asarray([size.chunks for size in sizes])
    if stage.steps is None:
        return {name: stage.mixture[name] * (stage.epochs or 0) for name in stage.mixture}
    found, filled = expected_draws(stage, draws, sizes, means, shape)
    if stage.max_epochs is not None:
        if stage.when_exhausted == "refuse":
            free = stage.model_copy(update={"max_epochs": None})
            _refuse(stage, expected_draws(free, draws, sizes, means, shape)[0], most_draws(stage, sizes), chunks)
        if filled < 1 / _MARGIN:
            raise ConfigError(
                f"stage {stage.name!r}: every source reaches max_epochs after about {filled * stage.steps:,.0f} of"
                f" {stage.steps:,} steps; raise max_epochs, or lower steps"
            )
    return dict(zip(stage.sources, (found / chunks).tolist(), strict=True))


def _refuse(stage: StageConfig, wanted: np.ndarray, most: np.ndarray | None, chunks: np.ndarray) -> None:
    assert most is not None
    over = [
        f"  {name}: about {count / size:.2f} times, {limit / size:g} allowed ({count:,.0f} draws from {size:,} chunks)"
        for name, count, limit, size in zip(stage.sources, wanted, most, chunks, strict=True)
        if count > limit * _MARGIN
    ]
    if over:
        raise ConfigError(
            f"stage {stage.name!r} would read these sources more often than max_epochs allows:\n"
            + "\n".join(over)
            + "\nlower their weights or the steps, raise max_epochs, or set when_exhausted: redistribute"
        )


def documents_per_row(means: np.ndarray, shape: RowShape) -> float:
    """Returns how many documents of these mean needs, float64 [3], fill a row."""
    slots = np.asarray([shape.patch_slots, shape.text_slots, shape.target_slots], np.float64)
    return float(np.min(slots[means > 0] / means[means > 0]))
