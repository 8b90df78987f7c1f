"""Which documents share which row of which batch: a pure function of (config, seed, step).

Rows are planned in windows. A window draws documents from the mixture until they fill its rows with some to spare,
packs them, shuffles its rows, and carries what is left to the next window. The state between two windows is the
position in the stream and the carried documents: a snapshot of a few numbers, from which planning goes on anywhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np

from solo.config import ConfigError, DataConfig, ImageConfig, StageConfig
from solo.data.index import SourceIndex
from solo.data.mixture import MixtureStream, SourceSize
from solo.data.packing import pack
from solo.data.permutation import derive_key, permute
from solo.data.pieces import Pieces, make_pieces
from solo.data.shape import choose_row_shape, text_per_patch

_SPARE_ROWS = 16  # beyond a window's rows, drawn so that the last rows still have a choice
_MOST_SPARE_ROWS = 64  # of one region, while the other is not yet full; what a lasting surplus is capped at
_CHUNK = 1024  # documents looked up at once
_WINDOWS_KEPT = 4
_SNAPSHOTS_KEPT = 128


class Piece(NamedTuple):
    """A document, or a piece of one.

    source  its source, counted in mixture order
    record  its record, counted in the source
    start   it is the record's slots [start, stop) in reading order
    stop
    needs   patch, text and target slots
    """

    source: int
    record: int
    start: int
    stop: int
    needs: tuple[int, int, int]


@dataclass(frozen=True)
class PlanStatistics:
    """What a range of steps holds.

    rows       rows, empty ones included
    slots      slots of those rows
    useful     int64 [3]: patch, text and target slots that hold something
    documents  pieces of every source, in mixture order
    """

    rows: int
    slots: int
    useful: np.ndarray
    documents: tuple[int, ...]

    @property
    def fill(self) -> float:
        """Share of all slots (patches and text together) that hold something."""
        return float(self.useful[:2].sum() / max(self.slots, 1))


class _State(NamedTuple):
    """Where planning stands before a window."""

    cursor: int
    carry: np.ndarray  # int64: stream positions of the carried documents, oldest first


class _Window(NamedTuple):
    """R planned rows. Row r holds the pieces numbered pieces[ends[r-1] : ends[r]], counted over all sources."""

    pieces: np.ndarray
    ends: np.ndarray  # int64 [R]
    following: _State


class StagePlan:
    """The batches of a stage. Safe to share between threads; pickles without its caches.

    Args:
        stage: mixture, rows and length.
        indexes: the sources of `stage.mixture`, in its order.
        image: how images become patches.
        data: window size and what to do with documents that are too long.
        seed: the run's seed.

    Attributes:
        shape: slots of a row.
        pieces: by source, what is placed, and how many records were split or dropped.

    Raises:
        ConfigError: a source has nothing that fits a row, or no shape can be found.
    """

    def __init__(
        self, stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig, seed: int
    ) -> None:
        if list(indexes) != list(stage.mixture):
            raise ConfigError(f"stage {stage.name!r} mixes {list(stage.mixture)}, but was given {list(indexes)}")
        self.stage = stage
        self.shape = choose_row_shape(stage, indexes, image, data)
        reserved = text_per_patch(stage, indexes, image)
        self.pieces: dict[str, Pieces] = {
            name: make_pieces(index, image, self.shape, data.overlong, reserved) for name, index in indexes.items()
        }
        for name, pieces in self.pieces.items():
            if not len(pieces):
                raise ConfigError(
                    f"stage {stage.name!r}: no record of source {name!r} fits a row of {self.shape}; "
                    f"dropped: {dict(pieces.dropped)}. Raise row_slots, or lower image.max_side"
                )
        sizes = [
            SourceSize(p.documents - sum(p.dropped.values()), len(p), int(p.needs[:, :2].sum()))
            for p in self.pieces.values()
        ]
        self._stream = MixtureStream(stage, sizes, seed)
        self._tables = list(self.pieces.values())
        self._needs = np.concatenate([pieces.needs for pieces in self.pieces.values()])
        self._first_piece = np.cumsum([0, *(len(pieces) for pieces in self.pieces.values())])
        # Every batch lies in one window.
        self._window_rows = -(-data.planning_window // stage.batch_rows) * stage.batch_rows
        self._key = derive_key(
            seed, stage.name, "rows", self._window_rows, *astuple(self.shape), *(len(pieces) for pieces in self._tables)
        )
        self._num_steps = stage.steps
        self._windows: OrderedDict[int, _Window] = OrderedDict()
        self._states: dict[int, _State] = {0: _State(0, np.zeros(0, np.int64))}
        self._lock = threading.RLock()

    @property
    def num_steps(self) -> int:
        """Steps of the stage. Where it is counted in epochs, the first call plans it through."""
        with self._lock:
            if self._num_steps is None:
                self._num_steps = self._count_steps()
            return self._num_steps

    def rows(self, step: int) -> list[list[Piece]]:
        """The B rows of a batch, each a list of documents in the order in which they stand.

        Steps may be asked for in any order. Raises IndexError where the stage has no such step.
        """
        return [self.row(step, row) for row in range(self.stage.batch_rows)]

    def row(self, step: int, row: int) -> list[Piece]:
        """One of `rows(step)`."""
        if not (0 <= step < self.num_steps and 0 <= row < self.stage.batch_rows):
            raise IndexError(
                f"row {row} of step {step} of stage {self.stage.name!r}, which has {self.num_steps} steps of "
                f"{self.stage.batch_rows} rows"
            )
        number, place = divmod(step * self.stage.batch_rows + row, self._window_rows)
        window = self._window(number)
        first = window.ends[place - 1] if place else 0
        return [self._piece(int(piece)) for piece in window.pieces[first : window.ends[place]]]

    def snapshot(self, step: int) -> dict[str, Any]:
        """What `seek` needs to plan from a step on without planning what is before it. JSON-able, small."""
        number = step * self.stage.batch_rows // self._window_rows
        with self._lock:
            state = self._state(number)
        return {"plan": self._key, "window": number, "cursor": state.cursor, "carry": state.carry.tolist()}

    def seek(self, snapshot: Mapping[str, Any]) -> None:
        """Make a snapshot known. Raises ValueError where it comes from another plan (config, data or seed)."""
        if snapshot["plan"] != self._key:
            raise ValueError(
                f"the snapshot of stage {self.stage.name!r} comes from another plan: its sources, row shape, window, "
                "batch_rows or seed have changed since"
            )
        with self._lock:
            carry = np.asarray(snapshot["carry"], np.int64)
            self._states[int(snapshot["window"])] = _State(int(snapshot["cursor"]), carry)

    def statistics(self, start: int, stop: int) -> PlanStatistics:
        """What the steps [start, stop) hold. Plans them if they are not planned yet."""
        useful = np.zeros(3, np.int64)
        documents = np.zeros(len(self.pieces), np.int64)
        row, last = start * self.stage.batch_rows, stop * self.stage.batch_rows
        while row < last:
            number, place = divmod(row, self._window_rows)
            window = self._window(number)
            until = min(self._window_rows, place + last - row)
            pieces = window.pieces[window.ends[place - 1] if place else 0 : window.ends[until - 1]]
            useful += self._needs[pieces].sum(axis=0)
            documents += np.bincount(self._source(pieces), minlength=len(documents))
            row += until - place
        rows = (stop - start) * self.stage.batch_rows
        return PlanStatistics(rows, rows * self.shape.slots, useful, tuple(documents.tolist()))

    def fill(self, steps: int) -> float:
        """Share of all slots of the first steps that hold something."""
        return self.statistics(0, steps).fill

    def _count_steps(self) -> int:
        """Plan a finite stage to its end."""
        number = 0
        while True:
            window = self._window(number)
            if window.following.cursor == self._stream.length and not len(window.following.carry):
                counts = np.diff(window.ends, prepend=0)
                rows = number * self._window_rows + int(np.count_nonzero(counts))
                return -(-rows // self.stage.batch_rows)
            number += 1

    def _window(self, number: int) -> _Window:
        with self._lock:
            if number in self._windows:
                self._windows.move_to_end(number)
                return self._windows[number]
            window = self._plan(number, self._state(number))
            self._windows[number] = window
            self._remember(number + 1, window.following)
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
            return window

    def _state(self, number: int) -> _State:
        """The state before a window, replayed from the nearest one known before it."""
        if number not in self._states:
            nearest = max(known for known in self._states if known < number)
            for before in range(nearest, number):
                self._remember(before + 1, self._plan(before, self._state(before)).following)
        return self._states[number]

    def _remember(self, number: int, state: _State) -> None:
        self._states[number] = state
        if len(self._states) > _SNAPSHOTS_KEPT:
            # Forget every other one; the first and the newest stay.
            for known in sorted(self._states)[1:-1:2]:
                if known != number:
                    del self._states[known]

    def _plan(self, number: int, state: _State) -> _Window:
        positions, pieces, cursor = self._draw(state)
        rows = [np.sort(row) for row in pack(self._needs[pieces], self.shape, self._window_rows) if len(row)]
        # Which rows stand together must not depend on how they were packed. Empty rows, at the end of a stage
        # counted in epochs, stay last.
        order = permute(np.arange(len(rows)), max(len(rows), 1), derive_key(self._key, number))
        placed = np.concatenate([np.zeros(0, np.int64), *(rows[place] for place in order)])
        ends = np.cumsum([len(rows[place]) for place in order] + [0] * (self._window_rows - len(rows)))
        left = np.ones(len(positions), bool)
        left[placed] = False
        return _Window(pieces[placed], ends, _State(cursor, positions[left]))

    def _draw(self, state: _State) -> tuple[np.ndarray, np.ndarray, int]:
        """Positions in the stream and pieces to pack, oldest first, and the cursor behind them."""
        wanted = self._window_rows + _SPARE_ROWS
        enough = np.asarray([self.shape.patch_slots, self.shape.text_slots]) * wanted
        most = self.shape.slots * (wanted + _MOST_SPARE_ROWS)
        positions, pieces, cursor = [state.carry], [self._lookup(state.carry)], state.cursor
        total = self._needs[pieces[0], :2].sum(axis=0)
        while (total < enough).any() and total.sum() < most and cursor != self._stream.length:
            chunk = np.arange(cursor, min(cursor + _CHUNK, self._stream.length or cursor + _CHUNK))
            drawn = self._lookup(chunk)
            totals = total + np.cumsum(self._needs[drawn, :2], axis=0)
            stops = (totals >= enough).all(axis=1) | (totals.sum(axis=1) >= most)
            # Exactly as many as needed, so that the size of a chunk changes nothing.
            taken = int(np.argmax(stops)) + 1 if stops.any() else len(chunk)
            positions.append(chunk[:taken])
            pieces.append(drawn[:taken])
            total, cursor = totals[taken - 1], cursor + taken
        return np.concatenate(positions), np.concatenate(pieces), cursor

    def _lookup(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: pieces drawn at these positions of the stream, counted over all sources."""
        source, piece = self._stream.lookup(positions)
        return self._first_piece[source] + piece

    def _source(self, pieces: np.ndarray) -> np.ndarray:
        """int64 [n]: sources of pieces that are counted over all sources."""
        return np.searchsorted(self._first_piece, pieces, side="right") - 1

    def _piece(self, number: int) -> Piece:
        source = int(self._source(np.asarray(number)))
        table, place = self._tables[source], number - self._first_piece[source]
        patches, text, targets = self._needs[number].tolist()
        start, stop = int(table.start[place]), int(table.stop[place])
        return Piece(source, int(table.record[place]), start, stop, (patches, text, targets))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
