"""The order in which documents are drawn: a pure function of (seed, stage, position).

Nothing is stored; any position of the stream can be looked up directly. A stage counted in steps has an endless stream
of blocks, each of which holds every source in its exact share. A stage counted in epochs has a finite stream, shuffled
as a whole. At the end of a block, every chunk of a source has been drawn equally often, to within one. Within a block,
a source with fewer chunks than draws repeats chunks, and may repeat one before all others were drawn.
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
    """The size of a source: its documents, their chunks, and the slots and targets of all chunks."""

    documents: int
    chunks: int
    slots: int
    targets: int = 0


def draw_weights(stage: StageConfig, sizes: Sequence[SourceSize], weights: np.ndarray | None = None) -> np.ndarray:
    """Returns each source's share of the chunks drawn, float64 [sources], which sums to 1.

    `mixture_by: documents` weighs whole documents, so that splitting a long one does not change how often it is read.
    `mixture_by: tokens` weighs slots, and `targets` weighs target tokens. With `epochs`, a source's share is its weight
    times its size.

    Args:
        stage: the mixture.
        sizes: sizes of the sources, in mixture order; those that are added later follow.
        weights: float64 [sources]; default: `stage.mixture`, and 0 for sources that are added later.

    Raises:
        ConfigError: `mixture_by: targets`, and a source has none.
    """
    if weights is None:
        weights = np.zeros(len(sizes))
        weights[: len(stage.mixture)] = list(stage.mixture.values())
    chunks = np.asarray([size.chunks for size in sizes], np.float64)
    if stage.epochs is not None:
        shares = weights * chunks
    else:
        field = {"documents": "documents", "tokens": "slots", "targets": "targets"}[stage.mixture_by]
        units = np.asarray([getattr(size, field) for size in sizes], np.float64)
        if not units.all():
            raise ConfigError(
                f"stage {stage.name!r}: source {stage.sources[int(np.argmin(units))]!r} has no target token, so"
                " mixture_by: targets cannot weigh it; remove it, or weigh documents or tokens"
            )
        shares = weights * chunks / units
    return shares / shares.sum()


class MixtureStream:
    """The chunks of a stage in the order in which they are drawn.

    Args:
        stage: mixture, and steps or epochs.
        sizes: sizes of `stage.sources`, in that order; each has at least one chunk. Those that are added later are
            never drawn here; see `solo.data.planning.draws`.
        seed: seed of the run.

    Attributes:
        length: chunks in the stream; None if it is endless (a stage counted in steps).

    Raises:
        ConfigError: there are more sources than a block has places, or `epochs` does not come to one document.
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
            if not self.length:
                raise ConfigError(
                    f"stage {stage.name!r}: epochs {stage.epochs:g} of these weights is less than one document of each"
                    " source; raise epochs"
                )
        # An endless stream is one shuffled block after another; a finite one is a single shuffled block.
        self._counts = counts
        self._ends = np.cumsum(counts)
        self._block = int(self._ends[-1])

    @property
    def shares(self) -> np.ndarray:
        """Each source's share of a block, float64 [sources]; a source with a weight has at least one draw in it."""
        return self._counts / self._block

    def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up the chunks drawn at these positions.

        Args:
            positions: integers [n], from 0 and below `length`.

        Returns:
            The source, int64 [n], in mixture order, and the chunk, int64 [n], counted in its source.
        """
        source, draw = self.draws(positions)
        return source, self.chunk(source, draw)

    def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `lookup`, with the number of the draw from its source, from 0, in place of the chunk."""
        positions = np.asarray(positions, np.int64)
        if not positions.size:
            return positions, positions
        block, place = np.divmod(positions, self._block)
        shuffled = permute(place, self._block, derive_keys(self._key, block))
        source = np.searchsorted(self._ends, shuffled, side="right")
        return source, block * self._counts[source] + shuffled - (self._ends - self._counts)[source]

    def chunk(self, source: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Returns the chunk that a source gives at a draw, int64 [n]: every epoch is shuffled by itself."""
        if not len(source):
            return draw
        epoch, place = np.divmod(draw, self._chunks[source])
        return permute(place, self._chunks[source], derive_keys(self._key, source, epoch))

    def rest_of_block(self, position: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns which draws of each source a stream that ends at a position has left out, and the first after them.

        Returns:
            For every source, the draws of the positions from here to the end of the block, int64 [n]; and the number
            of the first draw after the block, int64 [sources].
        """
        end = -(-position // self._block) * self._block
        source, draw = self.draws(np.arange(position, end))
        return [draw[source == number] for number in range(len(self._chunks))], end // self._block * self._counts


def _exact_counts(shares: np.ndarray, total: int, stage: str) -> np.ndarray:
    """Rounds shares to counts, int64 [sources], that sum to `total`, by the largest remainder method.

    Every source with a share has at least one.
    """
    if len(shares) > total:
        raise ConfigError(f"stage {stage!r}: {len(shares)} sources, but a mixture has at most {total}")
    least = (shares > 0).astype(np.int64)
    counts = np.maximum(np.floor(shares * total).astype(np.int64), least)
    while counts.sum() < total:
        counts[np.argmax(shares * total - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > least, counts - shares * total, -np.inf))] -= 1
    return counts
