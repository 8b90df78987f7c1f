"""Windows of rows: documents drawn, packed and shuffled; what is left is carried to the next window.

A window draws from the stream until its documents fill both regions of its rows, with some to spare: so there is a
choice to the last row, and a surplus of patches or of text waits for its counterpart instead of being wasted. The
state between two windows is the place in the stream and the carried documents.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from solo.data.planning.chunks import Chunks
from solo.data.planning.mixture import MixtureStream
from solo.data.planning.packing import pack
from solo.data.planning.permutation import derive_key, permute
from solo.data.planning.row_shape import RowShape

_SPARE_ROWS = 16  # drawn beyond a window's rows, for choice; fewer where so many documents are in fewer rows
_SPARE_DOCUMENTS = 1024
_MOST_SPARE_ROWS = 64  # what a lasting surplus of one region, in rows, is capped at; then rows go out unfilled
_LEAST_LOOKED_UP = 64
_WINDOWS_KEPT = 4
_STATES_KEPT = 128


class State(NamedTuple):
    """Where planning stands before a window.

    cursor  positions below it have been drawn
    carry   int64 [c]: positions of the documents drawn but not placed, oldest first
    """

    cursor: int
    carry: np.ndarray


@dataclass(frozen=True)
class Window:
    """R planned rows.

    chunks     int64: row r is chunks[ends[r-1] : ends[r]], numbers counted over all sources
    ends       int64 [R]
    following  the state after the window
    """

    chunks: np.ndarray
    ends: np.ndarray
    following: State

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Chunks of the rows [start, stop)."""
        return self.chunks[self.ends[start - 1] if start else 0 : self.ends[stop - 1] if stop else 0]


class WindowPlanner:
    """The windows of a stage, each a pure function of its number. Thread-safe; pickles without planned windows.

    Args:
        stream: which chunks are drawn, in order.
        chunks: of every source of the stream, in its order; each fits an empty row.
        shape: slots of a row.
        rows: R, the rows of a window.
        key: names the shuffles of the rows.
    """

    def __init__(self, stream: MixtureStream, chunks: Sequence[Chunks], shape: RowShape, rows: int, key: int) -> None:
        self.rows = rows
        self.needs = np.concatenate([table.needs for table in chunks])
        self.first_chunk = np.cumsum([0, *(len(table) for table in chunks)])
        self._stream, self._shape, self._key = stream, shape, key
        first_drawn = self._lookup(np.arange(min(1024, stream.length or 1024)))
        self._documents_per_row = shape.slots / float(self.needs[first_drawn, :2].sum(axis=1).mean())
        self._spare_rows = min(_SPARE_ROWS, 2 + int(_SPARE_DOCUMENTS / self._documents_per_row))
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._states: dict[int, State] = {0: State(0, np.zeros(0, np.int64))}
        self._lock = threading.RLock()

    def window(self, number: int) -> Window:
        """Window `number`, from 0. Where it is far from those planned before, the ones between are planned again."""
        with self._lock:
            if number not in self._windows:
                self._windows[number] = self._plan(number, self.state(number))
                self._remember(number + 1, self._windows[number].following)
                if len(self._windows) > _WINDOWS_KEPT:
                    self._windows.popitem(last=False)
            self._windows.move_to_end(number)
            return self._windows[number]

    def state(self, number: int) -> State:
        """The state before a window, replayed from the nearest known one before it."""
        with self._lock:
            if number not in self._states:
                nearest = max(known for known in self._states if known < number)
                state = self._states[nearest]
                for before in range(nearest, number):
                    state = self._plan(before, state).following
                    self._remember(before + 1, state)
            return self._states[number]

    def set_state(self, number: int, state: State) -> None:
        """Make the state before a window known."""
        with self._lock:
            self._remember(number, state)

    def is_end(self, state: State) -> bool:
        """Whether all documents of a stream that has an end are drawn and placed."""
        return state.cursor == self._stream.length and not len(state.carry)

    def source(self, chunks: np.ndarray) -> np.ndarray:
        """int64 [n]: the sources of chunks that are counted over all sources."""
        return np.searchsorted(self.first_chunk, chunks, side="right") - 1

    def _remember(self, number: int, state: State) -> None:
        self._states[number] = state
        if len(self._states) > _STATES_KEPT:
            # Forget every other one, but not this one, the first or the last.
            for known in sorted(self._states)[1:-1:2]:
                if known != number:
                    del self._states[known]

    def _plan(self, number: int, state: State) -> Window:
        positions, chunks, cursor = self._draw(state)
        rows = [np.sort(row) for row in pack(self.needs[chunks], self._shape, self.rows) if len(row)]
        # Which rows stand together must not depend on how they were packed. Empty rows, at the end of a stage
        # counted in epochs, stay last.
        order = permute(np.arange(len(rows)), max(len(rows), 1), derive_key(self._key, number))
        placed = np.concatenate([np.zeros(0, np.int64), *(rows[place] for place in order)])
        ends = np.cumsum([len(rows[place]) for place in order] + [0] * (self.rows - len(rows)))
        left = np.ones(len(positions), bool)
        left[placed] = False
        return Window(chunks[placed], ends, State(cursor, positions[left]))

    def _draw(self, state: State) -> tuple[np.ndarray, np.ndarray, int]:
        """Positions and chunks of the documents to pack, oldest first, and the cursor behind them."""
        wanted = self.rows + self._spare_rows
        enough = np.asarray([self._shape.patch_slots, self._shape.text_slots]) * wanted
        most = self._shape.slots * (wanted + _MOST_SPARE_ROWS)
        positions, chunks, cursor = [state.carry], [self._lookup(state.carry)], state.cursor
        total = self.needs[chunks[0], :2].sum(axis=0)
        while (total < enough).any() and total.sum() < most and cursor != self._stream.length:
            missing = float(max(1 - total.sum() / enough.sum(), 0)) * wanted * self._documents_per_row
            stop = cursor + int(1.05 * missing) + _LEAST_LOOKED_UP
            ahead = np.arange(cursor, min(stop, self._stream.length or stop))
            drawn = self._lookup(ahead)
            totals = total + np.cumsum(self.needs[drawn, :2], axis=0)
            stops = (totals >= enough).all(axis=1) | (totals.sum(axis=1) >= most)
            # Exactly as many as needed: how many were looked up changes nothing.
            taken = int(np.argmax(stops)) + 1 if stops.any() else len(ahead)
            positions.append(ahead[:taken])
            chunks.append(drawn[:taken])
            total, cursor = totals[taken - 1], cursor + taken
        return np.concatenate(positions), np.concatenate(chunks), cursor

    def _lookup(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: chunks drawn at these positions of the stream, counted over all sources."""
        source, chunk = self._stream.lookup(positions)
        return self.first_chunk[source] + chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
