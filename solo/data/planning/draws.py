"""The draws of a stage whose mixture may change: first from constant blocks, then from windows with their own weights.

While the weights are those of step 0, chunks are drawn from the blocks of `MixtureStream`. From the first packing
window with other weights on, every window has its own: those of its first step. The state then counts the draws of
each source, and how far it lags behind its share, so that no source is ever more than about one draw off, whatever the
weights do. A block that a change interrupts is not lost: each source first gives the chunks that the block had left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from solo.config import StageConfig
from solo.data.planning import tuning
from solo.data.planning.mixture import BLOCK, MixtureStream, SourceSize, draw_weights
from solo.data.planning.mixture_weights import MixtureWeights


class DrawState(NamedTuple):
    """What has been drawn before a packing window.

    cursor  positions drawn from the constant blocks
    counts  draws of each source since then; empty while the mixture is constant
    credit  draws that each source lags behind its share; empty while the mixture is constant
    """

    cursor: int = 0
    counts: tuple[int, ...] = ()
    credit: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Rest:
    """The chunks that an interrupted block had left: see `MixtureStream.rest_of_block`."""

    cursor: int
    draws: list[np.ndarray]
    following: np.ndarray


class Draws:
    """Draws the chunks of a stage, from a state onwards.

    Args:
        stage: the mixture.
        sizes: sizes of `stage.sources`, in that order.
        window_steps: steps of a packing window.
        seed: seed of the run.

    Attributes:
        stream: the blocks of the constant mixture.
        weights: the weights at every step.
        window_steps: steps of a packing window.
    """

    def __init__(self, stage: StageConfig, sizes: Sequence[SourceSize], window_steps: int, seed: int) -> None:
        self.stream = MixtureStream(stage, sizes, seed)
        self.weights = MixtureWeights(stage)
        self._stage, self._sizes, self.window_steps = stage, sizes, window_steps
        self._most = most_draws(stage, sizes)
        self._rest: _Rest | None = None

    @property
    def length(self) -> int | None:
        """Chunks in the stream; None if it is endless."""
        return self.stream.length

    def shares(self, window: int) -> np.ndarray:
        """Returns each source's share of the draws in a window, float64 [sources]."""
        if not self._changed(window):
            return self.stream.shares
        return self._wanted(window)

    def _wanted(self, window: int) -> np.ndarray:
        return draw_weights(self._stage, self._sizes, self.weights.at(window * self.window_steps))

    def ahead(self, state: DrawState, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the next draws after a state: source and chunk, int64 [n] each, with n = 0 at the end."""
        if not self._changed(window):
            stop = state.cursor + tuning.LOOKED_UP
            return self.stream.lookup(np.arange(state.cursor, min(stop, self.length or stop)))
        counts, credit = self._counters(state)
        source = self._sources_ahead(window, counts, credit)
        return source, self._chunks(state.cursor, source, counts[source] + _occurrence(source))

    def after(self, state: DrawState, window: int, source: np.ndarray) -> DrawState:
        """Returns the state after these draws, the first ones of `ahead`."""
        if not self._changed(window):
            return DrawState(state.cursor + len(source))
        counts, credit = self._counters(state)
        taken = np.bincount(source, minlength=len(counts))
        credit = credit + self._allowed(window, counts) * len(source) - taken
        return DrawState(state.cursor, tuple((counts + taken).tolist()), tuple(credit.tolist()))

    def _changed(self, window: int) -> bool:
        """Returns whether a window is drawn with weights of its own, not from the constant blocks."""
        first = self.weights.first_change
        return self._most is not None or (first is not None and window * self.window_steps >= first)

    def _counters(self, state: DrawState) -> tuple[np.ndarray, np.ndarray]:
        if not state.counts:
            return np.zeros(len(self._sizes), np.int64), np.zeros(len(self._sizes))
        added = len(self._sizes) - len(state.counts)  # sources that a change has added since
        return np.asarray([*state.counts, *[0] * added]), np.asarray([*state.credit, *[0.0] * added])

    def _allowed(self, window: int, counts: np.ndarray) -> np.ndarray:
        """Returns the shares of the sources that may still be drawn; all zero if there are none."""
        shares = self._wanted(window)
        if self._most is not None:
            shares = np.where(counts < self._most, shares, 0.0)
        return shares / max(shares.sum(), 1e-300)

    def _sources_ahead(self, window: int, counts: np.ndarray, credit: np.ndarray) -> np.ndarray:
        source = interleave(self._allowed(window, counts), credit, BLOCK)
        if self._most is None:
            return source
        # Stops where a source reaches its cap; the next call shares its weight among the others.
        over = np.flatnonzero(counts[source] + _occurrence(source) >= self._most[source])
        return source[: over[0]] if len(over) else source

    def _chunks(self, cursor: int, source: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Returns the chunk of every draw; `count` numbers a source's draws since the blocks ended."""
        if self._rest is None or self._rest.cursor != cursor:
            self._rest = _Rest(cursor, *self.stream.rest_of_block(cursor))
        left = np.asarray([len(draws) for draws in self._rest.draws])
        draw = self._rest.following[source] + count - left[source]
        for number in np.unique(source):
            resumed = (source == number) & (count < left[number])
            draw[resumed] = self._rest.draws[number][count[resumed]]
        return self.stream.chunk(source, draw)


def most_draws(stage: StageConfig, sizes: Sequence[SourceSize]) -> np.ndarray | None:
    """Returns the most draws of each source, float64 [sources], infinite without a cap; None if no source has one."""
    if stage.max_epochs is None:
        return None
    caps = stage.max_epochs if isinstance(stage.max_epochs, dict) else dict.fromkeys(stage.sources, stage.max_epochs)
    passes = np.asarray([caps.get(name, np.inf) for name in stage.sources])
    return np.floor(passes * [size.chunks for size in sizes] + 1e-9)


def interleave(shares: np.ndarray, credit: np.ndarray, count: int) -> np.ndarray:
    """Returns the sources of the next draws, int64 [count], spread evenly; empty if no source has a share.

    Draw j of a source, from 1, is due when the source's share times the draws so far reaches j - 1/2, sooner by
    `credit`. After any number of draws, each source has its share of them to within about one.
    """
    if not shares.any():
        return np.zeros(0, np.int64)
    most = np.where(shares > 0, np.ceil(shares * (count + len(shares)) + np.abs(credit)) + 2, 0).astype(np.int64)
    source = np.repeat(np.arange(len(shares)), most)
    due = (_occurrence(source) + 0.5 - credit[source]) / shares[source]
    return source[np.lexsort((source, due))[:count]]


def _occurrence(source: np.ndarray) -> np.ndarray:
    """Returns how often each element occurred before, int64 [n]."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    found = np.empty(len(source), np.int64)
    found[order] = np.arange(len(source)) - np.repeat(first, np.diff(first, append=len(source)))
    return found
