"""Packing windows: a few hundred rows whose documents are drawn, packed and shuffled together.

A window draws from the stream until its documents fill both regions of its rows, with some to spare: even the last row
has a choice, and a surplus of patches or text waits for its counterpart. Documents that are left over are carried to
the next window. The state between two windows is that of drawing and the carried documents.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from solo.data.planning import tuning
from solo.data.planning.chunks import Chunks
from solo.data.planning.draws import Draws, DrawState
from solo.data.planning.packing import pack
from solo.data.planning.permutation import derive_key, permute
from solo.data.planning.row_shape import RowShape


class PackingState(NamedTuple):
    """The state of planning before a window.

    drawn  what has been drawn
    carry  int64 [c]: chunks that were drawn but not placed, oldest first, counted over all sources
    """

    drawn: DrawState
    carry: np.ndarray


@dataclass(frozen=True)
class PackingWindow:
    """R planned rows.

    chunks     int64 [n]: numbers of chunks, counted over all sources; row r holds chunks[ends[r-1] : ends[r]]
    needs      int64 [n, 3]: patch, text and target slots of each
    ends       int64 [R]
    following  state after the window
    """

    chunks: np.ndarray
    needs: np.ndarray
    ends: np.ndarray
    following: PackingState

    def rows(self, start: int, stop: int) -> slice:
        """Returns which of the n chunks are in the rows [start, stop)."""
        return slice(self.ends[start - 1] if start else 0, self.ends[stop - 1] if stop else 0)


class RowSums(NamedTuple):
    """What the R rows of a window hold.

    needs      int64 [R, 3]        patch, text and target slots
    documents  int64 [R, sources]  chunks of each source
    """

    needs: np.ndarray
    documents: np.ndarray


class PackingPlanner:
    """The packing windows of a stage. Each is a pure function of its number.

    Thread-safe. Pickles without the windows that were planned.

    Args:
        draws: the order in which chunks are drawn.
        chunks: chunks of every source, in the order of `draws`; each fits an empty row.
        shape: slots of a row.
        rows: R, rows of a window.
        key: selects the shuffles of the rows.
    """

    def __init__(self, draws: Draws, chunks: Sequence[Chunks], shape: RowShape, rows: int, key: int) -> None:
        self.rows = rows
        self._chunks = list(chunks)
        self.first_chunk = np.cumsum([0, *(len(table) for table in chunks)])
        self.draws, self._shape, self._key = draws, shape, key
        sampled = min(tuning.SPARE_DOCUMENTS, draws.length or tuning.SPARE_DOCUMENTS)
        first_drawn = self.numbers(*draws.stream.lookup(np.arange(sampled)))
        self._documents_per_row = shape.slots / float(self.needs(first_drawn)[:, :2].sum(axis=1).mean())
        self._spare_rows = min(tuning.SPARE_ROWS, 2 + int(tuning.SPARE_DOCUMENTS / self._documents_per_row))
        self._windows: OrderedDict[int, PackingWindow] = OrderedDict()
        self._sums: OrderedDict[int, RowSums] = OrderedDict()
        self._states: dict[int, PackingState] = {0: PackingState(DrawState(), np.zeros(0, np.int64))}
        self._lock = threading.RLock()

    def window(self, number: int) -> PackingWindow:
        """Returns window `number`, from 0. Plans the windows between the last known state and this one, if any."""
        with self._lock:
            if number not in self._windows:
                self._windows[number] = self._plan(number, self.state(number))
                self._remember(number + 1, self._windows[number].following)
                self._sums[number] = self._sum(self._windows[number])
                for kept, most in ((self._windows, tuning.WINDOWS_KEPT), (self._sums, tuning.SUMS_KEPT)):
                    if len(kept) > most:
                        kept.popitem(last=False)
            self._windows.move_to_end(number)
            return self._windows[number]

    def sums(self, number: int) -> RowSums:
        """Returns the contents of the rows of window `number`. They are cached for longer than the window itself."""
        with self._lock:
            if number not in self._sums:
                self.window(number)
            return self._sums[number]

    def state(self, number: int) -> PackingState:
        """Returns the state before a window, replayed from the nearest known state."""
        with self._lock:
            if number not in self._states:
                nearest = max(known for known in self._states if known < number)
                state = self._states[nearest]
                for before in range(nearest, number):
                    state = self._plan(before, state).following
                    self._remember(before + 1, state)
            return self._states[number]

    def change_weights(self, number: int, weights: Mapping[str, float]) -> None:
        """Changes the weights from window `number` on, and discards the cached windows from there on."""
        with self._lock:
            self.draws.weights.change(number * self.draws.window_steps, weights)
            for known in (self._windows, self._sums):
                for later in [window for window in known if window >= number]:
                    del known[later]
            for later in [window for window in self._states if window > number]:
                del self._states[later]

    def set_state(self, number: int, state: PackingState) -> None:
        """Stores the state before a window."""
        with self._lock:
            self._remember(number, state)

    def is_end(self, state: PackingState) -> bool:
        """Returns whether every document of a finite stream has been drawn and placed."""
        return state.drawn.cursor == self.draws.length and not len(state.carry)

    def needs(self, chunks: np.ndarray) -> np.ndarray:
        """Returns patch, text and target slots of each chunk, int64 [n, 3]. Chunks are counted over all sources."""
        found = np.empty((len(chunks), 3), np.int64)
        source = self.source(chunks)
        for number in np.unique(source).tolist():
            mine = source == number
            found[mine] = self._chunks[number].needs(chunks[mine] - self.first_chunk[number])
        return found

    def source(self, chunks: np.ndarray) -> np.ndarray:
        """Returns the source of each chunk, int64 [n]. Chunks are counted over all sources."""
        return np.searchsorted(self.first_chunk, chunks, side="right") - 1

    def _remember(self, number: int, state: PackingState) -> None:
        self._states[number] = state
        if len(self._states) > tuning.STATES_KEPT:
            # Forget every other state, except this one, the first and the last.
            for known in sorted(self._states)[1:-1:2]:
                if known != number:
                    del self._states[known]

    def _plan(self, number: int, state: PackingState) -> PackingWindow:
        chunks, needs, drawn = self._draw(number, state)
        rows = [np.sort(row) for row in pack(needs, self._shape, self.rows) if len(row)]
        # The rows of a batch must not depend on the order of packing. Empty rows, at the end of a stage counted in
        # epochs, stay last.
        order = permute(np.arange(len(rows)), max(len(rows), 1), derive_key(self._key, number))
        placed = np.concatenate([np.zeros(0, np.int64), *(rows[place] for place in order)])
        ends = np.cumsum([len(rows[place]) for place in order] + [0] * (self.rows - len(rows)))
        left = np.ones(len(chunks), bool)
        left[placed] = False
        return PackingWindow(chunks[placed], needs[placed], ends, PackingState(drawn, chunks[left]))

    def _sum(self, window: PackingWindow) -> RowSums:
        row = np.repeat(np.arange(self.rows), np.diff(window.ends, prepend=0))
        needs = np.zeros((self.rows, 3), np.int64)
        np.add.at(needs, row, window.needs)
        sources = len(self.first_chunk) - 1
        found = np.bincount(row * sources + self.source(window.chunks), minlength=self.rows * sources)
        return RowSums(needs, found.reshape(self.rows, sources))

    def _draw(self, number: int, state: PackingState) -> tuple[np.ndarray, np.ndarray, DrawState]:
        """Returns chunks and needs of the documents to pack, oldest first, and the state of drawing after them."""
        wanted = self.rows + self._spare_rows
        enough = np.asarray([self._shape.patch_slots, self._shape.text_slots]) * wanted
        most = self._shape.slots * (wanted + tuning.MOST_SPARE_ROWS)
        chunks, drawn = [state.carry], state.drawn
        needs = [self.needs(state.carry)]
        total = needs[0][:, :2].sum(axis=0)
        while (total < enough).any() and total.sum() < most:
            source, chunk = self.draws.ahead(drawn, number)
            if not len(source):
                break
            ahead = self.numbers(source, chunk)
            wants = self.needs(ahead)
            totals = total + np.cumsum(wants[:, :2], axis=0)
            stops = (totals >= enough).all(axis=1) | (totals.sum(axis=1) >= most)
            # Takes exactly as many as needed, however many were looked up.
            taken = int(np.argmax(stops)) + 1 if stops.any() else len(ahead)
            chunks.append(ahead[:taken])
            needs.append(wants[:taken])
            total, drawn = totals[taken - 1], self.draws.after(drawn, number, source[:taken])
        return np.concatenate(chunks), np.concatenate(needs), drawn

    def numbers(self, source: np.ndarray, chunk: np.ndarray) -> np.ndarray:
        """Returns the numbers of chunks, int64 [n], counted over all sources."""
        return self.first_chunk[source] + chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": OrderedDict(), "_sums": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
