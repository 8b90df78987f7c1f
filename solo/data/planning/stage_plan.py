"""The rows of every batch, as a pure function of (config, seed, step).

Lengths of documents come from the index; nothing is read or decoded. `chunks` splits documents, `mixture` draws them,
and `packing_windows` and `packing` place them in rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from solo.config import ConfigError, DataConfig, ImageConfig, StageConfig
from solo.data.planning import tuning
from solo.data.planning.chunks import Chunks, make_chunks
from solo.data.planning.draws import Draws, DrawState
from solo.data.planning.mixture import SourceSize, draw_weights
from solo.data.planning.packing import MAX_SLOTS
from solo.data.planning.packing_windows import PackingPlanner, PackingState
from solo.data.planning.passes import check_passes, documents_per_row
from solo.data.planning.permutation import derive_key
from solo.data.planning.row_shape import RowShape, mean_needs, row_shapes, sample_index, text_per_patch
from solo.data.store.index import SourceIndex


class Chunk(NamedTuple):
    """A document, or a part of one that is too long for a row.

    source  number of its source in mixture order
    record  number of its record in the source
    start   first slot in the record's reading order
    stop    one past the last slot
    length  slots of the whole record
    needs   patch, text and target slots
    """

    source: int
    record: int
    start: int
    stop: int
    length: int
    needs: tuple[int, int, int]


@dataclass(frozen=True)
class PlanStatistics:
    """Sums over a range of steps.

    rows       rows, empty ones included
    slots      slots of those rows
    useful     int64 [3]: patch, text and target slots that hold something
    documents  chunks of each source, in mixture order
    """

    rows: int
    slots: int
    useful: np.ndarray
    documents: tuple[int, ...]

    @property
    def fill(self) -> float:
        """Share of all patch and text slots that hold something."""
        return float(self.useful[:2].sum() / max(self.slots, 1))


class StagePlan:
    """The batches of a stage. Thread-safe; pickles without the rows that were planned.

    Args:
        stage: mixture, rows and length.
        indexes: sources of the stage (`stage.sources`), in that order.
        image: how images become patches.
        data: rows of a packing window, and what to do with documents that are too long.
        seed: seed of the run.

    Attributes:
        shape: slots of a row, given in the stage or chosen so that the data fills them.
        chunks: the chunks of each source, and how many of its records were split or dropped.
        expected_passes: how often the stage is expected to read each source, to about 1%.

    Raises:
        ConfigError: no record of a source fits a row, no shape can be found, or a source would pass `max_epochs`.
    """

    def __init__(
        self, stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig, seed: int
    ) -> None:
        if tuple(indexes) != stage.sources:
            raise ConfigError(f"stage {stage.name!r} mixes {list(stage.sources)}, but was given {list(indexes)}")
        self.stage = stage
        # What is decided during the run must not touch the steps before it.
        planned, first = stage.planned(), {name: indexes[name] for name in stage.mixture}
        self.shape = choose_row_shape(planned, first, image, data)
        if max(astuple(self.shape)) > MAX_SLOTS:
            raise ConfigError(f"stage {stage.name!r}: {self.shape} has more than {MAX_SLOTS:,} slots of a kind")
        self.chunks = _chunks(planned, indexes, image, data, self.shape)
        # A batch must not span two windows.
        window_rows = -(-data.packing_window // stage.batch_rows) * stage.batch_rows
        self._planner, self._key = _planner(stage, self.chunks, self.shape, window_rows, seed)
        if stage.tokens is not None:
            self.stage = stage = stage.model_copy(update={"steps": self._steps_of(stage.tokens, window_rows)})
        self._means = np.asarray([table.totals / len(table) for table in self.chunks.values()])
        self.expected_passes = check_passes(stage, self._planner.draws, _sizes(self.chunks), self._means, self.shape)

    def _steps_of(self, tokens: int, window_rows: int) -> int:
        """Returns the steps that so many tokens take, at the mean of the first packing windows."""
        rows = tuning.COUNTED_WINDOWS * window_rows
        mean = float(_statistics(self._planner, self.shape, 0, rows).useful[:2].sum()) / rows * self.stage.batch_rows
        return max(1, math.ceil(tokens / mean))

    @cached_property
    def num_steps(self) -> int:
        """Steps of the stage. If the stage is counted in epochs, this plans all of it."""
        if self.stage.steps is not None:
            return self.stage.steps
        number = 0
        while not self._planner.is_end(self._planner.window(number).following):
            number += 1
        last = np.count_nonzero(np.diff(self._planner.window(number).ends, prepend=0))
        return -(-(number * self._planner.rows + int(last)) // self.stage.batch_rows)

    def rows(self, step: int) -> list[list[Chunk]]:
        """Returns the B rows of a batch, each a list of chunks in row order. Steps may be asked for in any order.

        Raises:
            IndexError: the stage has no such step.
        """
        return [self.row(step, row) for row in range(self.stage.batch_rows)]

    def row(self, step: int, row: int) -> list[Chunk]:
        """Returns one of `rows(step)`."""
        if not (0 <= step < self.num_steps and 0 <= row < self.stage.batch_rows):
            raise IndexError(
                f"row {row} of step {step} of stage {self.stage.name!r}, which has {self.num_steps} steps of "
                f"{self.stage.batch_rows} rows"
            )
        number, place = divmod(step * self.stage.batch_rows + row, self._planner.rows)
        window = self._planner.window(number)
        return self._chunks(window.chunks[window.rows(place, place + 1)])

    def snapshot(self, step: int) -> dict[str, Any]:
        """Returns the planner's state before a step as a small JSON mapping, from which `seek` continues."""
        number = step * self.stage.batch_rows // self._planner.rows
        state = self._planner.state(number)
        return {
            "plan": f"{self._key:016x}",
            "window": number,
            "drawn": state.drawn._asdict(),
            "waiting": state.carry.tolist(),
        }

    def seek(self, snapshot: Mapping[str, Any]) -> None:
        """Continues from a snapshot.

        Raises:
            ValueError: the snapshot comes from another plan (config, data or seed).
        """
        if snapshot["plan"] != f"{self._key:016x}":
            raise ValueError(
                f"the snapshot of stage {self.stage.name!r} comes from another plan: its prepared data, mixture, row "
                "shape, packing window, batch_rows or seed have changed since"
            )
        if "carry" in snapshot:  # written by an earlier version, which knew only constant mixtures
            drawn = DrawState(int(snapshot["cursor"]))
            waiting = self._planner.numbers(*self._planner.draws.stream.lookup(np.asarray(snapshot["carry"], np.int64)))
        else:
            state = snapshot["drawn"]
            drawn = DrawState(int(state["cursor"]), tuple(state["counts"]), tuple(state["credit"]))
            waiting = np.asarray(snapshot["waiting"], np.int64)
        self._planner.set_state(int(snapshot["window"]), PackingState(drawn, waiting))

    @property
    def rounded_up(self) -> dict[str, float]:
        """The sources that are drawn at least twice as often as their weight says, because they are in every block."""
        if self.stage.steps is None:
            return {}
        drawn = self._planner.draws.shares(0)
        wanted = draw_weights(self.stage, _sizes(self.chunks))
        return {
            name: float(drawn[number] / wanted[number])
            for number, name in enumerate(self.stage.sources)
            if drawn[number] > 2 * wanted[number] > 0
        }

    def weights(self, step: int) -> dict[str, float]:
        """Returns the weights with which the documents of a step's packing window are drawn."""
        draws = self._planner.draws
        found = draws.weights.at(step - step % draws.window_steps)
        return dict(zip(self.stage.sources, found.tolist(), strict=True))

    def shares(self, step: int) -> dict[str, float]:
        """Returns each source's share of the documents drawn for a step's packing window, before any cap."""
        draws = self._planner.draws
        return dict(zip(self.stage.sources, draws.shares(step // draws.window_steps).tolist(), strict=True))

    @property
    def weight_steps(self) -> list[int]:
        """The steps at which other weights are given than before, without those that are learned; empty if none are."""
        return self._planner.draws.weights.steps

    def expected_fill(self, step: int) -> float:
        """Returns the largest share of slots that rows can fill in the long run with the weights of a step.

        Rows that suit one mixture of patches and text leave slots of another one empty.
        """
        draws = self._planner.draws
        means = draws.shares(step // draws.window_steps) @ self._means
        return documents_per_row(means, self.shape) * float(means[:2].sum()) / self.shape.slots

    def change_weights(self, step: int, weights: Mapping[str, float]) -> int:
        """Changes the weights from a step on, and forgets what was planned after it.

        Returns:
            The step from which they hold; see `takes_effect`.
        """
        held_from = self.takes_effect(step)
        self._planner.change_weights(held_from // self._planner.draws.window_steps, weights)
        return held_from

    def takes_effect(self, step: int) -> int:
        """Returns the step from which weights given for a step hold: the first one of a packing window."""
        return -(-step // self._planner.draws.window_steps) * self._planner.draws.window_steps

    def statistics(self, start: int, stop: int) -> PlanStatistics:
        """Returns sums over the steps [start, stop), which it plans if necessary."""
        return _statistics(self._planner, self.shape, start * self.stage.batch_rows, stop * self.stage.batch_rows)

    def fill(self, steps: int) -> float:
        """Returns the share of all slots of the first `steps` steps that hold something."""
        return self.statistics(0, steps).fill

    def _chunks(self, numbers: np.ndarray) -> list[Chunk]:
        source = self._planner.source(numbers)
        found = np.empty((len(numbers), 7), np.int64)
        for number, table in enumerate(self.chunks.values()):
            mine = source == number
            found[mine] = table.bounds(numbers[mine] - self._planner.first_chunk[number])
        return [
            Chunk(name, record, start, stop, length, (patches, text, targets))
            for name, (record, start, stop, length, patches, text, targets) in zip(
                source.tolist(), found.tolist(), strict=True
            )
        ]


def choose_row_shape(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig
) -> RowShape:
    """Returns the slots of a stage's rows, given in the stage or chosen so that the data fills them.

    Packs some rows of a sample of the records with each of `row_shapes`, and takes the first shape that fills well, or
    else the one that fills best.

    Raises:
        ConfigError: a source is empty, or no shape is near `row_slots`.
    """
    shapes = row_shapes(stage, indexes, image, data)
    if len(shapes) == 1:
        return shapes[0]
    # A stage counted in epochs draws from each source by its size, which a sample does not have.
    weights = {name: weight * (len(indexes[name]) if stage.epochs else 1) for name, weight in stage.mixture.items()}
    endless = stage.model_copy(update={"steps": 1, "epochs": None, "mixture": weights})
    sample = {name: sample_index(index, tuning.TRIED_RECORDS) for name, index in indexes.items()}
    best, best_fill = shapes[0], 0.0
    for shape in shapes:
        fill = _try_shape(endless, sample, image, data, shape)
        if fill > best_fill:
            best, best_fill = shape, fill
        if fill > tuning.GOOD_FILL:
            break
    return best


def _try_shape(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig, shape: RowShape
) -> float:
    """Returns the expected long-run fill of rows of a shape; 0 if the data does not fit it."""
    try:
        chunks = _chunks(stage, indexes, image, data, shape)
    except ConfigError:
        return 0.0
    planner, _ = _planner(stage, chunks, shape, tuning.TRIED_ROWS, seed=0)
    found = _statistics(planner, shape, 0, tuning.TRIED_ROWS)
    used = found.useful[:2] / tuning.TRIED_ROWS
    # A few rows can carry a surplus of patches or text along, which must be placed in the long run. A surplus also
    # makes packing easier, so the long-run fill was measured to lie between the two estimates.
    drawn = mean_needs(stage, _sizes(chunks), [table.totals / len(table) for table in chunks.values()])[:2]
    all_placed = min(used[drawn > 0] / drawn[drawn > 0]) * drawn.sum() / shape.slots
    return float(found.fill + all_placed) / 2


def _chunks(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig, shape: RowShape
) -> dict[str, Chunks]:
    reserved = text_per_patch(stage, {name: indexes[name] for name in stage.mixture}, image)
    chunks = {name: make_chunks(index, image, shape, data.overlong, reserved) for name, index in indexes.items()}
    for name, found in chunks.items():
        if not len(found):
            raise ConfigError(
                f"stage {stage.name!r}: no record of source {name!r} fits a row of {shape}; "
                f"dropped: {dict(found.dropped)}. Raise row_slots, or lower image.max_side, max_pixels or max_tiles"
            )
    return chunks


def _planner(
    stage: StageConfig, chunks: Mapping[str, Chunks], shape: RowShape, window_rows: int, seed: int
) -> tuple[PackingPlanner, int]:
    """Returns the planner, and a key that identifies the plan: it depends on config, data and seed."""
    sizes = _sizes(chunks)
    # Sources that a change adds, and changes themselves, leave the key as it is.
    counts = [number for size in sizes[: len(stage.mixture)] for number in (size.documents, size.chunks, size.slots)]
    parts = [stage.mixture_schedule, stage.mixture_between, stage.max_epochs, stage.mixture_learning]
    further = [repr(parts)] if any(part not in ({}, None, "step") for part in parts) else []
    key = derive_key(seed, stage.name, repr(stage.mixture), window_rows, *astuple(shape), *counts, *further)
    draws = Draws(stage, sizes, max(window_rows // stage.batch_rows, 1), seed)
    return PackingPlanner(draws, list(chunks.values()), shape, window_rows, key), key


def _sizes(chunks: Mapping[str, Chunks]) -> list[SourceSize]:
    return [
        SourceSize(
            found.documents - sum(found.dropped.values()), len(found), int(found.totals[:2].sum()), int(found.totals[2])
        )
        for found in chunks.values()
    ]


def _statistics(planner: PackingPlanner, shape: RowShape, first: int, last: int) -> PlanStatistics:
    """Returns sums over the rows [first, last)."""
    useful = np.zeros(3, np.int64)
    documents = np.zeros(len(planner.first_chunk) - 1, np.int64)
    row = first
    while row < last:
        number, place = divmod(row, planner.rows)
        until = min(planner.rows, place + last - row)
        sums = planner.sums(number)
        useful += sums.needs[place:until].sum(axis=0)
        documents += sums.documents[place:until].sum(axis=0)
        row += until - place
    return PlanStatistics(last - first, (last - first) * shape.slots, useful, tuple(documents.tolist()))
