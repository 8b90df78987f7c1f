"""The order in which documents are drawn: a pure function of (seed, stage, position).

Nothing is stored; any position of the stream can be looked up by itself. A stage counted in steps has an endless stream
of blocks, each of which holds every source in its exact share. A stage counted in epochs has a finite stream, shuffled
as a whole. At the end of a block, every chunk of a source has been drawn equally often, to within one. Within a block,
a source that is smaller than its share may repeat a chunk before all others were drawn.
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
    """The size of a source: its documents, their chunks, and the slots of all chunks."""

    documents: int
    chunks: int
    slots: int


def draw_weights(stage: StageConfig, sizes: Sequence[SourceSize]) -> np.ndarray:
    """Returns each source's share of the chunks drawn, float64 [sources], which sums to 1.

    `mixture_by: documents` weighs whole documents, so that splitting a long one does not change how often it is read.
    `mixture_by: tokens` weighs slots. With `epochs`, a source's share is its weight times its size.
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
    """The chunks of a stage in the order in which they are drawn.

    Args:
        stage: mixture, and steps or epochs.
        sizes: sizes of the sources, in mixture order; each has at least one chunk.
        seed: seed of the run.

    Attributes:
        length: chunks in the stream; None if it is endless (a stage counted in steps).

    Raises:
        ConfigError: there are more sources than a block has places.
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
        # An endless stream is one shuffled block after another; a finite one is a single shuffled block.
        self._counts = counts
        self._ends = np.cumsum(counts)
        self._block = int(self._ends[-1])

    def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up the chunks drawn at these positions.

        Args:
            positions: integers [n], from 0 and below `length`.

        Returns:
            The source, int64 [n], in mixture order, and the chunk, int64 [n], counted in its source.
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
    """Rounds shares to counts, int64 [sources], that sum to `total`: by largest remainder, at least one per source."""
    if len(shares) > total:
        raise ConfigError(f"stage {stage!r}: {len(shares)} sources, but a mixture has at most {total}")
    counts = np.maximum(np.floor(shares * total).astype(np.int64), 1)
    while counts.sum() < total:
        counts[np.argmax(shares * total - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - shares * total, -np.inf))] -= 1
    return counts
