"""The order in which documents are drawn, as a pure function of (seed, stage, position).

Nothing is stored: any position of the stream is looked up alone. A stage counted in steps draws for ever, in blocks
that each hold every source in its exact share; a stage counted in epochs draws a finite number, shuffled as a whole.
After every whole block no chunk of a source was drawn twice more than another. Within a block the order is free, so
that a source smaller than its share of a block may repeat a chunk there before it has given all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solo.config import ConfigError, StageConfig
from solo.data.planning.permutation import derive_key, derive_keys, permute

BLOCK = 4096


@dataclass(frozen=True)
class SourceSize:
    """What the mixture needs to know of a source: whole documents, the chunks they are drawn as, all their slots."""

    documents: int
    chunks: int
    slots: int


def draw_weights(stage: StageConfig, sizes: Sequence[SourceSize]) -> np.ndarray:
    """float64 [sources]: share of every source among the chunks drawn, summing to 1.

    `mixture_by: documents` weighs whole documents, so that cutting a long one does not change how often it is read;
    `positions` weighs slots. With `epochs` a source's share is its weight times its size.
    """
    weights = np.asarray(list(stage.mixture.values()), np.float64)
    documents, chunks, slots = (
        np.asarray([getattr(size, name) for size in sizes], np.float64) for name in ("documents", "chunks", "slots")
    )
    if stage.epochs is not None:
        shares = weights * chunks
    elif stage.mixture_by == "documents":
        shares = weights * chunks / documents
    else:
        shares = weights * chunks / slots
    return shares / shares.sum()


class MixtureStream:
    """The stage's documents in drawing order.

    Args:
        stage: mixture, steps or epochs.
        sizes: the sources, in mixture order; each has at least one chunk.
        seed: the run's seed.

    Attributes:
        length: documents in the stream; None where it is endless (a stage counted in steps).

    Raises:
        ConfigError: more sources than a block has places.
    """

    def __init__(self, stage: StageConfig, sizes: Sequence[SourceSize], seed: int) -> None:
        self._chunks = np.asarray([size.chunks for size in sizes], np.int64)
        self._key = derive_key(seed, stage.name, "mixture")
        self.length: int | None = None
        if stage.epochs is None:
            counts = _exact_counts(draw_weights(stage, sizes), BLOCK, stage.name)
        else:
            weights = np.asarray(list(stage.mixture.values()))
            counts = np.rint(weights * stage.epochs * self._chunks).astype(np.int64)
            self.length = int(counts.sum())
        # Without an end the stream is one shuffled block after the other; with one, it is a single shuffled block.
        self._counts = counts
        self._ends = np.cumsum(counts)
        self._block = int(self._ends[-1])

    def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn at these positions.

        Args:
            positions: integers [n], from 0, below `length` if there is one.

        Returns:
            source int64 [n], in mixture order, and chunk int64 [n], its number in the source.
        """
        positions = np.asarray(positions, np.int64)
        if not positions.size:
            return positions, positions
        block, place = np.divmod(positions, self._block)
        shuffled = permute(place, self._block, derive_keys(self._key, block))
        source = np.searchsorted(self._ends, shuffled, side="right")
        draw = block * self._counts[source] + shuffled - (self._ends - self._counts)[source]
        epoch, place = np.divmod(draw, self._chunks[source])
        return source, permute(place, self._chunks[source], derive_keys(self._key, source, epoch))


def _exact_counts(shares: np.ndarray, total: int, stage: str) -> np.ndarray:
    """int64 [sources], summing to `total`: shares rounded by largest remainder, every source at least one."""
    if len(shares) > total:
        raise ConfigError(f"stage {stage!r}: {len(shares)} sources, but a mixture has at most {total}")
    counts = np.maximum(np.floor(shares * total).astype(np.int64), 1)
    while counts.sum() < total:
        counts[np.argmax(shares * total - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - shares * total, -np.inf))] -= 1
    return counts
